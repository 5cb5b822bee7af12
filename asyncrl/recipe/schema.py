"""What a recipe may say: one pydantic model per part, a docstring under every field, units in the names.

Imports neither torch nor ray nor vllm, so `asyncrl --help` and `--dry-run` are instant.
Checks that need only the recipe are here; those that look at files are in `check.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from asyncrl.recipe.algorithm import AlgorithmRecipe, proximal_of
from asyncrl.recipe.data import Data, DataPart, DataRecipe
from asyncrl.recipe.env import Env
from asyncrl.recipe.evaluation import OF_TEMPLATE, EarlyStopRecipe, EvalRecipe, Evaluations, alike
from asyncrl.recipe.experimental import ExperimentalRecipe
from asyncrl.recipe.part import NonNegativeInt, Part, PositiveInt, Seconds, listed
from asyncrl.recipe.rewards import Reward, RewardsRecipe, reward_parts
from asyncrl.recipe.rollout import RolloutRecipe
from asyncrl.recipe.trainer import TrainerRecipe
from asyncrl.registry import TRANSPORTS, loss_traits
from asyncrl.rewards import parts
from asyncrl.task import DATA

UNKNOWN_STEPS = 10**9
"""Until the data is read, where a recipe has max_epochs."""


class WeightsRecipe(Part):
    channel: Literal["auto", *TRANSPORTS] = "auto"
    """`auto`: nccl if generators and trainer have GPUs of their own, cuda_ipc if they share one, else shared_memory on
    one node and gloo on several. `disk` writes to the run directory; `none` (only) for an engine without weights."""
    rolling: bool = False
    """Update one replica after the other, so that the others go on; needs shared_memory or disk."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type of the weights that the generators hold and that are sent."""
    verify: bool = False
    """After each push compare the engines' log-probs of a fixed text with the trainer's, and stop if they differ. The
    first push to each engine is always compared."""


class JournalRecipe(Part):
    keep: Literal["auto", "since_checkpoint", "all"] = "auto"
    """`all`: every group, so that `asyncrl replay --verify` can train the whole run again; `since_checkpoint`: what a
    resume needs; `auto`: everything up to 1 GiB, then what a resume needs."""
    sync_window_s: float = Field(default=0.0, ge=0, le=10**6)
    """A finished group waits at most this long for others to share its fsync, for disks whose fsync is slow; 0 shares
    it only with those that come while the fsync before runs."""
    sync_window_bytes: PositiveInt = 4 * 2**20
    """So many bytes end the wait early."""


class CheckpointRecipe(Part):
    every_steps: int = Field(default=10, ge=0)
    """Steps between checkpoints; 0 saves only at the end."""
    keep_last: PositiveInt = 2
    """Older checkpoints are deleted once a newer one is complete, but for those of the next two keys."""
    keep_every: PositiveInt | None = None
    """Checkpoints whose step is a multiple of this are kept for good."""
    keep_best: str | None = None
    """Metric, such as reward/mean; the checkpoint with its highest value is kept."""
    snapshot_every_steps: NonNegativeInt = 0
    """Steps between snapshots in the memory of other processes, from which a lost trainer is rebuilt; 0 takes none."""
    snapshot_shards: PositiveInt = 2
    """A snapshot lies in so many processes, and its XOR parity in one more: any one of them may be lost."""


class BudgetsRecipe(Part):
    max_consecutive_failed_groups: PositiveInt = 16
    """The run stops when so many groups failed one after the other (at least groups_per_step)."""
    max_consecutive_filtered_groups: PositiveInt = 1000
    """The run stops when so many groups were filtered one after the other: nothing would be left to train."""
    max_consecutive_reward_failures: PositiveInt = 1000
    """The run stops when so many trajectories one after the other had no reward."""
    max_consecutive_restarts: PositiveInt = 5
    """The run stops when one generator was lost so often without a finished group between, an actor of
    `rewards.placement` without a scored one, or the trainer without a step."""
    max_consecutive_skipped_steps: PositiveInt = 5
    """The run stops when so many consecutive steps had a gradient that is not finite."""


class TrackRecipe(Part):
    wandb: Annotated[
        Literal["off", "offline", "online"], BeforeValidator(lambda mode: "off" if mode is False else mode)
    ] = "offline"
    """offline writes under the run directory and needs no key; online needs one."""
    project: str = "asyncrl"
    """Project of wandb and trackio, experiment of MLflow."""
    notes: str = ""
    """What the run is for; shown in the report and by wandb."""
    tags: Annotated[list[str], BeforeValidator(listed)] = []
    """Words to find it by, in wandb."""
    tensorboard: bool = True
    """Write TensorBoard events under the run directory."""
    also: Annotated[list[str], BeforeValidator(listed)] = []
    """One or more of `mlflow`, `trackio`, or a class of your own by path (`./mine.py:Tracker`; docs/tracking.md)."""


class DeadlinesRecipe(Part):
    warn_s: Seconds = 60.0
    """A wait older than this is logged: who waits for whom, for what."""
    start_s: Seconds = 900.0
    """Starting Ray, one actor, or loading its model."""
    rollout_s: Seconds = 1800.0
    """One group: its wait in the engine, generation and rewards. One that takes longer has failed; if its generator has
    finished no other group meanwhile, it is replaced, and the group starts again."""
    step_s: Seconds = 3600.0
    """One training step."""
    publish_s: Seconds = 600.0
    """One weight push to all generators."""
    checkpoint_s: Seconds = 1800.0
    """Writing one checkpoint."""
    stop_s: Seconds = 600.0
    """From a SIGTERM or Ctrl-C to the last checkpoint."""


class Recipe(Part):
    model: str
    """Local directory, hub name, or `random:tiny-llama` (made on the spot, for tests)."""
    data: Data
    """Where the tasks come from; a list of sources with weights draws from all of them."""
    reward: Reward | None = None
    """`package.module:name` or `./file.py:name`; the signature decides how it is called. A list of functions with
    weights: their weighted sum. With `env` it may be left out: then the environment gives every reward; so it may if
    every source of `data` has its own, and with `algorithm.teacher`: then every reward is 0."""
    env: Env = None
    """Rolls each task out over several turns, with tools if it likes; a text is its `path`. Default: one completion."""
    group_size: PositiveInt = 8
    """Trajectories per task (GRPO's n)."""
    groups_per_step: PositiveInt = 16
    """Groups trained in one step (P)."""
    max_steps: PositiveInt
    """Training steps of the run; may be left out with max_epochs."""
    max_epochs: Annotated[float, Field(gt=0, le=10**6)] | None = None
    """Passes over the rows of the data, as a number of steps, rounded up: max_steps follows from it when the data is
    read. What is filtered is made up for by the next rows."""
    early_stop: EarlyStopRecipe | None = None
    """End the run by a score on held-out tasks, with a checkpoint."""
    max_hours: Annotated[float, Field(gt=0, le=10**5)] | None = None
    """So many hours after its start the run finishes its step, saves and ends, as at Ctrl-C; a resume has as many
    again."""
    policy: Literal["bounded", "sync"] = "bounded"
    """`bounded`: no trained token is older than max_staleness updates. `sync`: max_staleness 0."""
    max_staleness: Annotated[int | float, Field(ge=0, le=10**6)] = 1
    """S: no trained token is older than this many updates; 0 = synchronous. 1.5: up to half of each batch two
    (with on_stale wait)."""
    on_stale: Literal["wait", "drop", "mask"] = "wait"
    """Stragglers: wait for them, cancel and restart them, or train only their tokens of age <= S."""
    run_dir: Annotated[str, Field(min_length=1)] | None = None
    """Default runs/<recipe>-<time>; an existing one is an error. A URL such as s3://BUCKET/NAME: the run lies on this
    machine's disk, and every 30 s what is new goes there."""
    readable_by: Literal["owner", "group"] = "owner"
    """Who may read the run directory: you alone (mode 0700, files 0600), or its folder's group too (0750, 0640)."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seeds the data order, the sampling of every rollout, and a random model."""
    eval: Evaluations = []
    """Held-out tasks to evaluate on while training; one or a list."""
    algorithm: AlgorithmRecipe = AlgorithmRecipe()
    """Objective and correction."""
    rollout: RolloutRecipe = RolloutRecipe()
    """Generators."""
    rewards: RewardsRecipe = RewardsRecipe()
    """Processes that run the reward function."""
    trainer: TrainerRecipe = TrainerRecipe()
    """Optimisation."""
    weights: WeightsRecipe = WeightsRecipe()
    """How weights reach the generators."""
    journal: JournalRecipe = JournalRecipe()
    """Log of finished groups and decisions, from which a run resumes where it broke off."""
    checkpoint: CheckpointRecipe = CheckpointRecipe()
    """What is saved, how often."""
    track: TrackRecipe = TrackRecipe()
    """Where metrics go besides metrics.jsonl."""
    budgets: BudgetsRecipe = BudgetsRecipe()
    """How much may go wrong before the run stops."""
    deadlines: DeadlinesRecipe = DeadlinesRecipe()
    """Every wait has one."""
    ray_address: str | None = None
    """Address of a running Ray cluster; default: the one in RAY_ADDRESS, else one started on this machine."""
    experimental: ExperimentalRecipe = ExperimentalRecipe()
    """For the study of schedules."""

    @model_validator(mode="before")
    @classmethod
    def _epochs_are_steps(cls, values: Any) -> Any:
        """How many is known when the data is read."""
        if not isinstance(values, Mapping) or values.get("max_epochs") is None or values.get("max_steps") is not None:
            return values
        if isinstance(values.get("data"), list):
            raise PydanticCustomError(
                "epochs", "max_epochs is of one data source, and `data` is a list of several; set max_steps instead"
            )
        return {**values, "max_steps": UNKNOWN_STEPS}

    @model_validator(mode="before")
    @classmethod
    def _say_what_auto_means(cls, values: Any) -> Any:
        """The resolved recipe names the proximal policy."""
        algorithm = values.get("algorithm", {}) if isinstance(values, Mapping) else None
        if not isinstance(algorithm, Mapping) or algorithm.get("proximal", "auto") != "auto":
            return values
        rollout = values.get("rollout")
        engine = rollout.get("engine") if isinstance(rollout, Mapping) else None
        return {**values, "algorithm": {**algorithm, "proximal": proximal_of(algorithm, engine)}}

    @model_validator(mode="before")
    @classmethod
    def _held_out_as_trained(cls, values: Any) -> Any:
        """What an evaluation's data does not say of its prompts, the training data says."""
        if not isinstance(values, Mapping) or not values.get("eval"):
            return values
        return {**values, "eval": alike(values["eval"], values.get("data"))}

    @model_validator(mode="before")
    @classmethod
    def _demonstrated_as_trained(cls, values: Any) -> Any:
        """What the data of `algorithm.sft` does not say of its chats, the training data says."""
        algorithm = values.get("algorithm") if isinstance(values, Mapping) else None
        if not isinstance(algorithm, Mapping) or not isinstance(sft := algorithm.get("sft"), Mapping):
            return values
        sft = alike(sft, values.get("data"), OF_TEMPLATE, "algorithm.sft.data")
        return {**values, "algorithm": {**algorithm, "sft": sft}}

    @model_validator(mode="before")
    @classmethod
    def _rows_have_the_answers(cls, values: Any) -> Any:
        """What follows from `rollout.engine: data`, where the recipe does not say it."""
        rollout = values.get("rollout") if isinstance(values, Mapping) else None
        if not isinstance(rollout, Mapping) or rollout.get("engine") != DATA:
            return values
        algorithm = values.get("algorithm", {})
        if not isinstance(algorithm, Mapping):
            return values
        algorithm = {"loss": "sft", "advantage": "none", **algorithm}
        traits = loss_traits(str(algorithm["loss"]))
        if traits.reference:
            algorithm = {"aggregation": "sequence", **algorithm}
        return {"group_size": 2 if traits.pairs else 1, **values, "algorithm": algorithm}

    @model_validator(mode="before")
    @classmethod
    def _teachers_compare_nothing(cls, values: Any) -> Any:
        """What follows from a teacher without any reward, where the recipe does not say it."""
        algorithm = values.get("algorithm") if isinstance(values, Mapping) else None
        if not isinstance(algorithm, Mapping) or not algorithm.get("teacher") or _has_reward(values):
            return values
        return {**values, "algorithm": {"advantage": "none", **algorithm}}

    @model_validator(mode="after")
    def _someone_scores(self) -> Recipe:
        unscored = any(not isinstance(source, DataPart) or source.reward is None for source in self.sources)
        if self.reward is None and self.env is None and unscored and not (self.from_data or self.taught_alone):
            raise PydanticCustomError(
                "no_reward",
                "neither `reward` nor `env` is set; name a reward function, or `asyncrl sft` the recipe if its data "
                "has the answers",
            )
        if self.rewards.kwargs and not isinstance(self.reward, str):
            raise PydanticCustomError(
                "kwargs_of_none", "rewards.kwargs are of a reward that is one function; give each part its own kwargs"
            )
        if self.rewards.placement and not (self.reward_parts or any(self.parts_of(one) for one in self.eval)):
            raise PydanticCustomError(
                "nothing_placed", "rewards.placement is of reward functions, and the recipe names none; leave it out"
            )
        return self

    @property
    def sources(self) -> list[DataRecipe]:
        """Of the data; one if it is no list."""
        return [*self.data] if isinstance(self.data, list) else [self.data]

    @property
    def reward_parts(self) -> list[parts.Part]:
        """All functions that judge: the recipe's, and those of data sources."""
        mixed = self.data if isinstance(self.data, list) else []
        dataset = ", ".join(source.title for source in self.sources)
        found = [*reward_parts(self.reward, self.rewards.kwargs, dataset)]
        for source in mixed:
            found += reward_parts(source.reward, {}, source.label, source.label)
        return found

    @property
    def from_data(self) -> bool:
        """Whether nothing is sampled, as the rows have the answers: demonstrations, or preference pairs."""
        return self.rollout.engine == DATA

    @property
    def taught_alone(self) -> bool:
        """Whether nothing is rewarded, as a teacher is all there is to learn from."""
        return bool(self.algorithm.teacher) and self.env is None and not self.reward_parts

    @property
    def max_tokens(self) -> int:
        """Longest trajectory, prompt and completions together."""
        if self.from_data:
            return self._longest_row or self.trainer.tokens_per_microbatch
        prompt, completion = self.rollout.max_prompt_tokens, self.rollout.max_new_tokens
        if self.env is None:
            return prompt + completion
        turns = min(prompt + self.env.max_turns * completion, self.trainer.tokens_per_microbatch)
        return self.env.max_context_tokens or max(turns, prompt + completion)

    @property
    def max_demonstration(self) -> int:
        """Longest row of `algorithm.sft`, prompt and answer together; longer ones are left out."""
        sft = self.algorithm.sft
        return (sft and sft.data.max_tokens) or self.max_tokens

    @property
    def _longest_row(self) -> int | None:
        """That the data may have, prompt and answer together, if it says so."""
        return max((source.max_tokens or 0 for source in self.sources), default=0) or None

    @property
    def max_context(self) -> int:
        """Longest sequence that an engine samples, in evaluations too."""
        prompt = self.rollout.max_prompt_tokens
        return max([self.max_tokens, *(prompt + (part.max_new_tokens or 0) for part in self.eval)])

    @property
    def max_context_key(self) -> str:
        """What sets it, for messages."""
        own = self.max_context > self.max_tokens
        return "rollout.max_prompt_tokens + eval.max_new_tokens" if own else self.max_tokens_key

    def for_evaluation(self, model: str) -> Recipe:
        """Of another model, which is not trained, nor taught."""
        untaught: dict[str, Any] = {"teacher": [], "teacher_coef": 1.0, "teacher_in": "advantage", "sft": None}
        changes = {
            "checkpoint": self.checkpoint.model_copy(update={"keep_best": None}),
            "algorithm": self.algorithm.model_copy(update=untaught),
        }
        return self.model_copy(update={"model": model, "run_dir": None, "early_stop": None, **changes})

    def evaluated(self, part: EvalRecipe) -> RolloutRecipe:
        """The rollouts of an evaluation."""
        said = {key: getattr(part, key) for key in ("temperature", "max_new_tokens")}
        return self.rollout.model_copy(update={key: value for key, value in said.items() if value is not None})

    @property
    def max_tokens_key(self) -> str:
        """What sets it, for messages."""
        if self.from_data:
            return "data.max_tokens" if self._longest_row else "trainer.tokens_per_microbatch"
        return "env.max_context_tokens" if self.env else "rollout.max_prompt_tokens + rollout.max_new_tokens"

    @property
    def max_sampled_tokens(self) -> int:
        """Longest that one rollout samples."""
        return self.rollout.max_new_tokens if self.env is None and not self.from_data else self.max_tokens

    def parts_of(self, held_out: EvalRecipe) -> list[parts.Part]:
        """Functions that judge the tasks of an evaluation in the place of the recipe's; none: those do."""
        kwargs = self.rewards.kwargs if isinstance(self.reward, str) else {}
        return [*reward_parts(held_out.reward, kwargs, held_out.data.title)]

    @property
    def code(self) -> dict[str, str]:
        """What is imported, by key: `package.module:name` or `./file.py:name`; names of our own too."""
        named = {f"track.also.{place}": tracker for place, tracker in enumerate(self.track.also)}
        for place, held_out in enumerate(self.eval):
            named |= {".".join(filter(None, (f"eval.{place}.reward", p.name))): p.fn for p in self.parts_of(held_out)}
        named |= {".".join(filter(None, ("reward", p.source, p.name))): p.fn for p in self.reward_parts}
        named |= {"env": self.env and self.env.path}
        named |= {f"algorithm.{key}": getattr(self.algorithm, key) for key in ("loss", "advantage", "correction")}
        named |= {"rollout.engine": self.rollout.engine, "trainer.backend": self.trainer.backend}
        return {key: spec for key, spec in named.items() if spec}

    @property
    def on_one_gpu(self) -> bool:
        """Whether the trainer's one rank and the generators have shares of one GPU, which they then take together."""
        rank, replica = self.trainer.gpus_per_rank, self.rollout.gpus_per_replica
        together = rank + self.rollout.replicas * replica
        return self.trainer.ranks == 1 and min(rank, replica) > 0 and together <= 1 + 1e-6


def _has_reward(values: Mapping[str, Any]) -> bool:
    """Whether anything scores, in a recipe as it is written."""
    data = values.get("data")
    own = [source.get("reward") for source in data if isinstance(source, Mapping)] if isinstance(data, list) else []
    return any(one is not None for one in (values.get("reward"), values.get("env"), *own))
