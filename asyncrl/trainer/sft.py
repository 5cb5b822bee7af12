"""Demonstrations beside the loss of what is sampled: the SFT term, known as the PTX loss of InstructGPT
(arXiv:2203.02155, section 3.5).

    coef x -1/N sum log pi(token)    over the N learnt tokens of an optimizer step's rows, whatever the micro-batches
                                     and the ranks

At temperature 1, whatever the rollouts are sampled at: the rows are to be likely as they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from asyncrl.data.demonstrations import Rendered
from asyncrl.observe.trace import span
from asyncrl.rollout.demonstrations import trajectory
from asyncrl.trainer.model import Policy
from asyncrl.trainer.optimizer import Optimizer
from asyncrl.trainer.packing import TrainSample
from asyncrl.trainer.ranks import ProcessGroup
from asyncrl.trainer.step_report import Sums
from asyncrl.trainer.updates import Rows

RowsOf = Callable[[int], Sequence[Sequence[Rendered]]]
"""The sequences of each row that joins a training step, by the step's number."""


def samples_of(rows: Sequence[Sequence[Rendered]], step: int) -> list[TrainSample]:
    """The rows as what is trained; each is a group."""
    found = []
    for number, sequences in enumerate(rows):
        for sequence in sequences:
            one = trajectory(sequence, step, 0, reward=1.0)
            found.append(TrainSample(one, number, 1.0, 1.0, one.loss_mask))
    return found


class SftTerm:
    """`rows_of` is a pure function of the step."""

    def __init__(self, coef: float, rows_of: RowsOf, process_group: ProcessGroup) -> None:
        self.coef, self.rows_of, self.process_group = coef, rows_of, process_group

    def backward(self, rows: Rows, policy: Policy, optimizer: Optimizer, sums: Sums) -> float:
        """Add the gradient of the term; this rank's part of its value."""
        weight, total = self.coef / rows.num_tokens, 0.0
        for batch in rows.passes.batches:
            with span("forward"):
                loss = -policy(batch, 1.0)[0].sum()
            with span("backward"):
                self.process_group.backward(optimizer.scaled(weight * loss))
            total += float(loss.detach())
            sums.rows_tokens += len(batch.targets)
            sums.tokens_forward += batch.tokens.numel()
            sums.tokens_of_trajectories += sum(len(s.trajectory.tokens) for s in batch.samples)
        for batch in rows.passes.idle:
            self.process_group.backward(0.0 * policy(batch, 1.0)[0].sum())
        sums.rows_nll += total
        return weight * total
