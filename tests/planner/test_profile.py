"""Plans from the metrics of a run: made up, or simulated, so that what they should say is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from asyncrl.buffer.log import JournalWriter
from asyncrl.buffer.records import GROUP, GROUPS_STREAM
from asyncrl.cli import main
from asyncrl.errors import UserError
from asyncrl.models import MODEL_FILE, fingerprint
from asyncrl.observe.metrics import shares
from asyncrl.planner import profile, show
from asyncrl.planner.engine import DecodeSpeed
from asyncrl.planner.figures import figures
from asyncrl.planner.lengths import Lengths
from asyncrl.planner.plan import Plan, plan
from asyncrl.planner.simulation import Record, Scene, simulate
from asyncrl.recipe.load import control_settings, dump, load
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.trajectory import Group, Trajectory, encode

ROOT = Path(__file__).parents[2]
GENERATE_S, TRAIN_S, PUSH_S, DRIVER_S, TOKENS = 3.0, 6.0, 0.5, 0.25, 8
"""Of a step of the made-up run, which takes its turns; and tokens of each of its completions."""


def recipe(*overrides: str, name: str = "gsm8k-qwen") -> Recipe:
    return load(ROOT / f"recipes/{name}.yaml", overrides)


def write_run(folder: Path, ran: Recipe, records: list[dict[str, Any]], lengths: list[int]) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump(ran))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    lines = [json.dumps({"step": 0, "tokens": ["x"] * tokens}) + "\n" for tokens in lengths]
    (folder / "samples.jsonl").write_text("".join(lines))
    return folder


def of_run(record: Record, ran: Recipe, push_s: float) -> dict[str, Any]:
    """A simulated step with what else metrics.jsonl has."""
    groups = ran.groups_per_step
    trained = {"groups/trained": groups * (record["step"] + 1), "groups/filtered": 0, "publish/pause_s": push_s}
    return {**record, **trained}


@pytest.fixture
def turns(tmp_path: Path) -> Path:
    """A run without staleness on CPUs, in which everything is known."""
    ran = recipe("max_staleness=0", "rollout.engine=simulated", "checkpoint.every_steps=0", name="tiny")
    num_samples, wall_s = ran.groups_per_step * ran.group_size, GENERATE_S + TRAIN_S + PUSH_S + DRIVER_S
    trainer = shares({"busy": TRAIN_S, "wait_batch": GENERATE_S + PUSH_S, "wait_publish": 0, "checkpoint": 0}, wall_s)
    generator = {"busy": GENERATE_S / wall_s, "paused": PUSH_S / wall_s, "idle": (TRAIN_S + DRIVER_S) / wall_s}
    records = [
        {
            "step": step,
            "throughput/samples_per_s": num_samples / wall_s,
            "completion/tokens_mean": TOKENS,
            "tokens/generated": num_samples * TOKENS * (step + 1),
            "tokens/trained": num_samples * TOKENS,
            "staleness/mean": 0.0,
            "staleness/max": 0,
            "publish/pause_s": PUSH_S,
            "groups/filtered": 0,
            "groups/trained": ran.groups_per_step * (step + 1),
            **{f"trainer_time/{name}": share for name, share in trainer.items()},
            **{f"generator_time/{name}": share for name, share in generator.items()},
        }
        for step in range(8)
    ]
    return write_run(tmp_path / "runs/turns", ran, records, [TOKENS] * 16)


def on_cpus(run_dir: Path, *overrides: str) -> Plan:
    found = profile.read(run_dir)
    return plan(load(run_dir / "recipe.yaml", overrides), ROOT, 0, profile=found)


def test_a_run_too_large_to_simulate_is_refused(turns: Path) -> None:
    """Each number of it would do."""
    text = (turns / "recipe.yaml").read_text()
    keys = yaml.safe_load(text) | {"max_staleness": 1000, "groups_per_step": 1000, "group_size": 1000}
    (turns / "recipe.yaml").write_text(yaml.safe_dump(keys))
    with pytest.raises(UserError, match=r"has 1001000000 trajectories in flight at once, a simulation would make"):
        profile.read(turns)


def test_of_a_run_that_waited_for_rewards_a_plan_says_so(turns: Path) -> None:
    """It simulates none, and would have more generators bought."""
    lines = (turns / "metrics.jsonl").read_text().splitlines()
    assert not any("reward-bound" in said for said in show.lines(on_cpus(turns)))
    waited = [json.dumps(json.loads(line) | {"reward_time/waiting": 0.9}) + "\n" for line in lines]
    (turns / "metrics.jsonl").write_text("".join(waited))
    assert any(
        "was reward-bound: its generators only waited for rewards 90 %" in said for said in show.lines(on_cpus(turns))
    )


def test_a_profile_gives_its_own_run_again(turns: Path) -> None:
    (row,) = on_cpus(turns).rows
    assert row.figures.step_s == pytest.approx(GENERATE_S + TRAIN_S + PUSH_S + DRIVER_S, rel=1e-3)
    assert row.figures.seconds("trainer_time/busy") == pytest.approx(TRAIN_S, rel=1e-3)
    assert row.figures.seconds("generator_time/busy") == pytest.approx(GENERATE_S, rel=1e-3)
    assert row.figures.seconds("generator_time/paused") == pytest.approx(PUSH_S, rel=1e-3)
    assert row.limit.startswith("taking turns: ")


def test_a_profile_of_turns_says_what_staleness_would_give(turns: Path) -> None:
    """The trainer is then busy all the time, but for the driver's part."""
    (row,) = on_cpus(turns, "max_staleness=1").rows
    assert row.figures.step_s == pytest.approx(TRAIN_S + DRIVER_S, rel=1e-3)
    assert row.limit.startswith("trainer-bound: ")
    assert row.figures.staleness_max == 1
    assert any(said.startswith("caution ") for said in show.lines(on_cpus(turns, "max_staleness=1")))
    assert not any(said.startswith("caution ") for said in show.lines(on_cpus(turns)))


def test_longer_answers_take_longer(turns: Path) -> None:
    """What max_new_tokens cuts, costs neither role anything."""
    (row,) = on_cpus(turns, "rollout.max_new_tokens=4").rows
    half = (GENERATE_S + TRAIN_S) / 2 + PUSH_S + DRIVER_S
    assert row.figures.step_s == pytest.approx(half, rel=1e-3)


@pytest.mark.parametrize("staleness", [0, 1, 4])
def test_a_profile_of_one_staleness_predicts_others(staleness: int, tmp_path: Path) -> None:
    """A run with a long tail, a trainer as slow as its engine, and max_staleness 2 is measured; the plan sees only its
    metrics, not its speeds. What it cannot see is how the engine's speed depends on the number of sequences."""
    ran = recipe("max_staleness=2", "rollout.max_new_tokens=400", "checkpoint.every_steps=0", name="arithmetic")
    scene = Scene(
        group_size=ran.group_size,
        lengths=Lengths.log_normal(100, 400),
        replicas=1,
        decode=DecodeSpeed(0.03, 0.0002, 256),
        train_token_s=0.0008,
        push_s=0.4,
        driver_s=0.1,
    )
    records = simulate(replace(control_settings(ran), max_steps=40), scene)
    lengths = [round(scene.lengths.values[i]) for i in range(5, 1000, 10)]
    run_dir = write_run(tmp_path / "run", ran, [of_run(r, ran, scene.push_s) for r in records], lengths)
    (row,) = on_cpus(run_dir, f"max_staleness={staleness}").rows
    truth = simulate(replace(control_settings(ran), max_staleness=staleness, max_steps=60), scene)[10:-10]
    expected = figures(truth, ran.groups_per_step * ran.group_size, 1)
    assert row.figures.samples_per_s == pytest.approx(expected.samples_per_s, rel=0.1)


def test_a_run_on_gpus_corrects_the_formulas(tmp_path: Path) -> None:
    """A run that was half as fast as the formulas say makes a plan for more GPUs half as fast."""
    ran = recipe("checkpoint.every_steps=0")
    by_formula = plan(ran, ROOT, 2).rows[0].scene
    slow = replace(
        by_formula,
        decode=by_formula.decode.scaled(2),
        train_token_s=2 * by_formula.train_token_s,
        train_step_s=2 * by_formula.train_step_s,
        push_s=2 * by_formula.push_s,
    )
    records = simulate(replace(control_settings(ran), max_steps=24), slow)
    lengths = [round(value) for value in slow.lengths.values[5::10]]
    run_dir = write_run(tmp_path / "run", ran, [of_run(r, ran, slow.push_s) for r in records[4:-3]], lengths)
    more = recipe("checkpoint.every_steps=0", "rollout.replicas=2", "trainer.ranks=2")
    formula, corrected = (plan(more, ROOT, 4, profile=p).as_it_stands for p in (None, profile.read(run_dir)))
    assert formula is not None
    assert corrected is not None
    assert formula.figures.samples_per_s == pytest.approx(2 * corrected.figures.samples_per_s, rel=0.15)


@pytest.mark.parametrize("key", ["max_staleness: 1000000", "groups_per_step: 1000000000"])
def test_a_run_that_cannot_be_simulated_is_refused(turns: Path, key: str) -> None:
    path = turns / "recipe.yaml"
    name = key.partition(":")[0]
    lines = [line for line in path.read_text().splitlines() if not line.startswith(name)]
    path.write_text("\n".join([*lines, key]) + "\n")
    with pytest.raises(UserError, match=r"its recipe has max_staleness .* cannot be simulated; take another$"):
        on_cpus(turns)


def test_figures_that_cannot_be_calculated_with_are_refused(turns: Path) -> None:
    path = turns / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record |= dict.fromkeys(record.keys() - {"step", "time_s", "tokens/generated"}, 1e-300)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(UserError, match=r"its metrics are not those of a run"):
        on_cpus(turns)


def test_prompts_are_as_long_as_the_journal_says(turns: Path) -> None:
    """What the trainer's passes share says nothing of them: trajectories without a gradient do not pass."""
    on_gpus = recipe("rollout.max_prompt_tokens=100", name="tiny")
    (said,) = (line for line in show.lines(plan(on_gpus, ROOT, 2, profile=profile.read(turns))) if "lengths" in line)
    assert said.endswith("completions of 8 tokens; assumed: prompts of 25, as its journal has none")
    writer = JournalWriter(turns / "journal", GROUPS_STREAM)
    for task, prompt in enumerate((10, 20, 30)):
        tokens = np.zeros(prompt + 4, np.int32)
        sampled = np.arange(prompt + 4) >= prompt
        one = Trajectory(tokens, sampled - 1, np.zeros(prompt + 4, np.float32), sampled, 1.0, "stop")
        writer.append(GROUP, encode(Group(task, 0, task, (one, one))))
    writer.close()
    found = plan(on_gpus, ROOT, 2, profile=profile.read(turns))
    assert found.work.prompt_tokens == 20
    assert ": prompts of 20 tokens and completions of 8" in found.work.origin


def test_a_model_is_known_by_its_folder_however_it_is_named(
    turns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "models/one"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "llama"}')
    ran = load(turns / "recipe.yaml")
    (turns / "recipe.yaml").write_text(dump(ran.model_copy(update={"model": str(model)})))
    monkeypatch.chdir(tmp_path)
    asked = ran.model_copy(update={"model": "models/one"})
    assert plan(asked, tmp_path, 0, profile=profile.read(turns)).rows
    (turns / MODEL_FILE).write_text(json.dumps({"fingerprint": fingerprint(str(model))}))
    moved = ran.model_copy(update={"model": "models/moved"})
    model.rename("models/moved")
    assert plan(moved, tmp_path, 0, profile=profile.read(turns)).rows
    (tmp_path / "models/moved/config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(UserError, match="take a run of the same model"):
        plan(moved, tmp_path, 0, profile=profile.read(turns))


def test_of_a_run_on_cpus_a_plan_for_gpus_takes_the_lengths(turns: Path) -> None:
    found = plan(recipe(name="tiny"), ROOT, 2, profile=profile.read(turns))
    assert found.work.lengths.mean == pytest.approx(TOKENS)
    assert any("ran on CPUs" in said for said in show.lines(found))


FAULTS = {
    "--gpus 1 --gpu L4": "one L4 (22 GiB) has no room for trainer and generator of Qwen/Qwen2.5-1.5B-Instruct: ",
    "--gpus 0": "a recipe on CPUs (--gpus 0) has no figures to go by: say --profile RUN_DIR",
    "--gpus 2 --gpu H1000": "--gpu H1000 is not known; known are A100-40GB",
    "model=some/model": "model some/model: nothing here knows its sizes; download it",
    "model=Qwen/Qwen3-32B --gpus 32 trainer.lora.rank=16 weights.channel=auto": (
        "trainer: with adapters a rank loads the whole model in fp32 before it is rounded, 124 GiB"
    ),
    "model=Qwen/Qwen3-32B --gpus 2 --gpu L40S": "rollout: Qwen/Qwen3-32B does not fit 1 x L40S",
    "trainer.tokens_per_microbatch=400000": "trainer: each of 1 rank(s) needs ",
    "--gpus two": "argument --gpus: 'two' is not a whole number",
    "--profile runs/none": "--profile runs/none is not a run directory: it has no recipe.yaml",
    "--profile RUN --gpus 0": "is of a run of random:tiny-llama, the plan is for Qwen/Qwen2.5-1.5B-Instruct; take",
    "--profile SHORT": "has 2 steps; a plan needs a run of at least 4",
}


@pytest.mark.parametrize("arguments", FAULTS)
def test_what_does_not_fit_is_said_in_a_sentence(
    arguments: str, turns: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = turns.parent / "short"
    if "SHORT" in arguments:
        lines = (turns / "metrics.jsonl").read_text().splitlines(keepends=True)[:2]
        write_run(short, load(turns / "recipe.yaml"), [json.loads(line) for line in lines], [])
    words = arguments.replace("RUN", str(turns)).replace("SHORT", str(short)).split()
    assert main(["plan", str(ROOT / "recipes/gsm8k-qwen.yaml"), *words]) == 2
    said = capsys.readouterr().err
    assert FAULTS[arguments] in said
    assert said.count("\n") == 1


def test_on_cpus_another_number_of_roles_is_refused(turns: Path) -> None:
    with pytest.raises(UserError, match=r"trainer.ranks is 2, and was 1 in --profile .*: on CPUs the roles share"):
        on_cpus(turns, "trainer.ranks=2")
