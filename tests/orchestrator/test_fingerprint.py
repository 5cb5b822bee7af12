"""A run knows what it was begun with by its contents; another is refused, or accepted and kept in mind."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.buffer.records import ControlLog
from asyncrl.cli import arguments, main
from asyncrl.control.controller import Controller
from asyncrl.control.messages import GeneratorJoined, GroupFinished, Start, Train, WeightsLive
from asyncrl.control.settings import Settings
from asyncrl.data.check import load_tasks
from asyncrl.data.sft import load_source
from asyncrl.data.tasks import Draws
from asyncrl.errors import UserError
from asyncrl.models import tiny_tokenizer
from asyncrl.orchestrator.fingerprint import (
    Fingerprint,
    changes,
    compared,
    read,
    require_demonstrations,
    shapes_training,
    taken,
    trained_anew_at,
)
from asyncrl.orchestrator.kinds import KINDS
from asyncrl.recipe.load import control_settings, dump, load
from asyncrl.recipe.schema import Recipe

REWARD = "def reward(completion, **row): return 1.0\n"


class Tokenizer:
    chat_template = "{{ messages }}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(tmp_path / "rows.jsonl", range(12))
    (tmp_path / "mine.py").write_text(REWARD)
    (tmp_path / "run").mkdir()
    return tmp_path


def write_rows(path: Path, numbers: range) -> None:
    path.write_text("".join(json.dumps({"prompt": f"row {i}"}) + "\n" for i in numbers))


def take(folder: Path, tokenizer: Any = Tokenizer, seed: int = 0, **keys: Any) -> Fingerprint:
    data = {
        "path": str(folder / "rows.jsonl"),
        **{k: v for k, v in keys.items() if k not in ("model", "reward", "algorithm")},
    }
    recipe = Recipe(
        model=keys.get("model", "model"),
        data=data,
        reward=keys.get("reward", "./mine.py:reward"),
        algorithm=keys.get("algorithm", {}),
        max_steps=1,
        seed=seed,
    )
    demonstrations = load_source(recipe, folder, tiny_tokenizer()) if recipe.algorithm.sft else None
    return taken(recipe, folder, load_tasks(recipe, folder), tokenizer, demonstrations)


def run_of(num_ready: int = 0) -> Controller:
    """Tasks 0 and 1 are being trained, the last `num_ready` are ready, those between are running."""
    controller = Controller(Settings(groups_per_step=2, max_staleness=9, max_steps=99, tokens_per_group=9))
    controller.handle(GeneratorJoined("a"))
    controller.handle(WeightsLive(0))
    decisions = controller.decide()
    started = [d for d in decisions if isinstance(d, Start)]
    for start in started[:2]:
        controller.handle(GroupFinished(start.task, 0, 0, 0, 5))
    assert any(isinstance(d, Train) for d in controller.decide())
    for start in started[-1 : -1 - num_ready : -1]:
        controller.handle(GroupFinished(start.task, 0, 0, 0, 5))
    return controller


def test_the_same_elsewhere_is_the_same(folder: Path) -> None:
    take(folder).write(folder / "run")
    assert read(folder / "run") == take(folder)
    (folder / "moved").mkdir()
    with gzip.open(folder / "moved" / "again.jsonl.gz", "wb") as file:
        file.write((folder / "rows.jsonl").read_bytes())
    shutil.copy(folder / "mine.py", folder / "moved" / "other.py")
    elsewhere = take(folder, path=str(folder / "moved/again.jsonl.gz"), reward="./moved/other.py:reward")
    assert compared(folder / "run", elsewhere, (), run_of(), {}) == take(folder)
    assert changes(folder / "run") == []


def changed_rows(folder: Path) -> None:
    write_rows(folder / "rows.jsonl", range(100, 105))


def changed_gold(folder: Path) -> None:
    text = (folder / "rows.jsonl").read_text()
    (folder / "rows.jsonl").write_text(text.replace("row 7", "row 8"))


def changed_reward(folder: Path) -> None:
    (folder / "mine.py").write_text(REWARD.replace("1.0", "0.5"))


def nothing(folder: Path) -> None: ...


class Other(Tokenizer):
    chat_template = "{{ messages }} "


@pytest.mark.parametrize(
    ("change", "keys", "kind", "what"),
    [
        (changed_rows, {}, "data", "rows was 12, is 5, other content"),
        (changed_gold, {}, "data", "other content"),
        (nothing, {"seed": 1}, "data", "seed was 0, is 1"),
        (nothing, {"shuffle": False}, "data", "shuffle was true, is false"),
        (changed_reward, {}, "reward", "other source"),
        (nothing, {"reward": "asyncrl.rewards.math:exact_match"}, "reward", 'function was "reward", is "exact_match"'),
        (nothing, {"chat": True, "system": "x"}, "prompt", 'chat was false, is true, system was null, is "x"'),
        (nothing, {"tokenizer": Other()}, "prompt", "other chat template"),
    ],
)
def test_another_is_refused_by_kind_or_accepted(
    folder: Path, caplog: pytest.LogCaptureFixture, change: Any, keys: dict[str, Any], kind: str, what: str
) -> None:
    if kind == "reward":
        (folder / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    run_dir = folder / "run"
    take(folder).write(run_dir)
    before = run_dir.joinpath("fingerprint.json").read_text()
    change(folder)
    now = take(folder, **keys)
    for accepted in ((), set(KINDS) - {kind}):
        with pytest.raises(UserError, match=rf"run was begun with another {kind} \({what}") as caught:
            compared(run_dir, now, accepted, run_of(), {})
        assert f"resume with `--accept {kind}` too, which {KINDS[kind]}" in str(caught.value)
    assert run_dir.joinpath("fingerprint.json").read_text() == before
    goes_on = compared(run_dir, now, {kind}, run_of(), {})
    assert f"from step 1 on with another {kind}" in caplog.text
    goes_on.write(run_dir)
    assert [(c["step"], c["kind"]) for c in changes(run_dir)] == [(0, kind)]
    assert compared(run_dir, now, (), run_of(), {}) == goes_on
    compared(run_dir, now, (), run_of(), {"trainer.learning_rate": (0.1, 0.2)}).write(run_dir)
    key = "trainer.learning_rate"
    last = {"step": 0, "trained_from": 0, "kind": "recipe", "key": key, "what": f"{key} was 0.1, is 0.2"}
    assert changes(run_dir)[1:] == [last]


def test_another_loss_is_another_training(folder: Path) -> None:
    own = {"algorithm": {"loss": "./mine.py:loss"}}
    take(folder, **own).write(folder / "run")
    ours = dict.fromkeys(("loss", "advantage", "correction", "engine", "trainer", "teachers", "demonstrations"))
    assert take(folder).parts["training"] == ours
    changed_reward(folder)
    with pytest.raises(UserError, match=r"another training \(other loss\); .*--accept reward,training"):
        compared(folder / "run", take(folder, **own), (), run_of(), {})


def test_another_teacher_is_another_training_and_a_moved_one_is_not(folder: Path) -> None:
    for name, layers in (("big", 2), ("other", 3)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))
    take(folder, algorithm={"teacher": "big"}).write(folder / "run")
    shutil.move(folder / "big", folder / "moved")
    compared(folder / "run", take(folder, algorithm={"teacher": "moved"}), (), run_of(), {})
    with pytest.raises(UserError, match=r"another training \(other teachers\); .*--accept training"):
        compared(folder / "run", take(folder, algorithm={"teacher": "other"}), (), run_of(), {})
    hinted = {"model": "moved", "hint": "{prompt} Briefly."}
    with pytest.raises(UserError, match=r"another training \(other teachers\)"):
        compared(folder / "run", take(folder, algorithm={"teacher": hinted}), (), run_of(), {})


def test_a_server_may_move_and_another_model_of_it_is_another_teacher(folder: Path) -> None:
    served = {"model": "big", "url": "http://a:8000", "tokenizer": "t"}
    take(folder, algorithm={"teacher": served}).write(folder / "run")
    compared(folder / "run", take(folder, algorithm={"teacher": {**served, "url": "http://b:8000"}}), (), run_of(), {})
    with pytest.raises(UserError, match=r"another training \(other teachers\)"):
        compared(folder / "run", take(folder, algorithm={"teacher": {**served, "model": "x"}}), (), run_of(), {})


def test_other_demonstrations_are_another_training_and_moved_ones_are_not(folder: Path) -> None:
    for name, answer in (("first", "b"), ("other", "c")):
        (folder / f"{name}.jsonl").write_text(json.dumps({"prompt": "a", "completion": answer}) + "\n")
    sft = {name: {"sft": {"data": {"path": f"{name}.jsonl"}}} for name in ("first", "moved", "other")}
    take(folder, algorithm=sft["first"]).write(folder / "run")
    shutil.move(folder / "first.jsonl", folder / "moved.jsonl")
    compared(folder / "run", take(folder, algorithm=sft["moved"]), (), run_of(), {})
    for now in (take(folder, algorithm=sft["other"]), take(folder)):
        with pytest.raises(UserError, match=r"another training \(other demonstrations\); .*--accept training"):
            compared(folder / "run", now, (), run_of(), {})


def test_a_replay_wants_the_demonstrations_of_the_run(folder: Path) -> None:
    rows = folder / "first.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    sft = {"sft": {"data": {"path": rows.name}}}
    take(folder, algorithm=sft).write(folder / "run")
    keys = {"model": "random:tiny-llama", "data": {"path": "rows.jsonl"}, "reward": "./mine.py:reward", "max_steps": 1}
    recipe = Recipe.model_validate({**keys, "algorithm": sft})
    require_demonstrations(folder / "run", recipe, folder)
    rows.write_text(json.dumps({"prompt": "a", "completion": "c"}) + "\n")
    with pytest.raises(UserError, match=r"was begun with other demonstrations than there are in first.jsonl"):
        require_demonstrations(folder / "run", recipe, folder)
    require_demonstrations(folder / "run", Recipe.model_validate(keys), folder)


@pytest.mark.parametrize("key", ["trainer.learning_rate", "algorithm.clip_low", "trainer.ranks", "max_steps"])
def test_steps_are_not_trained_again_otherwise_without_a_word(folder: Path, key: str) -> None:
    run_dir, keys, run = folder / "run", {key: (1, 2)}, run_of()
    run._steps_done = 8
    take(folder).write(run_dir)
    if not shapes_training(key):
        compared(run_dir, take(folder), (), run, keys, again=3).write(run_dir)
        # One process repeats no sums of several ranks.
        assert trained_anew_at(run_dir) == (5 if key == "trainer.ranks" else 0)
        return
    assert changes(run_dir) == []
    compared(run_dir, take(folder), (), run_of(), keys)
    with pytest.raises(
        UserError, match=rf"{key} was 1, is 2, and the 3 steps since the last checkpoint are trained ag"
    ):
        compared(run_dir, take(folder), {"data"}, run_of(), keys, again=3)
    compared(run_dir, take(folder), {"training"}, run, keys, again=3).write(run_dir)
    assert {change["kind"] for change in changes(run_dir)} == {"training", "recipe"}
    assert trained_anew_at(run_dir) == 5


def test_several_kinds_are_one_sentence(folder: Path) -> None:
    take(folder).write(folder / "run")
    changed_rows(folder)
    changed_reward(folder)
    with pytest.raises(
        UserError, match=r"another data \(rows was .*\) and another reward \(.*--accept data,reward` too, which"
    ):
        compared(folder / "run", take(folder), {"prompt"}, run_of(), {})


def test_a_run_without_one_goes_on_with_a_word(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert compared(folder / "run", take(folder), (), run_of(), {}) == take(folder)
    assert "says nothing of what it was begun with" in caplog.text


def test_a_fact_that_another_version_keeps_is_no_difference(folder: Path) -> None:
    run_dir, now = folder / "run", take(folder)
    older = {kind: dict(list(facts.items())[:1]) for kind, facts in now.parts.items()}
    Fingerprint({**older, "prompt": {"a fact": 1}}).write(run_dir)
    assert compared(run_dir, now, (), run_of(), {}) == now


def test_rows_that_are_left_out_are_other_data(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Draws are numbers of what is left: others left out would be other rows from there on."""
    (folder / "rows.jsonl").write_text((folder / "rows.jsonl").read_text() * 2)
    take(folder).write(folder / "run")
    now = take(folder, deduplicate=True)
    with pytest.raises(UserError, match=r'another data \(left out was \{\}, is \{"duplicate": 12\}, other content\)'):
        compared(folder / "run", now, (), run_of(), {})
    controller = run_of()
    (task, attempt), *_ = controller.running()
    controller.handle(GroupFinished(task, attempt, 0, 0, 5, skip=(task, 99)))
    compared(folder / "run", now, {"data"}, controller, {})
    assert "1 draws that were to be skipped stay so" in caplog.text


def test_new_data_begins_at_its_first_row(folder: Path) -> None:
    """What was in flight is started again with the first rows, what is drawn next has those after; and none has the
    number of an old row."""
    take(folder, shuffle=False).write(folder / "run")
    changed_rows(folder)
    controller = run_of(num_ready=3)
    drawn = controller.ledger.drawn
    recipe = Recipe(
        model="model",
        data={"path": str(folder / "rows.jsonl"), "shuffle": False},
        reward="./mine.py:reward",
        max_steps=1,
    )
    tasks = load_tasks(recipe, folder)
    tasks.draws = compared(folder / "run", take(folder, shuffle=False), {"data"}, controller, {}).draws
    assert tasks.draws.again == list(range(2, drawn - 3))
    draws = [*tasks.draws.again, *range(drawn, drawn + 5)]
    found = [tasks.task(draw) for draw in draws]
    assert [task.prompt for task in found] == [f"row {100 + i % 5}" for i in range(len(draws))]
    assert [task.row_index for task in found] == [12 + i % 5 for i in range(len(draws))]
    assert {task.number for task in found} == set(draws)


@given(st.integers(0, 50), st.sets(st.integers(0, 49)))
def test_every_place_is_taken_once(first: int, again: set[int]) -> None:
    draws = Draws(first, sorted(draw for draw in again if draw < first))
    places = [draws.place(draw) for draw in [*draws.again, *range(first, first + 20)]]
    assert places == list(range(len(places)))


def test_the_command_line_knows_the_kinds() -> None:
    assert arguments.parse(["resume", "runs/x", "--accept", "data,prompt", "a=b"]).accept == ["data", "prompt"]
    with pytest.raises(UserError, match="'dat' is not one of data, reward, prompt"):
        arguments.parse(["resume", "runs/x", "--accept", "dat"])


def test_a_resume_asks_before_anything_is_started_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = Path(__file__).resolve().parents[2] / "recipes" / "tiny.yaml"
    write_rows(Path("rows.jsonl"), range(12))
    Path("mine.py").write_text(REWARD)
    recipe = load(tiny, ["data.path=./rows.jsonl", "data.options={}", "reward=./mine.py:reward"])
    run_dir = Path("run")
    run_dir.mkdir()
    (run_dir / "recipe.yaml").write_text(dump(recipe))
    taken(recipe, tmp_path, load_tasks(recipe, tmp_path), tiny_tokenizer()).write(run_dir)
    ControlLog(run_dir / "journal", Controller(control_settings(recipe)).state()).close()

    def start(recipe: Recipe) -> None:
        raise UserError("Ray is started")

    monkeypatch.setattr("asyncrl.cluster.ray_cluster.start", start)
    monkeypatch.setattr("asyncrl.cluster.ray_cluster.stop", lambda **_: None)
    assert main(["resume", "run"]) == 2
    assert "Ray is started" in capfd.readouterr().err
    changed_rows(tmp_path)
    changed_reward(tmp_path)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"}
    for accepted in ([], ["--accept", "data"], ["--accept", "reward"]):
        assert main(["resume", "run", *accepted]) == 2
        assert "run was begun with another" in capfd.readouterr().err
    assert main(["resume", "run", "--accept", "reward,data"]) == 2
    assert "Ray is started" in capfd.readouterr().err
    after = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


@pytest.mark.parametrize(
    "content", ['{"x": 1}', '{"parts": 1, "draws": {}, "changes": []}', '{"parts": {}, "draws": 5}']
)
def test_a_file_of_another_kind_is_a_sentence(folder: Path, content: str) -> None:
    (folder / "fingerprint.json").write_text(content)
    with pytest.raises(UserError, match=r"fingerprint.json is not of a run"):
        read(folder)
