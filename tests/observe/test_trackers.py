"""Real TensorBoard files, a real offline wandb run, MLflow and trackio where they are installed, and a user's own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asyncrl.errors import UserError
from asyncrl.observe.trackers import TrackedRun, Trackers
from asyncrl.recipe.check import check
from asyncrl.recipe.load import load
from asyncrl.recipe.schema import TrackRecipe

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = {"task": 7, "prompt": "2 + 3\n=", "completion": "5 <b>", "tokens": ["5"], "versions": [1, 2], "reward": 1.0}


def start(run_dir: Path, max_steps: int = 3, more: Any = None, **track: Any) -> Trackers:
    recipe = TrackRecipe(**{"wandb": "off", "tensorboard": False, **track})
    run = TrackedRun.of(run_dir, recipe.project, {"max_steps": max_steps, "trainer": {"ranks": 1}})
    return Trackers(run, recipe, max_steps, run_dir, more)


def test_tensorboard_holds_the_numbers_and_the_samples_of_each_step_once(tmp_path: Path) -> None:
    trackers = start(tmp_path, tensorboard=True)
    for step in range(3):
        trackers.log(step, {"reward/mean": step / 2, "offpolicy/ess": None, "note": "x"}, [SAMPLE])
    trackers.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert events.Tags()["scalars"] == ["reward/mean"]
    texts = events.Tensors("samples")
    assert [text.step for text in texts] == [0, 1, 2]
    shown = texts[0].tensor_proto.string_val[0].decode()
    assert shown == "**task 7, reward 1, version 1 to 2**\n\n    2 + 3\n    =\n\n    5 <b>"


def test_wandb_offline_needs_no_key_and_keeps_its_run_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    ids = []
    for _ in range(2):
        trackers = start(tmp_path, wandb="offline")
        trackers.log(0, {"reward/mean": 0.5})
        trackers.close()
        ids.append((tmp_path / "tracking_id").read_text())
    assert ids[0] == ids[1]
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{ids[0]}"))


def test_wandb_gets_tables_of_the_last_trajectories_at_a_slow_pace(tmp_path: Path) -> None:
    trackers = start(tmp_path, max_steps=60, wandb="offline")
    for step in range(50):
        trackers.log(step, {"reward/mean": step / 50}, [SAMPLE, {**SAMPLE, "reward": None, "task": 8}])
    trackers.close()
    [run] = (tmp_path / "wandb").glob("offline-run-*")
    [history] = run.glob("*.wandb")
    tables = {}
    for file in run.glob("files/media/table/samples_*.table.json"):
        assert file.name.encode() in history.read_bytes()
        tables[int(file.name.split("_")[1])] = json.loads(file.read_text())
    assert sorted(tables) == [*range(0, 49, 3), 49]
    last = tables[49]
    assert last["columns"] == ["step", "task", "reward", "versions", "prompt", "completion"]
    assert len(last["data"]) == 40
    assert last["data"][-2:] == [
        [49, 7, 1.0, "1 to 2", "2 + 3\n=", "5 <b>"],
        [49, 8, None, "1 to 2", "2 + 3\n=", "5 <b>"],
    ]


class Broken:
    def log(self, step: int, scalars: dict[str, float]) -> None:
        raise OSError("disk full")

    def close(self) -> None:
        raise AssertionError("whatever it says now")


def test_a_tracker_that_breaks_does_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trackers = start(tmp_path, more={"broken": Broken, "absent": lambda: 1 / 0})
    trackers.log(0, {"reward/mean": 1.0})
    trackers.log(1, {"reward/mean": 1.0})
    trackers.close()
    assert caplog.text.count("broken no longer takes metrics: OSError: disk full") == 1
    assert "the run goes on without absent: ZeroDivisionError" in caplog.text


class Slow:
    """Takes nothing until it is let go."""

    def __init__(self) -> None:
        self.go, self.steps = threading.Event(), []

    def log(self, step: int, scalars: dict[str, float]) -> None:
        assert self.go.wait(60)
        self.steps.append(step)

    def close(self) -> None:
        pass


def test_a_tracker_that_hangs_holds_up_neither_the_run_nor_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slow, quick = Slow(), Slow()
    quick.go.set()
    trackers = start(tmp_path, more={"slow": lambda: slow, "quick": lambda: quick})
    for step in range(1200):
        trackers.log(step, {"reward/mean": 1.0})
    # `slow` has not even taken the first one: whoever waited for it would wait still.
    assert slow.steps == []
    assert caplog.text.count("slow is 1000 records behind") == 1
    slow.go.set()
    trackers.close()
    assert len(slow.steps) in (1000, 1001)
    assert quick.steps[-1] == 1199 or "quick is 1000 records behind" in caplog.text


OWN = """
import json
class Tracker:
    def __init__(self, run):
        self.file = open(run.dir / f"{run.name}-{run.id}.txt", "a")
    def log(self, step, scalars):
        print(step, json.dumps(scalars), file=self.file)
    def log_samples(self, step, rows):
        print(step, "rows", len(rows), rows[-1]["completion"], file=self.file)
    def close(self):
        self.file.close()
"""


def test_a_tracker_of_the_users_own_is_named_by_path_and_resumes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    for steps in (range(2), range(2, 3)):
        trackers = start(tmp_path, also=["./mine.py:Tracker"])
        for step in steps:
            trackers.log(step, {"reward/mean": 0.5}, [SAMPLE])
        trackers.close()
    [file] = tmp_path.glob(f"{tmp_path.name}-*.txt")
    lines = file.read_text().splitlines()
    assert [line for line in lines if "rows" not in line] == [f'{step} {{"reward/mean": 0.5}}' for step in range(3)]
    assert [line for line in lines if "rows" in line] == ["0 rows 1 5 <b>", "1 rows 2 5 <b>", "2 rows 1 5 <b>"]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("mlfow", "track.also 'mlfow' is neither mlflow, trackio nor package.module:name; did you mean mlflow?"),
        ("./mine.py:Tracer", "track.also './mine.py:Tracer': ./mine.py has no 'Tracer'; did you mean 'Tracker'?"),
        ("trackio", "track.also trackio needs a package that is not installed; pip install 'asyncrl[trackio]'"),
    ],
)
def test_a_tracker_that_is_not_there_is_named_before_the_run(
    spec: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    # None: as if it were not installed.
    monkeypatch.setitem(sys.modules, "trackio", None)
    recipe = load(ROOT / "recipes/tiny.yaml", [f"track.also=[{spec}]"])
    with pytest.raises(UserError) as error:
        check(recipe, tmp_path)
    assert str(error.value) == sentence


def test_mlflow_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", exc_type=ImportError)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for steps in (range(2), range(2, 3)):
        trackers = start(tmp_path, also=["mlflow"])
        for step in steps:
            trackers.log(step, {"reward/mean": step / 2}, [SAMPLE])
        trackers.close()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("asyncrl").experiment_id
    [run] = client.search_runs([experiment])
    assert (run.info.status, run.info.run_name) == ("FINISHED", tmp_path.name)
    assert run.data.params == {"max_steps": "3", "trainer.ranks": "1"}
    history = client.get_metric_history(run.info.run_id, "reward/mean")
    assert [(point.step, point.value) for point in history] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    [table] = (tmp_path / "mlflow").glob("**/step_000001.json")
    assert json.loads(table.read_text())["data"][-1] == [1, 7, 1.0, "1 to 2", "2 + 3\n=", "5 <b>"]


TRACKIO = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import test_trackers
for first, last in ((0, 2), (2, 3)):
    trackers = test_trackers.start(Path(sys.argv[1]), also=["trackio"], project="of-a-test")
    for step in range(first, last):
        trackers.log(step, {"reward/mean": step / 2}, [test_trackers.SAMPLE])
    trackers.close()
import trackio
from trackio.sqlite_storage import SQLiteStorage
[run] = trackio.Api().runs("of-a-test")
points = [(p["step"], p["reward/mean"]) for p in SQLiteStorage.get_logs("of-a-test", run.name) if "reward/mean" in p]
tables = [p["samples"]["_value"][-1]["completion"]
          for p in SQLiteStorage.get_logs("of-a-test", run.name) if "samples" in p]
print(run.name, points, tables)
"""


def test_trackio_goes_on_with_the_same_run(tmp_path: Path) -> None:
    """In a process of its own, as trackio reads TRACKIO_DIR when it is imported."""
    pytest.importorskip("trackio", exc_type=ImportError)
    store = {**os.environ, "TRACKIO_DIR": str(tmp_path / "store")}
    command = [sys.executable, "-c", TRACKIO, str(tmp_path), str(Path(__file__).parent)]
    out = subprocess.run(command, env=store, check=True, timeout=120, capture_output=True, text=True).stdout
    name = f"{tmp_path.name}-{(tmp_path / 'tracking_id').read_text()}"
    assert out.splitlines()[-1] == f"{name} [(0, 0.0), (1, 0.5), (2, 1.0)] ['5 <b>', '5 <b>', '5 <b>']"


def test_secrets_are_in_no_file_of_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = {"WANDB_API_KEY": "5ec2e7" * 6 + "abcd", "MLFLOW_TRACKING_TOKEN": "tok-a9", "HF_TOKEN": "hf_s3cr3t"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    trackers = start(tmp_path, wandb="offline", tensorboard=True)
    trackers.log(0, {"reward/mean": 0.5}, [SAMPLE])
    trackers.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 4
    for path in files:
        assert not any(value.encode() in path.read_bytes() for value in secrets.values()), path
    assert not any(value in caplog.text for value in secrets.values())
