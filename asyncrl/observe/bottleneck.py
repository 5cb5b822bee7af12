"""One line from a run's mean shares of time: which role limits it, and what to change.

Each role is charged with the time that the others lose to it; the dearest one limits.

    trainer      the generators stand idle: every slot is taken, the staleness bound holds them back
    generators   the trainer waits for a batch
    rewards      likewise, and most of the time the generators only wait for rewards
    publish      the trainer waits for the last push, or the generators are paused by one
    checkpoint   the trainer saves
    driver       the trainer does nothing that is measured
"""

from __future__ import annotations

from collections.abc import Mapping

NOTICEABLE = 0.15
"""Share of a role's time below which a loss is not worth a change."""
MOST = 0.5
SHARES = (
    *(f"trainer_time/{name}" for name in ("wait_batch", "wait_publish", "checkpoint", "unaccounted")),
    *("generator_time/idle", "generator_time/paused", "reward_time/waiting"),
)
"""What it goes by."""


def bottleneck(shares: Mapping[str, float]) -> str:
    """The line for mean `trainer_time/*`, `generator_time/*` and `reward_time/*` ratios (0 to 1); a missing one counts
    as 0."""
    waiting, idle, wait_publish, rewards, paused, saving, unaccounted = _known(shares)
    losses = {
        "trainer": idle,
        "generators": waiting,
        "publish": max(wait_publish, paused),
        "checkpoint": saving,
        "driver": unaccounted,
    }
    role = max(losses, key=lambda name: losses[name])
    # If both stand still for about as long, neither is too small.
    if role in ("trainer", "generators") and min(waiting, idle) >= max(NOTICEABLE, max(waiting, idle) / 2):
        role = "turns"
    elif losses[role] < NOTICEABLE:
        role = "balanced"
    elif role == "generators" and rewards >= MOST:
        role = "rewards"
    return _lines(shares)[role]


def bottleneck_of_answers(shares: Mapping[str, float]) -> str:
    """The same for a run that samples nothing: only the trainer has work to do."""
    waiting, *_, saving, unaccounted = _known(shares)
    losses = {"rows": waiting, "checkpoint": saving, "driver": unaccounted}
    role = max(losses, key=lambda name: losses[name])
    return _lines(shares)[role if losses[role] >= NOTICEABLE else "computes"]


def _known(shares: Mapping[str, float]) -> list[float]:
    """The trainer's wait for a batch, idle generators, the trainer's wait for a push, waits for rewards, paused
    generators, checkpoints, and what nobody accounts for."""
    trainer, generator = "trainer_time", "generator_time"
    names = (f"{trainer}/wait_batch", f"{generator}/idle", f"{trainer}/wait_publish", "reward_time/waiting")
    more = (f"{generator}/paused", f"{trainer}/checkpoint", f"{trainer}/unaccounted")
    return [shares.get(name, 0.0) for name in (*names, *more)]


def _lines(shares: Mapping[str, float]) -> dict[str, str]:
    waiting, idle, wait_publish, rewards, paused, saving, unaccounted = _known(shares)
    return {
        "rows": f"data-bound: the trainer waits for rows {_percent(waiting)} of the time; its steps are short, raise "
        "groups_per_step",
        "computes": f"trainer-bound: it waits for rows {_percent(waiting)} of the time; to go faster, give it more "
        "cores or GPUs",
        "trainer": f"trainer-bound: generators idle {_percent(idle)} of the time at the staleness bound; "
        "give the trainer more cores or GPUs, or shorten its step",
        "generators": f"generator-bound: the trainer waits for a batch {_percent(waiting)} of the time; "
        "raise rollout.replicas, give the generators more cores or GPUs, or lower max_new_tokens",
        "rewards": f"reward-bound: the trainer waits for a batch {_percent(waiting)} of the time, and generators only "
        f"wait for rewards {_percent(rewards)}; raise rewards.workers, or make the reward faster",
        "publish": f"publish-bound: the trainer waits for weight pushes {_percent(wait_publish)} of the time and "
        f"generators are paused {_percent(paused)}; use a faster weights.channel, or raise groups_per_step",
        "checkpoint": f"checkpoint-bound: saving takes {_percent(saving)} of the trainer's time; "
        "raise checkpoint.every_steps or write to a faster disk",
        "driver": f"driver-bound: {_percent(unaccounted)} of the trainer's time goes to no measured part; "
        "give the driver a core of its own",
        "turns": f"taking turns: the trainer waits for a batch {_percent(waiting)} of the time and generators "
        f"idle {_percent(idle)}; raise max_staleness so that they overlap",
        "balanced": f"balanced: the trainer waits for a batch {_percent(waiting)} of the time and generators "
        f"idle {_percent(idle)}; to go faster, give both more cores or GPUs",
    }


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
