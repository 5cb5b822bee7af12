"""What a recipe may say of its data."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from asyncrl.recipe.part import LIST, ONE, Part, PositiveInt, one_or_list
from asyncrl.recipe.rewards import Reward
from asyncrl.task import MADE

TEXT_FILES = (".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz")
TABLE_FILES = (".parquet", ".arrow")
"""Local data files, by the end of their name."""


class DataRecipe(Part):
    path: str | Annotated[list[str], Field(min_length=1)]
    """`reasoning_gym:NAME`, `verifiers:NAME`, a hub data set name, or one or more local files: .jsonl, .json or .csv
    (also .gz), whose values reach the reward as the file has them, or .parquet or .arrow."""
    options: dict[str, Any] = {}
    """Passed to `reasoning_gym.create_dataset` (size and seed among them) or to `datasets.load_dataset`. For a .json
    file: `field`, the key that holds the rows; for a .csv file: `sep`, `quotechar`, `escapechar`, `encoding`; for a
    taskset of verifiers: its settings, `size`, and `python`, the one that has it."""
    split: str = "train"
    """Split of a hub data set; local files, reasoning_gym and verifiers have only `train`."""
    prompt_column: str | None = None
    """Column of text or of chat messages; default: the first of prompt, question, problem, messages."""
    completion_column: str | None = None
    """Column of the answers, where the rows have them (`rollout.engine: data`, `algorithm.sft`); default: the first of
    completion, answer, response, or else the assistant's messages of a chat. Preference pairs are in the columns chosen
    and rejected."""
    max_tokens: PositiveInt | None = None
    """Rows that are longer, prompt and answer together, are left out (counted under `row_too_long`), where they have
    answers; default, with `rollout.engine: data`: trainer.tokens_per_microbatch."""
    chat: bool = False
    """Wrap a text prompt as one user message and apply the model's chat template."""
    system: str | None = None
    """System message put before every chat prompt; needs `chat: true` or message prompts."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables of the model's chat template, such as `enable_thinking: false`; a row's column of this name wins."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Rows without a usable prompt (null, empty, images, ending with an answer): refuse the data before anything
    starts, or filter them when they are drawn (counted by reason)."""
    shuffle: bool = True
    """Permute the rows anew in every epoch (seeded); false keeps the order of the file."""

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path

    @property
    def is_here(self) -> bool:
        """Whether nothing must be fetched: local text or table files, or what a package makes."""
        local = (*TEXT_FILES, *TABLE_FILES)
        return all(path.startswith(MADE) or path.endswith(local) for path in self.paths)

    @property
    def title(self) -> str:
        """The data set in words; what verl's rewards get as data_source if the row has none."""
        return ", ".join(self.paths)


class DataPart(DataRecipe):
    """One of several data sources that tasks are drawn from."""

    weight: Annotated[float, Field(gt=0, le=10**6)] = 1.0
    """Its share of the tasks is its weight divided by the sum of all weights, however many rows it has."""
    name: Annotated[str, Field(pattern=r"^[\w./:-]{1,100}$")] | None = None
    """Logged as `reward/mean/NAME`, and in the column `data_source` unless the rows have one; default: the path."""
    reward: Reward | None = None
    """Judges its tasks in the place of the recipe's `reward`."""

    @property
    def label(self) -> str:
        return self.name or re.sub(r"[^\w./:-]+", "_", self.title)


def _distinct(found: list[DataPart]) -> list[DataPart]:
    labels = [part.label for part in found]
    for label in labels:
        if labels.count(label) > 1:
            raise PydanticCustomError("same_name", "two parts are called {name}; give each a name", {"name": label})
    return found


Data = Annotated[
    Annotated[DataRecipe, Tag(ONE)]
    | Annotated[list[DataPart], Field(min_length=1), AfterValidator(_distinct), Tag(LIST)],
    Discriminator(one_or_list),
]
"""One data source, or several with weights."""
