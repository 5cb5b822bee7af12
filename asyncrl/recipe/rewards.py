"""What a recipe may say of its reward, and of the processes that run it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from asyncrl.metric_names import JUDGED, VERDICTS
from asyncrl.recipe.part import LIST, ONE, Gib, Gpus, Part, Processes, Seconds, one_or_list
from asyncrl.rewards import parts
from asyncrl.rewards.score import RESERVED


class RewardPart(Part):
    """One of several functions whose weighted sum is the reward."""

    fn: str
    """`package.module:name` or `./file.py:name`; the signature decides how it is called."""
    weight: float = 1.0
    """The reward is the sum of weight times value; 0 only logs it."""
    name: Annotated[str, Field(pattern=r"^[\w-]{1,60}$")] | None = None
    """It is logged as `reward/NAME`; default: the function's name."""
    kwargs: dict[str, Any] = {}
    """Further keyword arguments of every call; of a class, of its constructor."""
    judges: bool = False
    """It says what is right: `accuracy` is that of the first such part that has a say in a completion. Default: the
    first part whose weight is not 0."""

    @property
    def label(self) -> str:
        return self.name or self.fn.rpartition(":")[2]


def _as_part(value: Any) -> Any:
    return {"fn": value} if isinstance(value, str) else value


def _distinct(found: list[RewardPart]) -> list[RewardPart]:
    labels = [part.label for part in found]
    for label in labels:
        if labels.count(label) > 1:
            raise PydanticCustomError("same_name", "two parts are called {name}; give each a name", {"name": label})
        if label in (*RESERVED, *VERDICTS, JUDGED):
            raise PydanticCustomError(
                "reserved_name", "a part is called {name}, which the records use; give it another name", {"name": label}
            )
    return found


Reward = Annotated[
    Annotated[str, Tag(ONE)]
    | Annotated[
        list[Annotated[RewardPart, BeforeValidator(_as_part)]],
        Field(min_length=1),
        AfterValidator(_distinct),
        Tag(LIST),
    ],
    Discriminator(one_or_list),
]
"""A function, or several with weights."""


def reward_parts(
    reward: str | list[RewardPart] | None, kwargs: Mapping[str, Any], dataset: str, source: str = ""
) -> Iterator[parts.Part]:
    """What runs. `kwargs`: of a reward that is one function; `dataset`: data_source of verl's functions; `source`: name
    of the only data source whose tasks it judges."""
    if isinstance(reward, str):
        yield parts.Part(reward, kwargs=kwargs, dataset=dataset, source=source)
    for part in reward if isinstance(reward, list) else ():
        yield parts.Part(part.fn, part.label, part.weight, part.kwargs, dataset, source, part.judges)


_OF_RAY = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory_gib"}
"""Resources that have a key of their own."""


def _custom(resources: dict[str, float]) -> dict[str, float]:
    for name, key in _OF_RAY.items():
        if name in resources:
            raise PydanticCustomError(
                "own_key", "{name} has a key of its own; say it as rewards.placement.{key}", {"name": name, "key": key}
            )
    return resources


def told(resources: Mapping[str, float]) -> str:
    """Amounts by Ray's names, in words."""
    sizes = {"memory": (2**30, " GiB")}
    scaled = ((name, amount, *sizes.get(name, (1, ""))) for name, amount in resources.items())
    return ", ".join(f"{amount / unit:g}{mark} {name}" for name, amount, unit, mark in scaled)


class PlacementRecipe(Part):
    """Where on a cluster the reward runs; quantities are Ray's, and each replica reserves as much."""

    replicas: Processes = 1
    """Ray actors, each with `rewards.workers` processes; a group goes to the one that has the fewest."""
    num_cpus: Annotated[float, Field(ge=0, le=10_000)] = 0
    """CPUs of each."""
    num_gpus: Gpus = 0
    """GPUs of each, which its processes share and others do not get; 0.5 = half of one."""
    memory_gib: Gib | None = None
    """Memory of each, in GiB, of what Ray counts on a node."""
    resources: Annotated[
        dict[Annotated[str, Field(min_length=1)], Annotated[float, Field(ge=1e-4, le=10**6)]], AfterValidator(_custom)
    ] = {}
    """Custom resources of each, such as `{judge: 1}` on nodes begun with `ray start --resources='{"judge": 2}'`."""

    @property
    def asked(self) -> dict[str, float]:
        """Of each replica, by Ray's names; memory in bytes."""
        memory = self.memory_gib * 2**30 if self.memory_gib else 0
        asked = {"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": memory, **self.resources}
        return {name: amount for name, amount in asked.items() if amount}

    def __str__(self) -> str:
        """What each replica asks for."""
        return told(self.asked) or "nothing"


class RewardsRecipe(Part):
    placement: PlacementRecipe | None = None
    """Run the reward in Ray actors of its own, wherever on the cluster there is what they ask for
    (docs/rewards.md#on-nodes-of-its-own). Default: beside each generator."""
    workers: Processes = 1
    """Reward processes per generator, or of each actor of `placement`."""
    timeout_s: Seconds = 30.0
    """A reward call that takes longer is killed; its trajectories are masked and counted."""
    kwargs: dict[str, Any] = {}
    """Further keyword arguments of every call (verl's `reward_kwargs`); of a class, of its constructor. In a list
    of rewards each has its own."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text that the reward gets; false for a reward that looks for such marks."""
    memory_gib: Gib | None = None
    """What a reward process and all that it starts may hold together, in GiB; with more they are killed, as after
    timeout_s. Default: half of the machine's memory."""
    file_gib: Gib = 16.0
    """No file that they write may be longer, in GiB."""
