"""What a recipe may say of its data."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from asyncrl.recipe.part import LIST, ONE, Part, PositiveInt, one_or_list
from asyncrl.recipe.rewards import Reward
from asyncrl.task import MADE

TEXT_FILES = (".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz")
TABLE_FILES = (".parquet", ".arrow")
"""Local data files, by the end of their name."""


class RateRange(Part):
    """Between which success rates a row is worth training."""

    min: Annotated[float, Field(ge=0, le=1)] = 0.0
    """A row at this rate, or below it, is too hard."""
    max: Annotated[float, Field(ge=0, le=1)] = 1.0
    """A row at this rate, or above it, is too easy."""

    @model_validator(mode="after")
    def _has_a_middle(self) -> RateRange:
        if not self.min < self.max:
            raise PydanticCustomError("no_middle", "`min` is not below `max`, so that no row would be left")
        return self


class OnlineSuccessRate(RateRange):
    """A row that was too hard or too easy when it was last sampled is left out of the next epochs (its draws are
    counted as `data/skipped`), and tried again after them."""

    skip_epochs: Annotated[int, Field(ge=1, le=10)] = 1
    """So many epochs."""


class SuccessRate(RateRange):
    """Rows that are too hard (counted under `too_hard`) or too easy (`too_easy`) are left out; without bounds those
    that are never and those that are always solved."""

    column: str | None = None
    """Column with the rate of each row, from 0 to 1; default: success_rate."""
    path: str | None = None
    """In the place of a column: the completions of an evaluation of these rows, `evaluations/NAME-VERSION.jsonl` of
    `asyncrl eval`. The rate of a row is the share of its completions that are right."""

    @model_validator(mode="after")
    def _one_place(self) -> SuccessRate:
        if self.column is not None and self.path is not None:
            raise PydanticCustomError("two_rates", "`column` and `path` both say the rate of a row; leave one out")
        return self


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
    starts, or leave them out (counted by reason)."""
    deduplicate: bool = False
    """Leave out rows whose prompt, as the model sees it, is that of an earlier row (counted under `duplicate`), of an
    earlier source too that has this key; with `rollout.engine: data` the answers must be the same as well."""
    success_rate: SuccessRate | None = None
    """Train only on rows that a model solves at times: by a column of the data, or an evaluation of it."""
    online_success_rate: OnlineSuccessRate | None = None
    """Draw rows less that the policy itself always or never solves; `{}`: exactly those."""
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
