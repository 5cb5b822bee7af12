"""The objective of a recipe, and the published ones by name. Formulas and sources: docs/algorithms.md.

Imports neither torch nor ray nor vllm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from asyncrl.recipe.part import NonNegativeInt, Part, PositiveInt
from asyncrl.recipe.sft import SftRecipe
from asyncrl.recipe.teacher import Teachers
from asyncrl.registry import ENGINES


class AlgorithmRecipe(Part):
    preset: str | None = None
    """A published objective by its name, such as `dapo` (all: docs/algorithms.md). It sets every key of this part;
    keys beside it, and in later layers, change it."""
    advantage: str = "grpo"
    """How the rewards of a group become advantages: `grpo`, `dr_grpo`, `rloo`, `best_of_n`, `none` (the reward itself),
    `batch_mean` and `running` (less the mean of the batch, or what the task has earned before: for groups of one),
    `gae` (with a critic), or your own by `package.module:name` or `./file.py:name`."""
    rho: float = Field(default=0.9, gt=0, lt=1)
    """Weight that each further reward of a task leaves to those before it, in `advantage: running`."""
    credit: Literal["episode", "turn"] = "episode"
    """What is compared in a group: whole episodes, or the turns of the same number by what was earned from there on
    (`policy.reward` in an environment, the steps' rewards of a game)."""
    normalise_advantages: bool = False
    """Bring the advantages of all trained tokens of the batch to mean 0 and deviation 1 (REINFORCE++)."""
    gae_gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per token of `advantage: gae`."""
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    """0: one-step differences of the critic; 1: the reward less the critic's value."""
    loss: str = "ppo"
    """`ppo`, `decoupled_ppo`, `reinforce`, `tis`, `cispo`, `topr`, `kimi`, `gspo`, `gmpo`, `dppo_tv`, `dppo_kl`,
    `flash_reinforce`, `clip_cov`, `kl_cov`, `m2po`, `trajectory_balance`, `dpo`, `ipo`, `sft` (of
    `rollout.engine: data`), or your own by `package.module:name` or `./file.py:name`."""
    loss_args: dict[str, Any] = {}
    """Keyword arguments of your own loss."""
    clip_low: PositiveFloat = 0.2
    """epsilon below 1 in clip(ratio, 1 - clip_low, 1 + clip_high): ppo, decoupled_ppo, gspo, cispo, clip_cov; of
    `gmpo` log(ratio) is at least -clip_low."""
    clip_high: PositiveFloat = 0.2
    """epsilon above 1, and of `gmpo` the bound of log(ratio); DAPO sets it larger than clip_low."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound c of PPO's second clip, for tokens of negative advantage: their loss is at most c |A|."""
    tau: PositiveFloat = 0.1
    """Weight of the squared log-ratio in the `kimi` loss."""
    beta: PositiveFloat = 0.1
    """Temperature of `trajectory_balance`, `dpo` and `ipo`; weight of the KL in `kl_cov`."""
    delta: PositiveFloat = 0.15
    """Largest divergence from the old policy: of a token in `dppo_tv` (total variation) and `dppo_kl` (nats), mean of a
    trajectory's tokens in `flash_reinforce` (nats)."""
    cov_share: float = Field(default=2e-4, gt=0, le=1)
    """Share of the tokens that `clip_cov` detaches and `kl_cov` holds back: those of large covariance of log-prob and
    advantage."""
    cov_low: float = 1.0
    """Smallest covariance of a token that `clip_cov` may detach."""
    cov_high: float = 5.0
    """Largest one."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """Mean over all trained tokens of the batch, over trajectories, or a sum over a fixed length (Dr. GRPO)."""
    proximal: Literal["auto", "recompute", "behaviour", "loglinear"] = "auto"
    """The "old" policy of the ratio: `behaviour`: the weights that sampled the token, so that clipping bounds what
    stale tokens do; `recompute`: those at the start of the step; `loglinear`: an interpolation of the two by their
    versions that costs no forward pass. `auto`: behaviour, or recompute where a correction, or the loss
    decoupled_ppo, does what it does."""
    correction: str = "none"
    """Weight by w = pi_proximal/pi_behaviour: `tis`: min(w, tis_cap); `mis`: 0 outside [mis_low, mis_high]; or your own
    by `package.module:name` or `./file.py:name`."""
    correction_level: Literal["token", "sequence", "geometric"] = "token"
    """w of the token, of the trajectory (a product), or its geometric mean over the tokens."""
    tis_cap: PositiveFloat = 2.0
    """Largest importance weight that `tis`, as a loss or a correction, and the losses `dppo_tv` and `dppo_kl` let
    through."""
    mis_low: NonNegativeFloat = 0.5
    """Smallest weight that `mis` keeps."""
    mis_high: PositiveFloat = 5.0
    """Largest weight that `mis` keeps."""
    reject_kl: PositiveFloat | None = None
    """Leave out trajectories whose mean KL estimate against the behaviour policy is larger, in nats per token."""
    second_moment_limit: PositiveFloat | None = None
    """M2PO's tau: mask the tokens with the largest squared log-ratios until the rest's mean is at most this."""
    staleness_weight: Literal["none", "sqrt", "power"] = "none"
    """Weight of a token of age a: `sqrt`: 1/sqrt(1 + a); `power`: (1 + a)^-staleness_exponent."""
    staleness_exponent: PositiveFloat = 0.5
    """Exponent of staleness_weight `power`."""
    entropy_quantile: float = Field(default=0.0, ge=0, lt=1)
    """Train only the tokens of a group whose entropy is at least this quantile; 0: all."""
    kl_coef: NonNegativeFloat = 0.0
    """Weight of the KL divergence from the reference policy (the initial weights)."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Add the KL estimate to the loss of each token, or take it off the reward of the tokens before it."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman's estimators: k1 = -log r, k2 = (log r)^2/2, k3 = r - 1 - log r with r = pi_ref/pi."""
    teacher: Teachers = []
    """On-policy distillation (docs/distillation.md): a model of another folder, or a list of such by data source, whose
    log-probs of the sampled tokens the policy is drawn to. Then `reward` may be left out."""
    teacher_coef: PositiveFloat = 1.0
    """Weight of the reverse KL divergence from the teacher."""
    teacher_in: Literal["advantage", "loss"] = "advantage"
    """Take log pi - log pi_teacher of each sampled token off its advantage (pi: the sampler), or add the square of that
    over 2 to its loss (pi: the policy as it is), as Schulman's k2."""
    sft: SftRecipe | None = None
    """Demonstrations that are learnt beside the loss: an SFT term (docs/sft.md#beside-rl)."""
    reference_reset_steps: NonNegativeInt = 0
    """Steps after which the reference policy becomes the present one; 0: never."""
    replay_share: float = Field(default=0.0, ge=0, lt=1)
    """Chance that a past trajectory of the task, drawn by exp(reward), takes the place of a new one (TBA's 1 - m).
    The staleness bound does not hold for past ones: their ages are reported under `replay/`."""
    replay_capacity: PositiveInt = 100
    """Past trajectories kept of each row of the data set; exact duplicates are replaced by the newest."""
    filter_equal_rewards: bool = False
    """Groups whose rewards are all equal are filtered and others take their place (DAPO's dynamic sampling)."""
    mask_truncated: bool = False
    """Do not train completions that were cut off at max_new_tokens (DAPO's overlong filtering); their rewards still
    count in what the others of the group are compared with."""
    overlong_buffer: NonNegativeInt = 0
    """DAPO's soft punishment: the reward falls by up to 1 over the last so many tokens before max_new_tokens."""


def proximal_of(algorithm: Mapping[str, Any], engine: Any) -> str:
    """What `proximal: auto` means beside the other keys of the part, as they are written."""
    corrects = algorithm.get("correction", "none") != "none" or algorithm.get("loss") == "decoupled_ppo"
    without = engine in ENGINES and not ENGINES[engine].provides_logprobs
    return "recompute" if corrects or without else "behaviour"


PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {"aggregation": "sequence"},
    "grpo_tis": {"proximal": "recompute", "correction": "tis"},
    "dr_grpo": {"advantage": "dr_grpo", "aggregation": "constant"},
    "dapo": {"clip_high": 0.28, "filter_equal_rewards": True},
    "rloo": {"advantage": "rloo", "loss": "reinforce", "aggregation": "constant"},
    "reinforce_pp": {"advantage": "none", "normalise_advantages": True, "kl_coef": 0.01, "kl_in": "reward"}
    | {"kl_estimator": "k1"},
    "ppo": {"advantage": "gae", "normalise_advantages": True, "gae_lambda": 0.95},
    "decoupled_ppo": {"loss": "decoupled_ppo"},
    "a3po": {"loss": "decoupled_ppo", "proximal": "loglinear"},
    "tis": {"loss": "tis", "proximal": "behaviour", "tis_cap": 1.0},
    "icepop": {"correction": "mis"},
    "cispo": {"loss": "cispo", "proximal": "behaviour", "clip_low": 1.0, "clip_high": 4.0},
    "topr": {"advantage": "dr_grpo", "loss": "topr", "proximal": "behaviour"},
    "kimi": {"advantage": "dr_grpo", "loss": "kimi", "proximal": "behaviour", "aggregation": "sequence"},
    "gspo": {"loss": "gspo", "aggregation": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    "gmpo": {"loss": "gmpo", "aggregation": "sequence", "clip_low": 0.4, "clip_high": 0.4},
    "dppo_tv": {"loss": "dppo_tv", "proximal": "behaviour", "delta": 0.15, "tis_cap": 20.0},
    "dppo_kl": {"loss": "dppo_kl", "proximal": "behaviour", "delta": 0.05, "tis_cap": 20.0},
    "clip_cov": {"loss": "clip_cov"},
    "kl_cov": {"loss": "kl_cov", "beta": 1.0},
    "flash_reinforce": {"advantage": "batch_mean", "loss": "flash_reinforce", "proximal": "behaviour", "delta": 3e-3}
    | {"aggregation": "sequence"},
    "spo": {"advantage": "running", "normalise_advantages": True},
    "m2po": {"loss": "m2po", "proximal": "behaviour", "second_moment_limit": 0.04},
    "tba": {"advantage": "none", "loss": "trajectory_balance", "aggregation": "sequence", "beta": 0.012}
    | {"replay_share": 0.05},
    "online_dpo": {"advantage": "none", "loss": "dpo", "aggregation": "sequence"},
    "online_ipo": {"advantage": "none", "loss": "ipo", "aggregation": "sequence"},
    "best_of_n": {"advantage": "best_of_n", "loss": "reinforce", "aggregation": "sequence"},
}
"""What differs from the defaults."""
