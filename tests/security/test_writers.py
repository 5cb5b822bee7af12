"""To resume a run is to run what its directory names: only if nobody else can have written it, or if one says so."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stranger import NOBODY, as_nobody

from asyncrl.cli import main
from asyncrl.errors import UserError
from asyncrl.processes.lock import RunLock
from asyncrl.recipe import stored as stored_recipe
from asyncrl.recipe.load import dump, load
from asyncrl.recipe.stored import load_stored
from asyncrl.storage import mirror, writers

ROOT = Path(__file__).resolve().parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user, which only root can be")


RECIPE = "recipe.yaml"


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that another user can reach."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def run_dir(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of this user's, with a reward of this user's."""
    monkeypatch.chdir(folder)
    (folder / "code").mkdir()
    (folder / "code/mine.py").write_text("def reward(completion, **row):\n    return 1.0\n")
    run_dir = folder / "run"
    (run_dir / "journal").mkdir(parents=True)
    keys = [f"reward={folder}/code/mine.py:reward", "rollout.engine=simulated", "algorithm.loss=reinforce"]
    (run_dir / RECIPE).write_text(dump(load(ROOT / "recipes/tiny.yaml", keys)))
    return run_dir


def put_in_code(run_dir: Path) -> str:
    """What an attacker makes of the recipe: it names his reward, which says that it ran."""
    own = run_dir.parent / "his.py"
    own.write_text(f"open({str(run_dir.parent / 'RAN')!r}, 'w')\ndef reward(completion, **row):\n    return 1.0\n")
    return (run_dir / RECIPE).read_text().replace("code/mine.py", "his.py")


def writes(run_dir: Path, text: str) -> None:
    (run_dir / RECIPE).write_text(text)


def replaces(run_dir: Path, text: str) -> None:
    run_dir.rename(run_dir.with_name("old"))
    run_dir.mkdir()
    writes(run_dir, text)


@as_root
@pytest.mark.parametrize("command", ["resume", "replay"])
@pytest.mark.parametrize(
    ("loosen", "attack"),
    [
        (lambda run: (run / RECIPE).chmod(0o666), writes),
        (lambda run: run.parent.chmod(0o777), replaces),
    ],
)
def test_what_another_user_wrote_is_not_run(
    command: str,
    loosen: Callable[[Path], None],
    attack: Callable[[Path, str], None],
    run_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = put_in_code(run_dir)
    loosen(run_dir)
    assert as_nobody(lambda: attack(run_dir, text)) == 0
    assert "his.py" in (run_dir / RECIPE).read_text()
    assert main([command, str(run_dir)]) == 2
    assert "say --trust" in capsys.readouterr().err
    assert not (run_dir.parent / "RAN").exists()


def chown(path: Path) -> None:
    os.lchown(path, NOBODY, -1)


@as_root
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: chown(run), "/run belongs to another user (id 65534)"),
        (lambda run: chown(run / RECIPE), "/run/recipe.yaml belongs to another user"),
        (lambda run: chown(run.parent), " belongs to another user"),
        (lambda run: chown(run.parent / "code/mine.py"), "/code/mine.py belongs to another user"),
        (lambda run: chown(run.parent / "code"), "/code belongs to another user"),
        (lambda run: (os.chown(run, -1, 100), run.chmod(0o770)), "/run can be written by group 100"),
    ],
)
def test_the_owner_of_all_of_it_counts(change: Callable[[Path], None], said: str, run_dir: Path) -> None:
    load_stored(run_dir, [], trust=False)
    change(run_dir)
    with pytest.raises(UserError, match="names code that would run as you") as error:
        load_stored(run_dir, [], trust=False)
    assert said in str(error.value)
    load_stored(run_dir, [], trust=True)


@as_root
def test_the_owner_of_a_tasksets_python_counts(run_dir: Path) -> None:
    python = run_dir.parent / "python"
    python.touch()
    overrides = ["data.path=verifiers:v", f"data.options.python={python}"]
    load_stored(run_dir, overrides, trust=False)
    chown(python)
    with pytest.raises(UserError, match="/python belongs to another user"):
        load_stored(run_dir, overrides, trust=False)


def linked(path: Path) -> None:
    moved = path.with_name(f"{path.name}.real")
    path.rename(moved)
    path.symlink_to(moved.name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: run.chmod(0o777), "/run can be written by everyone"),
        (lambda run: run.chmod(0o1777), "/run can be written by everyone"),
        (lambda run: (run / RECIPE).chmod(0o666), "/recipe.yaml can be written by everyone"),
        (lambda run: run.parent.chmod(0o777), " can be written by everyone"),
        (lambda run: (run.parent / "code").chmod(0o1777), "/code.real can be written by everyone"),
        (lambda run: (run.parent / "code/mine.py").chmod(0o666), "/mine.py can be written by everyone"),
        (lambda run: (run.parent / "code.real").chmod(0o777), "/code.real can be written by everyone"),
        (lambda run: linked(run / RECIPE), "recipe.yaml is a link"),
    ],
)
def test_so_do_the_modes(change: Callable[[Path], None], said: str, run_dir: Path) -> None:
    linked(run_dir.parent / "code")
    load_stored(run_dir, [], trust=False)
    change(run_dir)
    with pytest.raises(UserError) as error:
        load_stored(run_dir, [], trust=False)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("named", "written"),
    [
        ("code/mine.py", "code/mine.py"),
        ("code/mine.py", "code/below/deeper/more.py"),
        ("code/mine.py", "code/below/__pycache__"),
        ("code/mine.py", "elsewhere"),
        ("code/pack/mine.py", "code/other.py"),
        ("mine", "code/mine.py"),
        ("pack.mine", "code/pack/mine.py"),
        ("pack.mine", "code/pack/below/more.py"),
        ("pack.mine", "code/other.py"),
        ("spaced.mine", "code/spaced/mine.py"),
        ("here", "here.py"),
    ],
)
def test_so_does_all_that_the_code_may_import(
    named: str, written: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found without running any of it."""
    for name in ("pack/__init__", "pack/mine", "pack/below/more", "below/deeper/more", "other", "spaced/mine", "mine"):
        path = run_dir.parent / f"code/{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit\n")
    shutil.copy(path, run_dir.parent / "here.py")
    (run_dir.parent / "code/below/__pycache__").mkdir()
    # No code, and no folder that a name can lead to.
    (run_dir.parent / "code/rows.jsonl").touch(0o666)
    (run_dir.parent / "code/at 10:15").mkdir()
    (run_dir.parent / "code/at 10:15").chmod(0o777)
    (run_dir.parent / "code/loop.py").symlink_to("loop.py")
    (run_dir.parent / "elsewhere").mkdir()
    (run_dir.parent / "code/below/later.py").symlink_to("../../elsewhere/later.py")
    monkeypatch.syspath_prepend(run_dir.parent / "code")
    spec = f"{run_dir.parent}/{named}" if named.endswith(".py") else named
    (run_dir / RECIPE).write_text(dump(load(run_dir / RECIPE, [f"reward={spec}:reward"])))
    load_stored(run_dir, [], trust=False)
    (run_dir.parent / written).chmod(0o777)
    with pytest.raises(UserError, match=f"{written} can be written by everyone, and a run directory's recipe names"):
        load_stored(run_dir, [], trust=False)
    load_stored(run_dir, [], trust=True)


def test_more_code_than_can_be_looked_at_is_refused(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run_dir.parent / "code/other.py").touch()
    monkeypatch.setattr(writers, "MOST_LOOKED_AT", 1)
    with pytest.raises(UserError, match="code has more than 1 files and folders of code, too many to see who may have"):
        load_stored(run_dir, [], trust=False)


def test_a_models_folder_counts_too(run_dir: Path, tiny_model: Path) -> None:
    model = shutil.copytree(tiny_model, run_dir.parent / "model")
    text = (run_dir / RECIPE).read_text()
    (run_dir / RECIPE).write_text(text.replace("random:tiny-llama", str(model)))
    load_stored(run_dir, [], trust=False)
    (model / "model.safetensors").chmod(0o666)
    with pytest.raises(UserError, match="safetensors can be written by everyone"):
        load_stored(run_dir, [], trust=False)


def test_a_recipe_of_which_others_are_the_writers_is_trained_and_said(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(ROOT / "recipes/tiny_reward.py", run_dir.parent)
    recipe = str(shutil.copy(ROOT / "recipes/tiny.yaml", run_dir.parent))
    assert main(["train", recipe, "--dry-run"]) == 0
    assert caplog.text == ""
    os.chmod(recipe, 0o666)
    assert main(["train", recipe, "--dry-run"]) == 0
    assert "tiny.yaml can be written by everyone, and the code that a recipe names runs as you" in caplog.text


def test_a_sticky_folder_on_the_way_keeps_what_is_in_it(run_dir: Path) -> None:
    run_dir.parent.chmod(0o1777)
    assert writers.others(run_dir) is None


def test_a_fifo_is_no_recipe_and_nobody_waits_for_it(run_dir: Path) -> None:
    (run_dir / RECIPE).unlink()
    os.mkfifo(run_dir / RECIPE)
    with pytest.raises(UserError, match="neither a file nor a folder"):
        load_stored(run_dir, [], trust=False)


def test_the_group_of_ones_own_is_nobody_else(monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> None:
    """As most systems make one, whose umask then is 002."""
    run_dir.chmod(0o770)
    group = type("Group", (), {"gr_name": pwd.getpwuid(os.geteuid()).pw_name, "gr_mem": []})
    status = os.stat_result([0o100664, 0, 0, 1, os.geteuid(), 4711, 0, 0, 0, 0])
    monkeypatch.setattr(writers.grp, "getgrgid", lambda gid: group)
    assert writers.of_status(run_dir, status) is None
    group.gr_mem = ["somebody"]
    assert "can be written by group 4711" in str(writers.of_status(run_dir, status))
    group.gr_mem, group.gr_name = [], "staff"
    assert "can be written by group 4711" in str(writers.of_status(run_dir, status))


def test_the_recipe_that_was_looked_at_is_the_one_that_is_read(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the reading somebody puts another in its place."""
    other = put_in_code(run_dir)
    look = writers.of_status

    def swap(path: Path, status: os.stat_result, last: bool = True) -> str | None:
        if path == run_dir / RECIPE:
            path.unlink()
            path.write_text(other)
        return look(path, status, last)

    monkeypatch.setattr(stored_recipe, "of_status", swap)
    recipe, stored = load_stored(run_dir, ["max_steps=3"], trust=False)
    assert "his.py" in (run_dir / RECIPE).read_text()
    assert recipe.reward == stored.reward
    assert recipe.reward.endswith("/code/mine.py:reward")


def test_what_was_fetched_is_someone_elses_until_one_says_so(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ASYNCRL_CACHE", str(run_dir.parent / "cache"))
    url = f"file://{run_dir.parent}/bucket/run"
    pushed = mirror.Mirror(url, run_dir)
    pushed.begin()
    pushed.push()
    ran = []
    monkeypatch.setattr("asyncrl.orchestrator.run.resume", lambda *arguments: ran.append(arguments) or 0)
    # A second time it is here already, and the folder may be named itself.
    for where in (url, url, str(mirror.local_copy(url))):
        assert main(["resume", where]) == 2
        assert "was fetched from a URL" in capsys.readouterr().err
    assert main(["resume", url, "--trust"]) == 0
    assert len(ran) == 1
    # The run of this machine has taken it over.
    mirror.Mirror(url, mirror.local_copy(url)).begin()
    assert main(["resume", url]) == 0


def test_a_recipe_of_ones_own_that_says_the_same_is_enough(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As jobs that are started again do: nothing is run that this user does not name; whose weights it goes on from
    nobody knows, and that is said."""
    monkeypatch.setenv("ASYNCRL_CACHE", str(run_dir.parent / "cache"))
    url = f"file://{run_dir.parent}/bucket/run"
    mine = run_dir.parent / "mine.yaml"
    keys = [f"reward={run_dir.parent}/code/mine.py:reward", f"run_dir={url}"]
    recipe = load(ROOT / "recipes/tiny.yaml", keys)
    mine.write_text(dump(recipe))
    (run_dir / RECIPE).write_text(dump(recipe))
    pushed = mirror.Mirror(url, run_dir)
    pushed.begin()
    pushed.push()
    ran = []
    monkeypatch.setattr("asyncrl.orchestrator.run.resume", lambda *arguments: ran.append(arguments) or 0)
    assert main(["train", str(mine), "--or-resume"]) == 0
    assert len(ran) == 1
    assert f"{url}: your recipe goes on with the weights and the history that are there, whoever" in caplog.text
    # This machine has written there last.
    mirror.Mirror(url, mirror.local_copy(url)).begin()
    caplog.clear()
    assert main(["train", str(mine), "--or-resume"]) == 0
    assert caplog.text == ""
    other = dump(load(mine, [f"reward={run_dir.parent}/his.py:reward"]))
    (mirror.local_copy(url) / RECIPE).write_text(other)
    assert main(["train", str(mine), "--or-resume"]) == 2
    assert len(ran) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: run.chmod(0o777), "can be written by everyone"),
        (lambda run: (run / RECIPE).chmod(0o666), "can be written by everyone"),
        (lambda run: (run / ".lock").symlink_to(run.parent / "precious"), "is a link"),
        (lambda run: (run / "checkpoints").symlink_to(run.parent), "is a link"),
    ],
    ids=["folder", "recipe", "lock", "checkpoints"],
)
def test_jobs_that_are_started_again_look_who_wrote_too(
    change: Callable[[Path], None],
    said: str,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One who made the folder before the first job, or may write to it."""
    (run_dir.parent / "precious").write_text("mine")
    mine = run_dir.parent / "mine.yaml"
    mine.write_text(dump(load(run_dir / RECIPE, [f"run_dir={run_dir}"])))
    shutil.copy(mine, run_dir / RECIPE)
    ran: list[object] = []
    monkeypatch.setattr("asyncrl.orchestrator.run.resume", lambda *arguments: ran.append(arguments) or 0)
    assert main(["train", str(mine), "--or-resume"]) == 0
    change(run_dir)
    assert main(["train", str(mine), "--or-resume"]) == 2
    assert said in capsys.readouterr().err
    assert len(ran) == 1


def test_the_recipe_of_ones_own_is_run_not_the_one_that_says_the_same(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path through a link and back looks the same, and may lead elsewhere."""
    mine = run_dir.parent / "mine.yaml"
    mine.write_text(dump(load(run_dir / RECIPE, [f"run_dir={run_dir}"])))
    (run_dir / RECIPE).write_text(mine.read_text().replace("/code/mine.py", "/link/../code/mine.py"))
    ran: list[tuple[Any, ...]] = []
    monkeypatch.setattr("asyncrl.orchestrator.run.resume", lambda *arguments: ran.append(arguments) or 0)
    assert main(["train", str(mine), "--or-resume"]) == 0
    assert ran[0][1].reward == f"{run_dir.parent}/code/mine.py:reward"


def test_a_lock_is_not_written_through_a_link(run_dir: Path) -> None:
    (run_dir.parent / "precious").write_text("mine")
    (run_dir / ".lock").symlink_to(run_dir.parent / "precious")
    with pytest.raises(UserError, match="cannot write to"), RunLock(run_dir):
        pass
    assert (run_dir.parent / "precious").read_text() == "mine"
