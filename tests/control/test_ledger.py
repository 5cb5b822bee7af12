from __future__ import annotations

from dataclasses import replace

import pytest

from asyncrl.control.ledger import Ledger, LedgerError

BALANCED = Ledger(
    drawn=21,
    running=1,
    ready=2,
    leased=3,
    trained=4,
    filtered=5,
    failed=6,
    stale=7,
    requeued=8,
    filtered_reasons={"equal": 2, "long": 3},
    failed_reasons={"broken": 6},
)


def test_a_balanced_ledger_passes() -> None:
    BALANCED.check()
    replace(BALANCED, stale=0, requeued=99).check()


@pytest.mark.parametrize(
    "changes",
    [
        *({name: 0} for name in ("drawn", "running", "ready", "leased", "trained", "filtered", "failed")),
        {"running": -1, "ready": 4},
        {"filtered_reasons": {"equal": 2}},
        {"failed_reasons": {}},
    ],
)
def test_any_imbalance_is_an_error(changes) -> None:
    with pytest.raises(LedgerError):
        replace(BALANCED, **changes).check()
