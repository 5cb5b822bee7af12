"""A checkpoint folder is whole or does not count, wherever a crash falls."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.storage import atomic
from asyncrl.storage.atomic import begin, commit, complete, prune

FILES = {"control.json": b"{}", "trainer/state.pt": b"weights", "model/config.json": b"{}"}
CALLS = ("open", "fsync", "rename", "unlink", "rmdir", "mkdir")


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is synced is tested, not how long the disk takes."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Crash(BaseException):
    """The process ends here."""


class Calls:
    """Counts the file-system calls under test and crashes just before number `crash_at`."""

    def __init__(self, crash_at: int | None) -> None:
        self.crash_at, self.count = crash_at, 0

    def wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.count == self.crash_at:
                raise Crash
            self.count += 1
            return real(*args, **kwargs)

        return call


def run(action: Callable[[], Any], crash_at: int | None = None) -> int:
    """Runs the action up to the crash; returns how many file-system calls it made."""
    calls = Calls(crash_at)
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, calls.wrap(getattr(os, name)))
        try:
            action()
        except Crash:
            assert crash_at is not None
    return calls.count


def save(root: Path, step: int, content: bytes = b"") -> Path:
    part = begin(root, step)
    for name, data in FILES.items():
        (part / name).parent.mkdir(exist_ok=True)
        (part / name).write_bytes(data + content)
    return commit(part)


def assert_whole(folder: Path, *contents: bytes) -> None:
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found in [{"COMPLETE": b"", **{name: data + c for name, data in FILES.items()}} for c in contents]


def steps(root: Path) -> list[str]:
    return [p.name for p in complete(root)]


def crash_everywhere(tmp_path: Path, before: Callable[[Path], Any], action: Callable[[Path], Any]) -> list[Path]:
    """One root for every call of the action that a crash can precede; at least four of them, or nothing was tested."""
    total = tmp_path / "total"
    before(total)
    num_calls = run(lambda: action(total))
    assert num_calls > 4
    roots = []
    for crash_at in range(num_calls):
        roots.append(tmp_path / f"crash_{crash_at}")
        before(roots[-1])
        assert run(lambda: action(roots[-1]), crash_at) == crash_at
    return roots


def test_a_committed_checkpoint_is_complete(tmp_path: Path) -> None:
    final = save(tmp_path, 10)
    assert final == tmp_path / "step_000010"
    assert complete(tmp_path) == [final]
    assert_whole(final, b"")
    assert list(tmp_path.iterdir()) == [final]


def test_a_crash_while_saving_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    for root in crash_everywhere(tmp_path, lambda root: save(root, 5), lambda root: save(root, 10)):
        assert steps(root)[0] == "step_000005"
        for folder in complete(root):
            assert_whole(folder, b"")
        # The run goes on from what is there, and saves the same step again.
        save(root, 10, b"second")
        assert steps(root) == ["step_000005", "step_000010"]
        assert_whole(root / "step_000010", b"second")


def test_a_crash_while_saving_over_an_incomplete_checkpoint(tmp_path: Path) -> None:
    def incomplete(root: Path) -> None:
        (save(root, 10, b"old") / "COMPLETE").unlink()

    for root in crash_everywhere(tmp_path, incomplete, lambda root: save(root, 10, b"new")):
        for folder in complete(root):
            assert_whole(folder, b"new")


def test_a_crash_while_saving_over_a_complete_checkpoint(tmp_path: Path) -> None:
    for root in crash_everywhere(tmp_path, lambda r: save(r, 10, b"old"), lambda r: save(r, 10, b"new")):
        for folder in complete(root):
            assert_whole(folder, b"old", b"new")


def test_a_crash_while_pruning_keeps_the_newest_whole(tmp_path: Path) -> None:
    def before(root: Path) -> None:
        for step in (1, 2, 3):
            save(root, step)
        begin(root, 4)

    for root in crash_everywhere(tmp_path, before, lambda root: prune(root, 1)):
        assert steps(root)[-1] == "step_000003"
        for folder in complete(root):
            assert_whole(folder, b"")
        prune(root, 1)
        assert [p.name for p in root.iterdir()] == ["step_000003"]


def test_everything_is_on_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, Path]] = []
    real_fsync, real_rename, real_touch = os.fsync, Path.rename, Path.touch

    def fsync(handle: int) -> None:
        events.append(("fsync", Path(os.readlink(f"/proc/self/fd/{handle}"))))
        real_fsync(handle)

    def rename(self: Path, target: Path) -> Path:
        events.append(("rename", self))
        return real_rename(self, target)

    def touch(self: Path, *args: Any, **kwargs: Any) -> None:
        events.append(("touch", self))
        real_touch(self, *args, **kwargs)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(Path, "touch", touch)
    final = save(tmp_path, 3)
    part = tmp_path / ".step_000003.part"
    renamed, touched = events.index(("rename", part)), events.index(("touch", final / "COMPLETE"))
    written = {part, part / "trainer", part / "model", *(part / name for name in FILES)}
    assert {path for _, path in events[:renamed]} == written
    assert events[renamed + 1 : touched] == [("fsync", tmp_path)]
    assert ("fsync", final) in events[touched:]


def test_begin_removes_what_a_crash_left(tmp_path: Path) -> None:
    left = begin(tmp_path, 7)
    (left / "half").write_bytes(b"x")
    (left / "model").mkdir()
    part = begin(tmp_path, 7)
    assert part == left
    assert list(part.iterdir()) == []


def test_complete_is_ordered_by_number_and_ignores_the_rest(tmp_path: Path) -> None:
    for step in (1_000_000, 2, 999_999):
        save(tmp_path, step)
    begin(tmp_path, 3)
    (save(tmp_path, 4) / "COMPLETE").unlink()
    (tmp_path / "step_best").mkdir()
    (tmp_path / "step_best" / "COMPLETE").touch()
    assert steps(tmp_path) == ["step_000002", "step_999999", "step_1000000"]


def test_prune_keeps_the_newest_and_removes_the_incomplete(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    (tmp_path / "step_000004" / "COMPLETE").unlink()
    begin(tmp_path, 5)
    (tmp_path / "notes.txt").touch()
    prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "step_000002", "step_000003"]
    prune(tmp_path, 5)
    assert steps(tmp_path) == ["step_000002", "step_000003"]


def save_with(root: Path, step: int, metrics: dict[str, Any] | None) -> None:
    folder = save(root, step)
    (folder / "control.json").write_text(json.dumps({"metrics": metrics} if metrics is not None else {}))


def test_prune_keeps_every_so_many_steps(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 25, 30, 35):
        save(tmp_path, step)
    (tmp_path / "step_000020" / "COMPLETE").unlink()
    prune(tmp_path, 2, keep_every=10)
    assert steps(tmp_path) == ["step_000010", "step_000030", "step_000035"]
    assert len(list(tmp_path.iterdir())) == 3
    prune(tmp_path, 2)
    assert steps(tmp_path) == ["step_000030", "step_000035"]


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([0.5, 0.25, 0.125, 0.0], {1}),
        ([-2.0, -1.0, -3.0, -4.0], {2}),
        ([0.5, 0.5, 0.25, 0.0], {2}),
        ([0, 1, 0.5, 0], {2}),
        ([None, 0.25, 0.5, 0.125], {3}),
        ([float("nan"), 0.25, 0.125, float("nan")], {2}),
        ([None, None, float("nan"), None], set()),
        ([0.25, 0.5, 0.125, 1.0], set()),
    ],
)
def test_prune_keeps_the_best(tmp_path: Path, values: list[float | None], kept: set[int]) -> None:
    """Four checkpoints, of which the newest is kept anyway."""
    for step, value in enumerate(values, start=1):
        save_with(tmp_path, step, {"reward/mean": value, "reward/std": 10.0 - step})
    prune(tmp_path, 1, best="reward/mean")
    assert steps(tmp_path) == [f"step_{step:06d}" for step in sorted(kept | {4})]


def test_a_checkpoint_without_the_metric_is_no_candidate(tmp_path: Path) -> None:
    save_with(tmp_path, 1, None)
    save_with(tmp_path, 2, {"reward/std": 3.0})
    save_with(tmp_path, 3, {"reward/mean": 0.5})
    save_with(tmp_path, 4, {"reward/mean": 9.0})
    (tmp_path / "step_000004" / "COMPLETE").unlink()
    save_with(tmp_path, 5, {"reward/mean": "high"})
    (save(tmp_path, 6) / "control.json").write_text("{half")
    (save(tmp_path, 7) / "control.json").unlink()
    (save(tmp_path, 8) / "control.json").write_text('{"metrics": null}')
    prune(tmp_path, 1, best="reward/mean")
    assert steps(tmp_path) == ["step_000003", "step_000008"]


def test_the_best_goes_once_there_is_a_better_one(tmp_path: Path) -> None:
    for step, value in enumerate((0.25, 0.125, 0.5, 0.375, 0.25), start=1):
        save_with(tmp_path, step, {"reward/mean": value})
        prune(tmp_path, 1, best="reward/mean")
    assert steps(tmp_path) == ["step_000003", "step_000005"]


@given(
    values=st.lists(st.none() | st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=6),
    keep_last=st.integers(1, 7),
    keep_every=st.none() | st.integers(1, 4),
)
def test_what_prune_keeps(
    tmp_path_factory: pytest.TempPathFactory, values: list[float | None], keep_last: int, keep_every: int | None
) -> None:
    root = tmp_path_factory.mktemp("prune")
    for step, value in enumerate(values):
        (root / f"step_{step:06d}").mkdir()
        (root / f"step_{step:06d}" / "control.json").write_text(json.dumps({"metrics": {"m": value}}))
        (root / f"step_{step:06d}" / "COMPLETE").touch()
    prune(root, keep_last, keep_every, best="m")
    kept = [int(name.removeprefix("step_")) for name in steps(root)]
    for step, value in enumerate(values):
        newest = step >= len(values) - keep_last
        every = keep_every is not None and step % keep_every == 0
        known = [v for v in values if v is not None]
        best = value is not None and value == max(known) and value not in values[step + 1 :]
        assert (step in kept) == (newest or every or best)


def test_a_crash_while_pruning_keeps_the_best_whole(tmp_path: Path) -> None:
    def before(root: Path) -> None:
        for step, value in ((1, 0.5), (2, 0.25), (3, 0.125)):
            save_with(root, step, {"reward/mean": value})

    for root in crash_everywhere(tmp_path, before, lambda root: prune(root, 1, best="reward/mean")):
        assert {"step_000001", "step_000003"} <= set(steps(root))
        prune(root, 1, best="reward/mean")
        assert steps(root) == ["step_000001", "step_000003"]


def test_run_dir_at_step_names_the_model_of_a_checkpoint(tmp_path: Path) -> None:
    model = tmp_path / "run@1/checkpoints/step_000020/model"
    model.mkdir(parents=True)
    assert atomic.model_of(f"{tmp_path}/run@1@20") == model
    for other in ("run@1", "run@1@10", "run@1@x", "run@1/"):
        assert atomic.model_of(f"{tmp_path}/{other}") is None
