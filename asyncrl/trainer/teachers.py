"""Frozen models beside the trained one, whose log-probs of the sampled tokens it is drawn to (on-policy distillation).

They are asked at the temperature that the tokens were sampled at, about the very tokens that the student read, and over
the student's vocabulary: what a teacher's head has beyond it, such as padding, is left out of its softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from asyncrl.errors import UserError
from asyncrl.recipe.schema import Recipe
from asyncrl.recipe.teacher import TeacherRecipe, teacher_of
from asyncrl.recipe.trainer import LoraRecipe
from asyncrl.trainer.model import Policy, load_model, takes_trees
from asyncrl.trainer.packing import PackedBatch


def load_teacher(teacher: TeacherRecipe, recipe: Recipe, device: torch.device, base_dir: Path) -> torch.nn.Module:
    """Its model, without adapters; a relative path goes from `base_dir`. Raises UserError as `load_model`."""
    plain = recipe.trainer.model_copy(update={"lora": LoraRecipe(), "gradient_checkpointing": False})
    folder = base_dir / teacher.model
    path = str(folder.resolve()) if folder.is_dir() else teacher.model
    return load_model(path, recipe.model_copy(update={"trainer": plain}), device)


class Teachers:
    """Those of a recipe, in its order. They have no state: what they say of a batch depends on nothing but that."""

    def __init__(
        self,
        recipes: Sequence[TeacherRecipe],
        models: Sequence[torch.nn.Module],
        called: Callable[[torch.nn.Module], Policy],
        student: torch.nn.Module,
        ask_all: bool,
    ) -> None:
        """`called`: the model as it is called, divided over the ranks. `ask_all`: even those that teach nothing of a
        batch, as every rank must call each. Raises UserError if one cannot read rows as they are packed."""
        self.recipes, self.ask_all = list(recipes), ask_all
        self.width = len(student.get_output_embeddings().weight)
        self.policies = []
        self.widths = []
        for recipe, model in zip(recipes, models, strict=True):
            if takes_trees(student) and not takes_trees(model):
                raise UserError(
                    f"algorithm.teacher {recipe.model} is of a kind ({type(model).__name__}) whose attention cannot "
                    "follow the prefix trees of which the student's rows are made; take another teacher"
                )
            self.widths.append(len(model.get_input_embeddings().weight))
            self.policies.append(called(model.requires_grad_(False)).eval())

    @torch.no_grad()
    def logprobs(self, batch: PackedBatch, temperature: float) -> torch.Tensor:
        """log pi_teacher of the trained tokens at that temperature, float32 [N]; NaN where nobody teaches, or the
        teacher has not all of the trajectory's tokens."""
        taught_by = [teacher_of(self.recipes, sample.source) for sample in batch.samples]
        places = torch.tensor([-1 if place is None else place for place in taught_by], device=batch.segments.device)
        of_token, result = places[batch.segments], torch.full_like(batch.behaviour_logprobs, torch.nan)
        for place, policy in enumerate(self.policies):
            if not self.ask_all and place not in taught_by:
                continue
            width = min(self.widths[place], self.width)
            known = [bool((s.trajectory.tokens < self.widths[place]).all()) for s in batch.samples]
            is_known = torch.tensor(known, device=batch.segments.device)[batch.segments]
            readable = replace(
                batch, tokens=batch.tokens.clamp(max=width - 1), targets=batch.targets.clamp(max=width - 1)
            )
            said, _ = policy(readable, temperature, width)
            result = torch.where(is_known & (of_token == place), said, result)
        return result
