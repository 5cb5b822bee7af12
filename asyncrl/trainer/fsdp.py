"""The trainer backend `fsdp`: the learner, alone on its device or as one of several ranks (FSDP2)."""

from __future__ import annotations

import logging
from functools import partial

import torch

from asyncrl.data.sft import Demonstrations
from asyncrl.errors import UserError
from asyncrl.models import load_tokenizer
from asyncrl.recipe.cores import trainer_threads
from asyncrl.trainer.backend import Setup
from asyncrl.trainer.comparison import require_unchanged
from asyncrl.trainer.export import names_of, write_model
from asyncrl.trainer.learner import Learner
from asyncrl.trainer.lora import merged
from asyncrl.trainer.model import load_model, trained_shapes
from asyncrl.trainer.ranks import ProcessGroup
from asyncrl.trainer.sft import RowsOf

logger = logging.getLogger(__name__)


class Fsdp(Learner):
    trained_shapes = staticmethod(trained_shapes)

    def __init__(self, setup: Setup) -> None:
        recipe, trainer = setup.recipe, setup.recipe.trainer
        torch.set_num_threads(trainer_threads(recipe))
        torch.manual_seed(recipe.seed)
        device = torch.device("cuda" if trainer.gpus_per_rank else "cpu")
        if trainer.precision == "fp16" and device.type == "cpu":
            logger.warning("trainer.precision fp16: most CPUs compute it many times as slowly as bf16 or fp32")
        if 0 < trainer.gpus_per_rank < 1:
            torch.cuda.set_per_process_memory_fraction(trainer.gpus_per_rank)
        group = ProcessGroup(device)
        if (place := setup.rendezvous) is not None:
            deadline_s = recipe.deadlines.step_s
            group = ProcessGroup.join(place, setup.store, setup.rank, trainer.ranks, device, deadline_s)
        load = partial(load_model, setup.model, recipe, device)
        look = partial(_require_untouched, setup)
        super().__init__(load, recipe, device, group, look, setup.base_dir, _rows_of(setup, group))


def _rows_of(setup: Setup, group: ProcessGroup) -> RowsOf | None:
    """The demonstrations of the recipe. Raises UserError if the ranks have read different ones."""
    if setup.recipe.algorithm.sft is None:
        return None
    found = Demonstrations(setup.recipe, load_tokenizer(setup.model), setup.base_dir)
    number = float(int(found.digest()[:8], 16))
    if group.sum([number]) != [group.size * number]:
        raise UserError(
            "algorithm.sft.data is not the same for all ranks of the trainer; put one copy where all of them read it"
        )
    return found.rows


def _require_untouched(setup: Setup, model: torch.nn.Module) -> None:
    """Raises UserError if an export of the model would not be what it was loaded from."""
    if setup.scratch is None:
        return
    dtype: torch.dtype = getattr(torch, setup.recipe.weights.dtype)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    whole = merged(model, trained, setup.recipe.trainer.lora)
    write_model(model, whole, names_of(model), setup.scratch, dtype)
    require_unchanged(model, setup.scratch, list(setup.text), dtype)
