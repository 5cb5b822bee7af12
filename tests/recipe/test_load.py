import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.errors import UserError
from asyncrl.recipe.check import check
from asyncrl.recipe.load import dump, load, worst_case_staleness
from asyncrl.recipe.schema import Recipe
from asyncrl.recipe.trainer import OptimizerRecipe

MINIMAL = "model: random:tiny-llama\ndata: {path: rows.jsonl}\nreward: m:f\nmax_steps: 3\n"
RECIPES = sorted(Path(__file__).parents[2].glob("recipes/*.yaml"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(MINIMAL)
    return tmp_path


def write(name: str, text: str) -> Path:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return Path(name)


def test_a_mapping_on_the_command_line_replaces(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: a/b\ndata: {path: x, options: {a: 1, b: 2}}\nreward: m:f\nmax_steps: 1\n")
    assert load(recipe, ["data.options={}"]).data.options == {}
    assert load(recipe, ["data.options={b: 3}"]).data.options == {"b": 3}
    assert load(recipe, ["data.options.b=3"]).data.options == {"a": 1, "b": 3}


GYM = "model: a/b\ndata: {path: reasoning_gym:x, options: {a: 1}, split: s, chat: true}\nreward: m:f\nmax_steps: 1\n"


@pytest.mark.parametrize(
    ("own", "overrides", "options", "split"),
    [
        ("data: {path: tasks.jsonl}", [], {}, "train"),
        ("data: {path: tasks.jsonl, options: {}}", [], {}, "train"),
        ("data: {path: tasks.csv, options: {sep: ;}}", [], {"sep": ";"}, "train"),
        ("seed: 1", ["data.path=tasks.jsonl"], {}, "train"),
        ("seed: 1", ["data.options.sep=;", "data.path=tasks.csv", "data.split=t"], {"sep": ";"}, "t"),
        ("data: {path: 'reasoning_gym:x', options: {b: 2}}", [], {"a": 1, "b": 2}, "s"),
        ("data: {options: {}}", [], {}, "s"),
        ("data: {options: {b: 2}}", [], {"a": 1, "b": 2}, "s"),
    ],
)
def test_other_data_has_nothing_of_what_described_the_data_below(
    tmp_path: Path, own: str, overrides: list[str], options: dict[str, object], split: str
) -> None:
    (tmp_path / "base.yaml").write_text(GYM)
    (tmp_path / "r.yaml").write_text(f"base: base.yaml\n{own}\n")
    data = load(tmp_path / "r.yaml", overrides).data
    assert (data.options, data.split, data.chat) == (options, split, True)


def test_an_empty_mapping_in_a_file_clears_what_is_below(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(GYM + "rollout: {max_new_tokens: 5, engine_args: {a: 1}}\n")
    (tmp_path / "r.yaml").write_text("base: base.yaml\nrollout: {engine_args: {}}\n")
    rollout = load(tmp_path / "r.yaml").rollout
    assert (rollout.engine_args, rollout.max_new_tokens) == ({}, 5)


def test_overrides_have_yaml_types_and_may_add_keys_below_mappings(folder: Path) -> None:
    recipe = load(
        Path("r.yaml"),
        [
            "trainer.learning_rate=1e-3",
            "rollout.engine_args.x=1",
            "rollout.engine_args.y.z=[a, true]",
            "run_dir=runs/a=b",
            "rollout.cpu_cores=0",
            "track.wandb=off",
            "max_steps=4",
            "max_steps=5",
        ],
    )
    assert recipe.trainer.learning_rate == 1e-3
    assert recipe.rollout.engine_args == {"x": 1, "y": {"z": ["a", True]}}
    assert recipe.run_dir == "runs/a=b"
    assert recipe.rollout.cpu_cores == "0"
    assert recipe.track.wandb == "off"
    assert recipe.max_steps == 5


def test_the_number_of_generators_may_be_a_range(tmp_path: Path) -> None:
    (path := tmp_path / "r.yaml").write_text(GYM + "rollout: {replicas: {min: 2, max: 8}}\n")

    def replicas(*overrides: str) -> tuple[int, int, int]:
        rollout = load(path, list(overrides)).rollout
        return rollout.fewest_replicas, rollout.first_replicas, rollout.replicas

    assert replicas() == (2, 2, 8)
    assert replicas("rollout.replicas=4") == (1, 4, 4)
    assert replicas("rollout.replicas={min: 3, max: 4}") == (3, 3, 4)
    assert replicas("rollout.replicas.max=9") == (2, 2, 9)
    path.write_text(dump(load(path)))
    assert replicas() == (2, 2, 8)


def test_an_optimizer_option_leaves_the_other_defaults(folder: Path) -> None:
    recipe = load(Path("r.yaml"), ["trainer.optimizer.weight_decay=0.1"])
    assert recipe.trainer.optimizer == OptimizerRecipe(betas=[0.9, 0.95], weight_decay=0.1)


def test_base_files_are_relative_to_the_file_that_names_them_and_lie_below_it(folder: Path) -> None:
    write("a/low.yaml", MINIMAL + "group_size: 2\nseed: 1\nrollout: {replicas: 2, engine_args: {p: 1, q: 1}}\n")
    write("a/mid.yaml", "base: low.yaml\nseed: 2\nmax_steps: 9\n")
    top = write("b/top.yaml", "base: ../a/mid.yaml\nmax_steps: 8\nrollout: {engine_args: {q: 2}}\n")
    recipe = load(top, ["seed=7"])
    assert (recipe.group_size, recipe.seed, recipe.max_steps, recipe.rollout.replicas) == (2, 7, 8, 2)
    assert recipe.rollout.engine_args == {"p": 1, "q": 2}


def test_values_may_refer_to_other_keys(folder: Path) -> None:
    assert load(Path("r.yaml"), ["groups_per_step=${max_steps}"]).groups_per_step == 3


BAD_FILES = {
    "max_stepz: 3": r"bad\.yaml: max_stepz is not a key; did you mean max_steps\?",
    "trainer: {learning_rat: 1}": (
        r"bad\.yaml: trainer\.learning_rat is not a key; did you mean trainer\.learning_rate\?"
    ),
    "max_new_tokens: 1": r"bad\.yaml: max_new_tokens is not a key; did you mean rollout\.max_new_tokens\?",
    "trainer: {lr: 1}": r"bad\.yaml: trainer\.lr is not a key; lr is trainer\.learning_rate here",
    "trainer: {zzz: 1}": r"bad\.yaml: trainer\.zzz is not a key; trainer has the keys ranks, .*, cpu_threads",
    "zzz: 1": r"bad\.yaml: zzz is not a key; a recipe has the keys model, data, .*, ray_address, experimental",
    "5: 1": r"bad\.yaml: 5 is not a key; a recipe has the keys .*",
    "groups_per_step: many": r"bad\.yaml: groups_per_step must be a whole number, got 'many'",
    "group_size: '4'": r"bad\.yaml: group_size must be a whole number, got '4'",
    "group_size: 4.5": r"bad\.yaml: group_size must be a whole number, got 4\.5",
    "group_size: true": r"bad\.yaml: group_size must be a whole number, got true",
    "group_size: null": r"bad\.yaml: group_size must be a whole number, got null",
    "group_size: 0": r"bad\.yaml: group_size must be greater than 0, got 0",
    "max_staleness: -1": r"bad\.yaml: max_staleness must be at least 0, got -1",
    "seed: 4294967296": r"bad\.yaml: seed must be less than 4294967296, got 4294967296",
    "rollout: {top_p: 2}": r"bad\.yaml: rollout\.top_p cuts the sampled distribution, .*; leave it out",
    "rollout: {temperature: 0}": r"bad\.yaml: rollout\.temperature must be greater than 0, got 0",
    "rollout: {temperature: .inf}": r"bad\.yaml: rollout\.temperature must be a finite number, got inf",
    "trainer: {learning_rate: fast}": r"bad\.yaml: trainer\.learning_rate must be a number, got 'fast'",
    "data: {path: x.csv, chat: 1}": r"bad\.yaml: data\.chat must be true or false, got 1",
    "run_dir: 3": r"bad\.yaml: run_dir must be text, got 3; put it in quotes",
    "on_stale: wayt": r"bad\.yaml: on_stale must be 'wait', 'drop' or 'mask', got 'wayt'; did you mean wait\?",
    "algorithm: [grpo]": r"bad\.yaml: algorithm must be a mapping of keys to values, got \['grpo'\]",
    "rollout: {engine_args: 3}": r"bad\.yaml: rollout\.engine_args must be a mapping of keys to values, got 3",
    "reward: ${rewrd}": r"bad\.yaml: reward: Interpolation key 'rewrd' not found",
    "reward: '${}'": r"bad\.yaml: reward: no viable alternative at input '\$\{\}'",
    "reward: [a": r"bad\.yaml: line 2 is not valid YAML: did not find expected ',' or '\]'",
    "seed: 1\nseed: 2": r"bad\.yaml: line 2 is not valid YAML: found duplicate key seed",
    "seed: !!set {x}": r"bad\.yaml: seed: Value 'set' is not a supported primitive type",
    "seed: \x01": r"bad\.yaml: it is not valid YAML: unacceptable character #x0001: .*",
    "- seed": r"bad\.yaml must hold lines of the form key: value",
    "7": r"bad\.yaml must hold lines of the form key: value",
    "base: [r.yaml]": r"bad\.yaml: base must be the path of another recipe, got \['r\.yaml'\]",
    "base: rr.yaml": r"bad\.yaml: base rr\.yaml does not exist; did you mean r\.yaml\?",
    "base: bad.yaml": r"bad\.yaml: base goes in a circle, bad\.yaml -> bad\.yaml; remove one of them",
    "base: .": r"bad\.yaml: base \. cannot be read as a recipe: Is a directory",
    "base: r.yaml\ndata: [x]": r"bad\.yaml: data\.0 must be a mapping of keys to values, got 'x'",
    "data: [{path: a.jsonl, pth: b}]": r"bad\.yaml: data\.0\.pth is not a key; did you mean data\.path\?",
    "data: [{path: a.jsonl, weight: 0}]": r"bad\.yaml: data\.0\.weight must be greater than 0, got 0",
    "data: [{path: a.jsonl}, {path: a.jsonl}]": r"bad\.yaml: data: two parts are called a\.jsonl; give each a name, .*",
    "data: {path: a.jsonl, weight: 2}": r"bad\.yaml: data\.weight is not a key here: it is one where data is a list of "
    "parts",
    "reward: [{fn: 'm:f', wieght: 2}]": r"bad\.yaml: reward\.0\.wieght is not a key; did you mean reward\.weight\?",
    "reward: []": r"bad\.yaml: reward must be a list that is not empty, got \[\]",
    "reward: ['m:f', 'n:f']": r"bad\.yaml: reward: two parts are called f; give each a name, .*",
    "reward: ['m:mean']": r"bad\.yaml: reward: a part is called mean, which the records use; give it another name, .*",
    "reward: ['m:f']\nrewards: {kwargs: {a: 1}}": r".*rewards\.kwargs are of a reward that is one function; give each "
    "part its own kwargs.*",
}


@pytest.mark.parametrize(("lines", "message"), BAD_FILES.items(), ids=lambda text: re.sub(r"\W+", "-", text)[:40])
def test_a_bad_file_is_told_in_one_sentence(folder: Path, lines: str, message: str) -> None:
    # The rest of the recipe is whole, so that only these lines can be the fault.
    own = {line.partition(":")[0] for line in lines.splitlines()}
    rest = [line for line in MINIMAL.splitlines() if line.partition(":")[0] not in own]
    text = lines if lines in ("- seed", "7") else "\n".join([lines, *rest])
    with pytest.raises(UserError) as caught:
        load(write("bad.yaml", text))
    assert re.fullmatch(message, str(caught.value))


@pytest.mark.parametrize("key", ["model", "data", "max_steps"])
def test_a_missing_key_is_named(folder: Path, key: str) -> None:
    text = "".join(f"{line}\n" for line in MINIMAL.splitlines() if not line.startswith(key))
    with pytest.raises(UserError, match=rf"^bad\.yaml: {key} is missing; add it$"):
        load(write("bad.yaml", text))


def test_without_a_reward_it_is_said_what_else_may_be_meant(folder: Path) -> None:
    text = "".join(f"{line}\n" for line in MINIMAL.splitlines() if not line.startswith("reward"))
    with pytest.raises(UserError, match=r"^bad\.yaml: neither `reward` nor `env` is set; .* `asyncrl sft` the recipe"):
        load(write("bad.yaml", text))


def test_rows_with_answers_need_no_reward_and_say_what_that_means(folder: Path) -> None:
    text = "".join(f"{line}\n" for line in MINIMAL.splitlines() if not line.startswith("reward"))
    said = {
        "": ("sft", "none", "token", 1),
        "algorithm.loss=dpo": ("dpo", "none", "sequence", 2),
        "algorithm.preset=online_dpo": ("dpo", "none", "sequence", 2),
        "algorithm.aggregation=sequence": ("sft", "none", "sequence", 1),
    }
    for override, expected in said.items():
        recipe = load(write("rows.yaml", text), ["rollout.engine=data", *filter(None, [override])])
        a = recipe.algorithm
        assert (a.loss, a.advantage, a.aggregation, recipe.group_size) == expected
        assert (a.proximal, recipe.reward) == ("recompute", None)
        assert (recipe.max_tokens, recipe.max_tokens_key) == (4096, "trainer.tokens_per_microbatch")
        assert load(write("stored.yaml", dump(recipe))) == recipe


def test_a_misspelt_required_key_is_named_by_what_was_written(folder: Path) -> None:
    path = write("bad.yaml", MINIMAL.replace("reward", "reword"))
    with pytest.raises(UserError, match=r"^bad\.yaml: reword is not a key; did you mean reward\?$"):
        load(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_steps", r"'max_steps' is not of the form key=value, such as max_steps=20 or trainer\.ranks=1"),
        ("=3", r"'=3' is not of the form key=value, .*"),
        ("trainer..ranks=3", r"'trainer\.\.ranks=3' is not of the form key=value, .*"),
        ("seed=[1", r"seed=\[1: the value is not valid YAML: did not find expected ',' or '\]'"),
        ("trainer.rank=1", r"command line: trainer\.rank is not a key; did you mean trainer\.ranks\?"),
        ("seed=x", r"command line: seed must be a whole number, got 'x'"),
        ("trainer.learning_rate.x=3", r"command line: trainer\.learning_rate must be a number, got \{'x': 3\}"),
        ("model=${x}", r"command line: model: Interpolation key 'x' not found"),
    ],
)
def test_a_bad_override_is_told_in_one_sentence(folder: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(Path("r.yaml"), [override])
    assert re.fullmatch(message, str(caught.value))


def test_the_layer_with_the_fault_is_named(folder: Path) -> None:
    write("low.yaml", MINIMAL + "group_size: x\n")
    top = write("top.yaml", "base: low.yaml\nseed: 1\n")
    with pytest.raises(UserError, match=r"^low\.yaml: group_size"):
        load(top)
    with pytest.raises(UserError, match=r"^top\.yaml: seed"):
        load(write("top.yaml", "base: low.yaml\nseed: y\ngroup_size: 3\n"))


def test_a_longer_circle_of_bases_ends(folder: Path) -> None:
    write("a.yaml", "base: sub/b.yaml\n")
    write("sub/b.yaml", "base: ../a.yaml\n")
    with pytest.raises(UserError, match=r"^sub/b\.yaml: .*a\.yaml -> sub/b\.yaml -> a\.yaml; remove one of them$"):
        load(Path("a.yaml"))


def test_a_missing_recipe_file_names_the_nearest(folder: Path) -> None:
    write("recipes/arithmetic.yaml", MINIMAL)
    with pytest.raises(UserError, match=r"^recipes/arithmetik\.yml does not exist; did you mean recipes/arithmetic\.y"):
        load(Path("recipes/arithmetik.yml"))
    write("recipes/arithmetic.py", "")
    with pytest.raises(UserError, match=r"; did you mean recipes/arithmetic\.yaml\?$"):
        load(Path("recipes/arithmetc.yaml"))
    with pytest.raises(UserError, match=r"^nowhere/x\.yaml does not exist$"):
        load(Path("nowhere/x.yaml"))


@pytest.mark.parametrize(
    ("name", "base", "cure"),
    [
        ("dapo-7b", None, "dapo-7b does not exist; `asyncrl recipes copy dapo-7b` makes dapo-7b.yaml"),
        ("sub/a.yaml", "tiny", "sub/tiny does not exist; `asyncrl recipes copy tiny sub` makes sub/tiny.yaml"),
        ("a.yaml", "./in/tiny.yaml", "in/tiny.yaml does not exist; `asyncrl recipes copy tiny in` makes in/tiny.yaml"),
    ],
)
def test_a_missing_recipe_that_is_shipped_can_be_copied(folder: Path, name: str, base: str | None, cure: str) -> None:
    if base:
        write(name, f"base: {base}\n")
    with pytest.raises(UserError) as caught:
        load(Path(name))
    assert str(caught.value) == (f"{name}: base {cure}" if base else cure)


def test_a_base_that_is_not_beside_the_recipe_may_be_in_the_working_directory(folder: Path) -> None:
    write("recipes/below.yaml", MINIMAL)
    write("mine/a.yaml", "base: recipes/below.yaml\nseed: 7\n")
    assert load(Path("mine/a.yaml")).seed == 7


def test_a_file_that_is_no_text_is_refused(folder: Path) -> None:
    Path("weights.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"^weights\.bin cannot be read as a recipe: it is not UTF-8 text$"):
        load(Path("weights.bin"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_short_and_survive_dump_and_load(path: Path, tmp_path: Path) -> None:
    recipe = load(path)
    dumped = tmp_path / "recipe.yaml"
    dumped.write_text(dump(recipe))
    assert load(dumped) == recipe
    assert len(path.read_text().splitlines()) <= 40


def test_dump_has_plain_keys_in_the_order_of_the_schema(folder: Path) -> None:
    text = dump(load(Path("r.yaml"), ["max_staleness=12"]))
    assert re.findall(r"^(\w+):", text, re.M) == list(Recipe.model_fields)
    found = re.search(r"^max_staleness:\s*(\d+)", text, re.M)
    assert found is not None
    assert found[1] == "12"


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
SCALARS = st.one_of(
    TEXTS,
    st.text(alphabet="\\${}: 'x\n#"),
    st.sampled_from(["off", "1e-3", "null", "0x1", "2020-01-01", "1_000", "~", "${a}", "\\${a}"]),
    st.integers(),
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False),
)
TREES = st.dictionaries(TEXTS.filter(bool), st.recursive(SCALARS, lambda x: st.lists(x) | st.dictionaries(TEXTS, x)))


@settings(max_examples=60, deadline=None)
@given(system=SCALARS.filter(lambda v: v is None or isinstance(v, str)), arguments=TREES)
def test_load_of_dump_is_the_same_recipe(
    tmp_path_factory: pytest.TempPathFactory, system: str, arguments: dict
) -> None:
    recipe = Recipe.model_validate(
        {
            "model": "m",
            "data": {"path": "p", "system": system},
            "reward": "m:f",
            "max_steps": 1,
            "rollout": {"engine_args": arguments},
        }
    )
    path = tmp_path_factory.mktemp("dump") / "recipe.yaml"
    path.write_text(dump(recipe))
    assert load(path) == recipe


@pytest.mark.parametrize(
    ("overrides", "bound"),
    [
        (["max_staleness=0"], 0),
        (["max_staleness=2"], 2),
        (["max_staleness=2", "experimental.selection_window=5", "groups_per_step=4"], 3),
        (["max_staleness=2", "experimental.selection_window=6", "groups_per_step=4"], 4),
    ],
)
def test_worst_case_staleness(folder: Path, overrides: list[str], bound: int) -> None:
    assert worst_case_staleness(load(Path("r.yaml"), overrides)) == bound


def test_a_list_of_rewards_or_data_takes_the_place_of_one_below_and_the_reverse(folder: Path) -> None:
    parts = load(Path("r.yaml"), ["reward=[m:f, {fn: n:g, weight: -0.5, name: short, kwargs: {most: 3}}]"]).reward_parts
    assert [(p.fn, p.name, p.weight, p.kwargs) for p in parts] == [
        ("m:f", "f", 1.0, {}),
        ("n:g", "short", -0.5, {"most": 3}),
    ]
    text = MINIMAL.replace("{path: rows.jsonl}", "[{path: a.jsonl}, {path: b.jsonl, weight: 3, reward: 'n:g'}]")
    recipe = load(write("mixed.yaml", text))
    assert [(source.label, source.weight) for source in recipe.sources] == [("a.jsonl", 1.0), ("b.jsonl", 3.0)]
    assert [(part.fn, part.source) for part in recipe.reward_parts] == [("m:f", ""), ("n:g", "b.jsonl")]
    assert load(write("stored.yaml", dump(recipe))) == recipe
    assert load(Path("mixed.yaml"), ["data.path=c.jsonl"]).data.path == "c.jsonl"
    with pytest.raises(UserError, match=r"data is a list below, so data\.chat is of none of them; give the whole list"):
        load(Path("mixed.yaml"), ["data.chat=true"])


def test_a_mixture_needs_no_reward_if_every_source_has_one(folder: Path) -> None:
    text = "model: random:tiny-llama\nmax_steps: 3\ndata: [{path: a.jsonl, reward: 'm:f'}, {path: b.jsonl%s}]\n"
    assert load(write("all.yaml", text % ", reward: [n:g]")).reward is None
    with pytest.raises(UserError, match="neither `reward` nor `env` is set"):
        load(write("one.yaml", text % ""))


def test_a_teacher_needs_no_reward_and_then_nothing_compares_rewards(folder: Path) -> None:
    text = "model: random:tiny-llama\nmax_steps: 3\ndata: {path: a.jsonl}\nalgorithm: {teacher: %s}\n%s\n"
    alone = load(write("alone.yaml", text % ("org/big", "")))
    assert (alone.reward, alone.taught_alone, alone.algorithm.advantage) == (None, True, "none")
    assert [(t.model, t.source) for t in alone.algorithm.teacher] == [("org/big", "")]
    assert load(write("stored.yaml", dump(alone))) == alone
    beside = load(write("beside.yaml", text % ("org/big", "reward: m:f")))
    assert (beside.taught_alone, beside.algorithm.advantage) == (False, "grpo")
    assert load(Path("beside.yaml"), ["algorithm.teacher=null"]).algorithm.teacher == []
    with pytest.raises(UserError, match="neither `reward` nor `env` is set"):
        load(Path("alone.yaml"), ["algorithm.teacher=null"])
    mixed = text.replace("{path: a.jsonl}", "[{path: a.jsonl, reward: 'm:f'}, {path: b.jsonl}]")
    with pytest.raises(UserError, match="neither `reward` nor `env` is set"):
        load(write("mixed.yaml", mixed % ("org/big", "")))


def test_an_evaluation_needs_no_teacher(folder: Path) -> None:
    """It may be gone, or behind a server that is off; what judges must be named nevertheless."""
    held_out = "eval: {data: {path: b.jsonl}, reward: 'asyncrl.rewards.math:last_number'}"
    for name in ("a.jsonl", "b.jsonl"):
        write(name, '{"prompt": "a", "answer": "b"}')
    text = "model: random:tiny-llama\nmax_steps: 3\ndata: {path: a.jsonl}\nalgorithm: {teacher: runs/gone, %s}\n%s\n"
    text += "rollout: {max_prompt_tokens: 64, max_new_tokens: 64}\n"
    recipe = load(write("taught.yaml", text % ("teacher_in: loss, teacher_coef: 2", held_out)))
    with pytest.raises(UserError, match=r"algorithm\.teacher runs/gone does not exist"):
        check(recipe, folder)
    check(recipe.for_evaluation("random:tiny-llama"), folder)
    unjudged = load(write("unjudged.yaml", text % ("teacher_in: loss", "eval: {data: {path: b.jsonl}}")))
    with pytest.raises(UserError, match=r"eval\.0 has no reward, and the recipe has none"):
        check(unjudged.for_evaluation("random:tiny-llama"), folder)


def test_a_teacher_is_beside_the_recipe(folder: Path) -> None:
    (folder / "sub/big").mkdir(parents=True)
    text = "model: random:tiny-llama\nmax_steps: 3\ndata: {path: a.jsonl}\nalgorithm: {teacher: %s}\n"
    for said in ("big", "{model: big}", "[{model: big}]"):
        assert load(write("sub/recipe.yaml", text % said)).algorithm.teacher[0].model == "sub/big"


def test_paths_in_lists_are_beside_the_recipe(folder: Path) -> None:
    write("sub/mine.py", "")
    write("sub/a.jsonl", "")
    lists = "data: [{path: a.jsonl, reward: './mine.py:g'}]\nreward: ['./mine.py:f', {fn: './mine.py:h'}]\n"
    recipe = load(write("sub/own.yaml", f"model: random:tiny-llama\nmax_steps: 3\n{lists}"))
    assert {part.fn for part in recipe.reward_parts} == {f"sub/mine.py:{name}" for name in "fgh"}
    assert recipe.sources[0].path == "sub/a.jsonl"


@pytest.mark.parametrize("overrides", [["env.max_turns=3"], ["env.max_turns=3", "env=b.py:g"]])
def test_a_path_alone_leaves_the_other_keys_of_env_and_data(tmp_path: Path, overrides: list[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: random:tiny-llama\ndata: maths.jsonl\nenv: a.py:f\nmax_steps: 2\n")
    for arguments in (overrides, overrides[::-1]):
        recipe = load(path, [*arguments, "data.prompt_column=question"])
        assert recipe.env.max_turns == 3
        assert Path(recipe.env.path).name == ("b.py:g" if len(overrides) > 1 else "a.py:f")
        assert Path(recipe.sources[0].path).name == "maths.jsonl"
        assert recipe.sources[0].prompt_column == "question"
    assert load(path, ["env=null", "reward=a.py:b"]).env is None


def test_another_environment_has_no_arguments_of_the_one_below(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: random:tiny-llama\ndata: maths.jsonl\nenv: {path: a.py:f, kwargs: {x: 1}, max_turns: 3}\nmax_steps: 2\n"
    )
    assert load(path, ["env.max_turns=4"]).env.kwargs == {"x": 1}
    for arguments in (["env=b.py:g"], ["env.path=b.py:g"]):
        found = load(path, arguments).env
        assert (found.kwargs, found.max_turns) == ({}, 3)
        assert load(path, [*arguments, "env.kwargs={y: 2}"]).env.kwargs == {"y": 2}
