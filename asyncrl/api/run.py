"""A run as an object: what its directory says, as data frames."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncrl.errors import UserError
from asyncrl.observe import evaluations
from asyncrl.observe.metrics import read_lines
from asyncrl.storage import atomic
from asyncrl.storage.run_dir import json_object, open_file

if TYPE_CHECKING:
    import pandas as pd

_MOST_BYTES = 2**20


class Run:
    """A run that goes on or has ended. Raises UserError if the directory is none."""

    def __init__(self, run_dir: str | Path, stop: Callable[[str], None] | None = None) -> None:
        self.dir = Path(run_dir)
        self._stop = stop
        try:
            open_file(self.dir, "recipe.yaml").close()
        except FileNotFoundError:
            raise UserError(f"{run_dir} is not a run directory: it has no recipe.yaml") from None

    @property
    def metrics(self) -> pd.DataFrame:
        """A row a step, as metrics.jsonl has them; the index is the step."""
        return _frame(read_lines(self.dir / "metrics.jsonl"), "step")

    @property
    def evaluations(self) -> pd.DataFrame:
        """A row for each evaluation of held-out tasks: name, version, accuracy, reward, their intervals, ..."""
        return _frame(read_lines(self.dir / evaluations.FILE), None)

    @property
    def samples(self) -> pd.DataFrame:
        """Some trajectories of every step: prompt, completion, reward, versions."""
        return _frame(read_lines(self.dir / "samples.jsonl"), None)

    @property
    def summary(self) -> dict[str, Any]:
        """Totals; {} until the run has ended."""
        return json_object(self.dir, "summary.json", _MOST_BYTES)

    @property
    def checkpoints(self) -> dict[int, Path]:
        """Folders of the complete checkpoints by their step; the model is in `model/`."""
        return {atomic.step_of(folder): folder for folder in atomic.complete(self.dir / "checkpoints")}

    @property
    def model(self) -> Path:
        """The newest checkpoint's model, a Hugging Face folder. Raises UserError if there is none yet."""
        if not (found := self.checkpoints):
            raise UserError(f"{self.dir} has no complete checkpoint yet")
        return found[max(found)] / "model"

    def trajectories(self) -> pd.DataFrame:
        """Every trajectory of the journal: prompt, completion, reward, tokens, versions, the step that trained it."""
        from asyncrl.report import inspection

        return _frame(list(inspection.rows(self.dir, inspection.Filters(None, None, None))), None)

    def report(self) -> Path:
        """Writes report.html anew."""
        from asyncrl.report.report import write_report

        return write_report(self.dir)

    def stop(self, why: str = "stopped by a callback") -> None:
        """Finish the step, save, end. For callbacks of a run that goes on; RuntimeError for any other."""
        if self._stop is None:
            raise RuntimeError("only a callback can stop a run; the run was not started by this process")
        self._stop(why)

    def __repr__(self) -> str:
        return f"Run({str(self.dir)!r})"

    def _repr_html_(self) -> str:
        """In a notebook: where it stands."""
        records = read_lines(self.dir / "metrics.jsonl")
        last = records[-1] if records else {}
        shown = {
            "steps": len(records),
            **{name: last.get(key) for name, key in (("reward", "reward/mean"), ("accuracy", "accuracy/mean"))},
        }
        lines = "".join(
            f"<tr><th>{name}</th><td>{value:.3g}</td></tr>" for name, value in shown.items() if value is not None
        )
        return f"<p><code>{escape(str(self.dir))}</code></p><table>{lines}</table>"


def _frame(lines: list[dict[str, Any]], index: str | None) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(lines)
    return frame.set_index(index) if index and index in frame else frame
