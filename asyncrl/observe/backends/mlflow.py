"""MLflow: the store that MLFLOW_TRACKING_URI names, else RUN_DIR/mlflow.db. A resume goes on with the same run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

if TYPE_CHECKING:
    from asyncrl.observe.trackers import TrackedRun

_TAG = "asyncrl.id"
_MOST_CHARS = 500
"""Of a parameter's value, in all of MLflow's stores."""
_MOST_PARAMS = 100
"""In one call."""


class Mlflow:
    """By the client, never by MLflow's notion of an active run, which is the user's own."""

    def __init__(self, run: TrackedRun) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(uri or f"sqlite:///{run.dir / 'mlflow.db'}")
        artifacts = None if uri else (run.dir / "mlflow").as_uri()
        experiment = self._experiment(run.project, artifacts)
        found = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run.id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(experiment, run_name=run.name, tags={_TAG: run.id}).info.run_id
        known = found[0].data.params if found else {}
        # A parameter cannot be changed: what a resume changed stays as it was first.
        params = [Param(key, value) for key, value in _flat(run.config) if key not in known]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._id, params=params[start : start + _MOST_PARAMS])

    def _experiment(self, name: str, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name, artifacts)
            except MlflowException:
                # Another run has made it since.
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id

    def log(self, step: int, scalars: dict[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(key, value, now_ms, step) for key, value in scalars.items()])

    def log_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        self._client.log_table(self._id, columns, f"samples/step_{step:06d}.json")

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """`trainer.learning_rate`, as on the command line."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", str(value)[:_MOST_CHARS]
