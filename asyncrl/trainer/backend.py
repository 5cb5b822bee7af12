"""What trains: the protocol of a trainer backend. The trainer actor, the orchestrator and replay know no more of one.

    trained_shapes      before anything is started: can it train this model?
    Backend(setup)      in the actor of each rank: the initial model
    restore             a checkpoint or a snapshot, if there is one
    weight_shards       once: what is copied after each step, to be sent to the engines
    step                one batch; it calls `before_update` first, and then changes weights and state
    state               between steps: tensors that another thread copies, until `before_update` has returned
    export              on one rank, beside the steps: a model folder, of what `state` gave
    compare_export      at the end: whether that is the model
    score               between steps: does an engine compute the same?

Every rank takes the same calls in the same order, but for `export` and `compare_export`. How they divide the work is
theirs to know: they meet at `setup.rendezvous`. `trainer.backend` names the class: a name of `registry.TRAINERS`, or a
user's own by `package.module:name` or `./file.py:name`. `fsdp.py` has ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from asyncrl.cluster.rendezvous import Rendezvous, SealedStore
from asyncrl.errors import UserError
from asyncrl.recipe.schema import Recipe
from asyncrl.registry import TRAINERS, find
from asyncrl.rollout.trajectory import Group
from asyncrl.weights.lora import Adapters
from asyncrl.weights.shards import Held

NUM_SAMPLED = 2
"""Groups of a batch whose first trajectory is shown to people: the first ones."""
TokenGaps = list[float | None]
"""How far trainer and engine are apart in the log-prob of every token from the first sampled one on; None where it is
not trained, or the engine gave none."""


@dataclass(frozen=True)
class Setup:
    """What one rank is made of."""

    recipe: Recipe
    model: str
    """The initial one: a folder, or a name on the hub."""
    base_dir: Path
    """From which a user's code is looked up."""
    rank: int = 0
    rendezvous: Rendezvous | None = None
    """Where the ranks meet; None: there is one only."""
    store: SealedStore | None = None
    """The place itself, which rank 0 holds."""
    text: tuple[int, ...] = ()
    """Tokens that models are compared by."""
    scratch: Path | None = None
    """An empty folder to export the untouched model to, so that it can be seen whether it is the one that was loaded;
    None: it has been."""


@dataclass(frozen=True)
class StepReport:
    """What one step did; times in seconds."""

    metrics: dict[str, float | None]
    """Into the step's record, where `metric_names.TRAINER_KEYS` are null if they are not here. `trainer/skipped_steps`:
    updates that changed nothing (`budgets.max_consecutive_skipped_steps`)."""
    tokens_trained: int
    """Tokens whose loss counted, zero-advantage groups included."""
    tokens_forward: int
    """Tokens that went through the model with a gradient."""
    staleness: tuple[int, ...]
    """Age of every trained token at this step, as counts: staleness[a] tokens of age a."""
    gaps: dict[int, TokenGaps] = field(default_factory=dict)
    """Of the first trajectories of the first NUM_SAMPLED groups, those that passed on this rank, by their places."""


class TrainerBackend(Protocol):
    """One rank of it."""

    before_update: Callable[[], object]
    """Set by the actor; called once at least in every step, right before weights or state change."""
    kernels: str = ""
    """Which ones a GPU takes, for people; nothing to say: empty."""
    adapters: Adapters | None = None
    """The weights that are sent are such, and how an engine merges them; None: they are the model's own."""
    sync_group: Any = None
    """A `torch.distributed` group of the ranks that weight syncs alone use (for nccl); None: there is one rank."""

    def __init__(self, setup: Setup) -> None:
        """Load the initial model. Raises UserError for one that cannot be trained as the recipe says."""

    @staticmethod
    def trained_shapes(model: str, recipe: Recipe) -> dict[str, tuple[int, ...]]:
        """What would be trained, by its name in `state` less `model.`, whole; known without loading it. Raises
        UserError as `__init__` does."""

    def step(self, groups: list[Group], step: int, min_version: int) -> StepReport:
        """Train batch `step`, whose weights become version `step` + 1. Tokens sampled before `min_version` are context
        only if `on_stale` is `mask`; else they are a ValueError (I1)."""

    def weight_shards(self) -> list[Held]:
        """What this rank holds of the weights that are sent, under the names of the model's checkpoint: on every rank
        all names in the same order, each once; what it holds nothing of is an empty shard."""

    def state(self) -> dict[str, torch.Tensor]:
        """All that a step depends on, by name: the tensors themselves, not copies. The weights are `model.<name>`; of a
        tensor that is divided by rows, what this rank holds is `<name>@<first row>`."""

    def restore(self, tensors: Mapping[str, Any]) -> None:
        """Inverse of `state`, bit for bit, from whole tensors, by any number of ranks."""

    def export(self, state: Mapping[str, Any], folder: Path, dtype: torch.dtype) -> None:
        """Write `model.*` of a `state` of whole tensors in `dtype`, as a folder that engines load."""

    def compare_export(
        self, state: Mapping[str, Any], folder: Path, expected: list[float], text: list[int], dtype: torch.dtype
    ) -> None:
        """Raises RunFailed if the folder, loaded again, is another model than `state`, or than the one that gives the
        text the log-probs `expected`."""

    def score(self, tokens: list[int]) -> list[float]:
        """log pi of tokens[1:] given what is before them, at temperature 1."""


def backend_class(recipe: Recipe, base_dir: Path) -> type[TrainerBackend]:
    """Raises UserError if what the recipe names is none."""
    spec = recipe.trainer.backend
    kind: type[TrainerBackend] = find(TRAINERS, spec, base_dir, "trainer.backend")
    methods = [name for name, value in vars(TrainerBackend).items() if callable(value) and not name.startswith("_")]
    if missing := [name for name in methods if not hasattr(kind, name)]:
        raise UserError(f"trainer.backend '{spec}' lacks {', '.join(missing)}; see asyncrl.trainer.backend")
    return kind
