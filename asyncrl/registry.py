"""What is built in, by the name that a recipe gives it: a name stands in one of these tables, and nowhere else.

A name leads to `module:object`. Nothing is imported before it is asked for, so that a recipe is checked without torch;
what the checks must know of an object is beside its name. What has no name here is a user's own, by
`package.module:name` or `./file.py:name` (`plugins.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from asyncrl.plugins import load_object


@dataclass(frozen=True)
class Entry:
    where: str

    def load(self) -> Any:
        return load_object(self.where, Path(), "asyncrl")


def find(table: Mapping[str, Entry], spec: str, base_dir: Path, key: str) -> Any:
    """What a recipe names under `key`: one of the table, or a user's own. Raises UserError as `load_object`."""
    return table[spec].load() if spec in table else load_object(spec, base_dir, key)


@dataclass(frozen=True)
class Loss(Entry):
    """A function of `algorithms/base.py`'s signature: `algorithm.loss`."""

    linear: bool = False
    """In the advantage, so that a trajectory of advantage 0 has no gradient."""
    reference: bool = False
    """It compares whole trajectories with a reference policy."""
    covariances: bool = False
    """It asks which tokens of the mini-batch take the entropy away: a pass before the first gradient."""
    pairs: bool = False
    """Only the best and the worst of a group are trained."""


LOSSES = {
    "ppo": Loss("asyncrl.algorithms.losses:ppo", linear=True),
    "decoupled_ppo": Loss("asyncrl.algorithms.losses:decoupled_ppo", linear=True),
    "reinforce": Loss("asyncrl.algorithms.losses:reinforce", linear=True),
    "tis": Loss("asyncrl.algorithms.losses:tis", linear=True),
    "cispo": Loss("asyncrl.algorithms.losses:cispo", linear=True),
    "topr": Loss("asyncrl.algorithms.losses:topr", linear=True),
    "kimi": Loss("asyncrl.algorithms.losses:kimi"),
    "gspo": Loss("asyncrl.algorithms.losses:gspo", linear=True),
    "gmpo": Loss("asyncrl.algorithms.losses:gmpo", linear=True),
    "dppo_tv": Loss("asyncrl.algorithms.divergence:dppo_tv", linear=True),
    "dppo_kl": Loss("asyncrl.algorithms.divergence:dppo_kl", linear=True),
    "flash_reinforce": Loss("asyncrl.algorithms.divergence:flash_reinforce", linear=True),
    "clip_cov": Loss("asyncrl.algorithms.losses:clip_cov", covariances=True),
    "kl_cov": Loss("asyncrl.algorithms.losses:kl_cov", covariances=True),
    "m2po": Loss("asyncrl.algorithms.losses:m2po", linear=True),
    "sft": Loss("asyncrl.algorithms.losses:sft"),
    "trajectory_balance": Loss("asyncrl.algorithms.sequence:trajectory_balance", reference=True),
    "dpo": Loss("asyncrl.algorithms.sequence:dpo", reference=True, pairs=True),
    "ipo": Loss("asyncrl.algorithms.sequence:ipo", reference=True, pairs=True),
}


def loss_traits(spec: str) -> Loss:
    """Of a user's own nothing is known before it is loaded."""
    return LOSSES.get(spec, Loss(spec))


@dataclass(frozen=True)
class Advantage(Entry):
    """A function of the rewards of a group, [n] -> [n]: `algorithm.advantage`."""

    compares: bool = True
    """The members of a group with one another, so that one alone has advantage 0."""
    picks: bool = False
    """Members to be trained."""
    baseline: Literal["none", "batch", "task"] = "none"
    """What it takes off a reward that it does not compare: a mean of the batch, or what the task's have been before."""


ADVANTAGES = {
    "grpo": Advantage("asyncrl.algorithms.advantages:grpo"),
    "dr_grpo": Advantage("asyncrl.algorithms.advantages:dr_grpo"),
    "rloo": Advantage("asyncrl.algorithms.advantages:rloo"),
    "best_of_n": Advantage("asyncrl.algorithms.advantages:best_of_n", picks=True),
    "none": Advantage("asyncrl.algorithms.advantages:none", compares=False),
    "batch_mean": Advantage("asyncrl.algorithms.advantages:less_baseline", compares=False, baseline="batch"),
    "running": Advantage("asyncrl.algorithms.advantages:less_baseline", compares=False, baseline="task"),
    "gae": Advantage("asyncrl.algorithms.advantages:of_critic", compares=False),
}


def advantage_traits(spec: str) -> Advantage:
    """A user's own may be for one member alone, and trains all of them."""
    return ADVANTAGES.get(spec, Advantage(spec, compares=False))


CORRECTIONS = {
    "tis": Entry("asyncrl.algorithms.corrections:tis"),
    "mis": Entry("asyncrl.algorithms.corrections:mis"),
}
"""Functions of importance weights (`algorithms/corrections.py`): `algorithm.correction`, where `none` is none."""


@dataclass(frozen=True)
class Engine(Entry):
    """A class of the protocol in `rollout/engine.py`, with the class attributes that it has there: `rollout.engine`."""

    provides_logprobs: bool = True
    holds_weights: bool = True


ENGINES = {
    "vllm": Engine("asyncrl.rollout.vllm_engine:VllmEngine"),
    "simulated": Engine("asyncrl.rollout.simulated:SimulatedEngine", provides_logprobs=False, holds_weights=False),
    "data": Engine("asyncrl.rollout.demonstrations:NoEngine", provides_logprobs=False, holds_weights=False),
}

TRAINERS = {"fsdp": Entry("asyncrl.trainer.fsdp:Fsdp")}
"""Classes of the protocol in `trainer/backend.py`: `trainer.backend`."""


@dataclass(frozen=True)
class Transport:
    """A weight transport (`weights/transport.py`): `weights.channel`."""

    module: str
    """With both ends, `Sender` and `Receiver`."""
    copies: Literal["host", "shared_memory", "gpu"] = "host"
    """Where the trainer's copies of its weights lie. Adapters are merged into the base on the host."""
    rolling: bool = False
    """Whether one replica may read while the others wait for nobody."""
    vllm_engine: str = "asyncrl"
    """vLLM's name of the engine's end (`weights/plugin.py`)."""


TRANSPORTS = {
    "shared_memory": Transport("asyncrl.weights.transports.shared_memory", copies="shared_memory", rolling=True),
    "gloo": Transport("asyncrl.weights.transports.gloo"),
    "nccl": Transport("asyncrl.weights.transports.nccl", copies="gpu", vllm_engine="asyncrl_nccl"),
    "cuda_ipc": Transport("asyncrl.weights.transports.cuda_ipc", copies="gpu"),
    "disk": Transport("asyncrl.weights.transports.disk", rolling=True),
    "none": Transport("asyncrl.weights.transports.version_only"),
}

TRACKERS = ("mlflow", "trackio")
"""For `track.also`: each is the name of a package, and of the extra that installs it."""
