"""wandb: one run, which a resume goes on with. Samples are a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import wandb

if TYPE_CHECKING:
    from asyncrl.observe.trackers import TrackedRun

_START_S = 60.0
_FINISH_S = 60.0


class Wandb:
    def __init__(self, run: TrackedRun, mode: str) -> None:
        settings = wandb.Settings(
            init_timeout=_START_S,
            login_timeout=_START_S,
            finish_timeout=_FINISH_S,
            # wandb's capture of the terminal would fight with the live view.
            console="off",
            silent=True,
        )
        track = run.config.get("track", {})
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.id,
            resume="allow",
            mode=mode,
            dir=str(run.dir),
            config=dict(run.config),
            notes=track.get("notes") or None,
            tags=track.get("tags") or None,
            settings=settings,
        )

    def log(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=step)

    def log_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        # A new table each time: one that is changed and logged again is written whole again, and one that grows
        # piece by piece (INCREMENTAL) takes a hundred pieces at most and needs to be told where a resumed run was.
        table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        self._run.log({"samples": table}, step=step)

    def close(self) -> None:
        try:
            self._run.finish()
        finally:
            # At exit it would print a traceback if its service is gone: who stops a job signals that too.
            wandb.teardown()
