"""Frozen models whose log-probs of the sampled tokens the trained one is drawn to (on-policy distillation).

Those that lie beside it are asked at the temperature that the tokens were sampled at, about the very tokens that the
student read, or its completion behind a prompt with a hint, and over the student's vocabulary: what a teacher's head
has beyond it, such as padding, is left out of its softmax. What a server has said came with the trajectory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from asyncrl.errors import UserError
from asyncrl.recipe.schema import Recipe
from asyncrl.recipe.teacher import TeacherRecipe, teacher_of
from asyncrl.recipe.trainer import LoraRecipe
from asyncrl.trainer.model import Policy, load_model, takes_trees
from asyncrl.trainer.packing import PackedBatch, TrainSample, pack, trained_places


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
        load: Callable[[TeacherRecipe], torch.nn.Module],
        called: Callable[[torch.nn.Module], Policy],
        student: torch.nn.Module,
        ask_all: bool,
    ) -> None:
        """`called`: the model as it is called, divided over the ranks. `ask_all`: even those that teach nothing of a
        batch, as every rank must call each. Raises UserError if one cannot read rows as they are packed."""
        self.recipes, self.ask_all = list(recipes), ask_all
        self.width = len(student.get_output_embeddings().weight)
        self.policies: list[Policy | None] = []
        """None: a server's."""
        self.widths = []
        for recipe in recipes:
            if recipe.url:
                self.policies.append(None)
                self.widths.append(0)
                continue
            model = load(recipe)
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
            if policy is None:
                result = torch.where(of_token == place, _brought(batch), result)
                continue
            read = _hinted(batch) if self.recipes[place].hint is not None else batch
            width = min(self.widths[place], self.width)
            known = [self._knows(place, before, now) for before, now in zip(batch.samples, read.samples, strict=True)]
            is_known = torch.tensor(known, device=batch.segments.device)[batch.segments]
            readable = replace(read, tokens=read.tokens.clamp(max=width - 1), targets=read.targets.clamp(max=width - 1))
            said, _ = policy(readable, temperature, width)
            result = torch.where(is_known & (of_token == place), said, result)
        return result

    def _knows(self, place: int, sample: TrainSample, read: TrainSample) -> bool:
        """Whether the teacher has all the tokens, and the hint if it reads one: without it, it would be another."""
        has_hint = self.recipes[place].hint is None or sample.trajectory.teacher_prompt is not None
        return has_hint and bool((read.trajectory.tokens < self.widths[place]).all())


def _brought(batch: PackedBatch) -> torch.Tensor:
    """What came with the trajectories, float32 [N]; NaN where nothing did."""
    none = [np.full(len(s.trajectory.tokens), np.nan, np.float32) for s in batch.samples]
    said = [
        n if (own := s.trajectory.teacher_logprobs) is None else own for s, n in zip(batch.samples, none, strict=True)
    ]
    values = [one[trained_places(sample)] for one, sample in zip(said, batch.samples, strict=True)]
    return torch.tensor(np.concatenate(values), dtype=torch.float32, device=batch.segments.device)


def _hinted(batch: PackedBatch) -> PackedBatch:
    """The trajectories behind the prompts that their teacher reads. Their trained tokens are the same, in the same
    order."""
    return pack([_behind_hint(sample) for sample in batch.samples], batch.tokens.device)


def _behind_hint(sample: TrainSample) -> TrainSample:
    trajectory = sample.trajectory
    prompt, own = trajectory.teacher_prompt, trajectory.prompt_length
    if prompt is None:
        return sample

    def behind(before: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.concatenate([before.astype(values.dtype), values[own:]])

    num = len(prompt)
    read = replace(
        trajectory,
        tokens=behind(prompt, trajectory.tokens),
        versions=behind(np.full(num, -1), trajectory.versions),
        logprobs=behind(np.zeros(num), trajectory.logprobs),
        loss_mask=behind(np.zeros(num, bool), trajectory.loss_mask),
        prompt=num,
        turns=(),
    )
    return replace(sample, trajectory=read, mask=behind(np.zeros(num, bool), sample.mask))
