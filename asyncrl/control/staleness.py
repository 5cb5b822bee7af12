"""How old a trained token can be: slots at admission, a window and a version check at selection.

P groups per step, staleness S, window W. `live` is the newest version that every generator holds. There are
floor((S + 1)·P) slots; a group holds one from its start until the weights of the step that trained it are live, or
until it is filtered or failed. Starts are numbered 0, 1, 2, …; a requeued group is started and numbered anew.
Selection takes the oldest finished groups, but none with a number ≥ (oldest unfinished number) + W. Then

    age of any trained token ≤ S + ceil((W − 1)/P)        and = 0 if S = 0.

Proof. Let group g be started at live version v and trained in batch k. None of its tokens is older than v.
Batches v … k−1 hold (k − v)·P groups other than g.
  * Those started before g were trained at a step ≥ v, so their weights were not live when g started and each
    of them held a slot beside g's: at most (S + 1)·P − 1.
  * Those started after g were selected while g was outstanding, so their numbers exceed g's by less than W:
    at most W − 1.
So (k − v)·P ≤ (S + 1)·P + W − 2, and k − v ≤ S + 1 + floor((W − 2)/P) = S + ceil((W − 1)/P).
If S = 0, only P − 1 slots are left beside g's, too few for any batch without g: k = v.  ∎

S may be a fraction: with W = 1 the bound is then ceil(S), and at most floor(P·(S mod 1)) groups of a batch were
started that long before; if that is none, the bound is floor(S). For let m groups of batch k be started at version
v = k − ceil(S). When the last of them was, the ceil(S)·P groups of batches v … k − 1 had been started before it
(W = 1) and held slots, and so did the m: ceil(S)·P + m ≤ floor((S + 1)·P).

The bound is tight: start (S + 1)·P groups, let all but the newest finish at once, and it waits that long.
Filtered, failed and requeued groups leave gaps in the numbers, which only narrow the window.

With `drop` and `mask` (S whole) a finished group may overtake any number of older ones, and the version check alone
keeps the bound S. No group is requeued in vain: one that is left over when batch k is taken holds a slot, so
batches live … k hold fewer than (S + 1)·P groups, so live ≥ k + 1 − S: started now, it is young enough for
batch k + 1. With b backup groups there are b slots more, and that needs saying: a group is started only if it would be
young enough for the next batch that is taken. `push_lag` n: versions become live only every n steps. All of the above
holds, as it says nothing of when a version becomes live; the run goes on, since up to n − 1 ≤ S steps that are not
live leave slots for a whole batch.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from asyncrl.control.settings import Settings


def slots(settings: Settings) -> int:
    """Groups that may be in flight at once."""
    return _num_paced(settings) + settings.backup_groups


def at_once(settings: Settings, replicas: int) -> int:
    """Groups that so many generators can work on at once."""
    most = settings.groups_per_replica * replicas or slots(settings)
    return min(slots(settings), most)


@lru_cache(maxsize=256)
def _num_paced(settings: Settings) -> int:
    # The number as it was written: in floats, 1.16 x 100 is less than 116.
    return int((Fraction(str(settings.max_staleness)) + 1) * settings.groups_per_step)


def worst_case(settings: Settings) -> int:
    """Largest age that a trained token can have, in updates."""
    if settings.on_stale != "wait":
        return int(settings.max_staleness)
    if _num_paced(settings) == settings.groups_per_step:
        return 0
    return (_num_paced(settings) + settings.selection_window - 2) // settings.groups_per_step


def selectable_below(oldest_running: int | None, settings: Settings) -> int | None:
    """Ready groups with a start number below this may be selected; None: all.

    The window starts at the oldest *running* group: older ready ones are selected first, so they do not hold
    up the younger.
    """
    if settings.on_stale != "wait" or oldest_running is None:
        return None
    return oldest_running + settings.selection_window


def usable(oldest_version: int, newest_version: int, min_version: int, settings: Settings) -> bool:
    """Whether a finished group may be trained in a batch that takes no token older than `min_version`."""
    return (newest_version if settings.on_stale == "mask" else oldest_version) >= min_version
