"""`asyncrl import trl`: what is in another scope, branch, order or file is not mistaken for a value."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from asyncrl import local_gpus
from asyncrl.drafts import importing
from asyncrl.errors import UserError
from asyncrl.recipe.load import load
from asyncrl.rewards.load import load as load_reward
from asyncrl.rewards.score import RewardRequest

HEAD = """
from datasets import load_dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer
"""
TRAIN = "GRPOTrainer('m/x', 'r/x', config, load_dataset('d/e'))"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local_gpus, "_QUERY", ("no-nvidia-smi-here",))
    return tmp_path


def written(text: str, *words: str) -> tuple[Any, list[str]]:
    Path("it.py").write_text(HEAD + textwrap.dedent(text))
    Path("it.yaml").unlink(missing_ok=True)
    lines = importing.convert("trl", Path("it.py"), None, 1, words)
    return load(Path("it.yaml")), lines


def lost(lines: list[str], name: str) -> str:
    return next((line for line in lines if line.startswith(f"LOST       {name}=")), "")


def test_arguments_by_place_are_taken_as_trl_takes_them(folder: Path) -> None:
    recipe, lines = written(
        """
        a = load_dataset("json", data_files="seed.jsonl")
        b = load_dataset("json", data_files="main.jsonl", split="train").filter(len).select(range(9))
        GRPOTrainer("m/x", ["r/x"], GRPOConfig(max_steps=8), b)
        """
    )
    assert recipe.sources[0].path == "main.jsonl"
    assert "rows are not changed here" in lost(lines, "data.filter(...)")
    assert "rows are not changed here" in lost(lines, "data.select(...)")
    recipe, lines = written(
        "DPOTrainer('m/x', ref, DPOConfig(beta=0.3), None, load_dataset('d/e'), load_dataset('d/e', split='test'))"
    )
    assert (recipe.algorithm.beta, recipe.sources[0].path, recipe.eval[0].data.split) == (0.3, "d/e", "test")
    assert lost(lines, "ref_model")


@pytest.mark.parametrize("rows", ["None", "mine", "make(load_dataset('d/e'))"])
def test_no_other_data_takes_the_place_of_the_trainers(folder: Path, rows: str) -> None:
    with pytest.raises(UserError, match=r"does not say data\.path"):
        written(f"a = load_dataset('d/e')\nGRPOTrainer('m/x', 'r/x', GRPOConfig(), {rows})")


def test_changes_of_the_data_in_a_branch_are_said(folder: Path) -> None:
    recipe, lines = written(
        """
        rows = load_dataset("d/e", split="train")
        if TEST:
            rows = rows.select(range(10))
        GRPOTrainer("m/x", "r/x", GRPOConfig(), rows)
        """
    )
    assert recipe.sources[0].path == "d/e"
    assert "in a branch" in lost(lines, "change 1 of train_dataset")


def test_rows_split_off_in_the_script_are_not_evaluated_as_if_held_out(folder: Path) -> None:
    recipe, lines = written(
        """
        both = load_dataset("json", data_files="a.jsonl", split="train").train_test_split(0.1)
        GRPOTrainer("m/x", "r/x", GRPOConfig(eval_strategy="epoch"), both["train"], both["test"])
        """
    )
    assert (recipe.sources[0].path, recipe.eval) == ("a.jsonl", [])
    assert "split off in the script" in lost(lines, "eval_dataset")
    recipe, lines = written("d = load_dataset('d/e')\nGRPOTrainer('m/x', 'r/x', GRPOConfig(), d, d)")
    assert recipe.eval == []
    assert "it is the training data" in lost(lines, "eval_dataset")


@pytest.mark.parametrize(
    ("before", "value", "after"),
    [
        ("bs = 4", "bs", ""),
        ("bs = 2\nbs = 4", "bs", "\nbs = 9"),
        ("bs: int = 4", "bs", ""),
        ("bs, lr = 4, 1", "bs", ""),
        ("if __name__ == '__main__':\n    bs = 4", "bs", ""),
        ("with open('x') as f:\n    bs = 4", "bs", ""),
        ("if True:\n    bs = 2\nbs = 4", "bs", ""),
    ],
)
def test_a_value_that_is_sure(folder: Path, before: str, value: str, after: str) -> None:
    recipe, _ = written(f"{before}\nconfig = GRPOConfig(num_generations={value}){after}\n{TRAIN}")
    assert recipe.group_size == 4


@pytest.mark.parametrize(
    "before",
    [
        "def other():\n    bs = 4",
        "if FAST:\n    bs = 4",
        "bs = 4\nif FAST:\n    bs = 2",
        "if FAST:\n    bs = 4\nelse:\n    bs = 2",
        "bs = 4\nbs *= 2",
        "bs = 4\nfor bs in (1, 2):\n    pass",
        "try:\n    bs = 4\nexcept OSError:\n    bs = 2",
        "bs = 4\ndel bs",
        "class Other:\n    bs = 4",
        "bs = 4\nwhile FAST:\n    bs = 2",
        "bs = 4\nmatch FAST:\n    case bs:\n        pass",
        "bs = 4\ndef other():\n    global bs\n    bs = 2",
        "bs = 4\nfrom other import bs",
    ],
)
def test_a_value_that_is_not_sure_is_lost(folder: Path, before: str) -> None:
    recipe, lines = written(f"{before}\nconfig = GRPOConfig(num_generations=bs)\n{TRAIN}")
    assert "only known when that script runs" in lost(lines, "num_generations")
    assert recipe.group_size == 8
    assert "in the place of num_generations" in Path("it.yaml").read_text()


def test_a_parameter_is_no_value_of_the_same_name_outside(folder: Path) -> None:
    _, lines = written(f"lr = 1e-3\ndef main(lr):\n    config = GRPOConfig(learning_rate=lr)\n    {TRAIN}")
    assert lost(lines, "learning_rate")
    recipe, _ = written(f"lr = 1e-3\ndef main():\n    config = GRPOConfig(learning_rate=lr)\n    {TRAIN}")
    assert recipe.trainer.learning_rate == 1e-3


def test_what_is_set_after_construction_counts(folder: Path) -> None:
    config = "config = GRPOConfig(beta=0.5, num_generations=4)\nconfig.beta = 0.04\n"
    recipe, lines = written(f"{config}if X:\n    config.num_generations = 2\n{TRAIN}\nconfig.beta = 0.7")
    assert recipe.algorithm.kl_coef == 0.04
    assert lost(lines, "num_generations")


def test_a_parsers_values_are_not_known(folder: Path) -> None:
    recipe, lines = written(
        """
        parser = TrlParser((GRPOConfig, ModelConfig))
        training_args, model_args = parser.parse_args_and_config()
        training_args.num_generations = 16
        GRPOTrainer(model="m/x", reward_funcs="r/x", args=training_args, train_dataset=load_dataset("d/e"))
        """,
        "groups_per_step=2",
    )
    assert "its values come from elsewhere" in lost(lines, "args")
    assert recipe.group_size == 16


def test_several_trainers_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="SFTTrainer in line 6, GRPOTrainer in line 7; leave one of them"):
        written("SFTTrainer('a/b', SFTConfig())\nGRPOTrainer('a/b', 'c/d', GRPOConfig())".join(["\n", ""]))


def test_copied_rewards_have_what_they_use_or_it_is_said(folder: Path) -> None:
    recipe, lines = written(
        """
        from pathlib import Path
        try:
            import re2_that_is_not_here as re
        except ImportError:
            import re
        LIMIT: int = 3
        LOW, HIGH = 0.25, 1.0
        if LIMIT > 2:
            MARK = "{recipe}"
        else:
            MARK = "none"
        MARK += "x"
        BONUS = {}
        BONUS["a"] = 2.0
        LATE = None
        LATE = open("late.txt").read()
        WORDS = set(Path(__file__).with_name("words.txt").read_text().split())

        def fair(completions, **kwargs):
            return [HIGH if re.search(MARK, one) else LOW for one in completions]

        def known(completions, **kwargs):
            return [float(one in WORDS) + BONUS[one] + len(LATE) for one in completions]

        GRPOTrainer("m/x", [fair, known], GRPOConfig(), load_dataset("d/e"))
        """
    )
    assert "they use LATE, WORDS, which the script loads or builds" in lost(lines, "the copied rewards")
    assert "BONUS['a'] = 2.0" in Path("it_reward.py").read_text()
    request = RewardRequest("x", ["a {recipe}x", "b {recipe}"], [[1], [2]], ["stop", "stop"], {})
    fair = load_reward(recipe.reward_parts[0].fn, folder, kwargs={})
    assert [score.reward for score in fair.score(request)] == [1.0, 0.25]


def test_a_reward_of_a_file_beside_the_script_is_named_by_its_file(folder: Path) -> None:
    (folder / "loc_rewards.py").write_text("def fmt(completions, **kwargs):\n    return [1.0] * len(completions)\n")
    recipe, _ = written("from loc_rewards import fmt\nGRPOTrainer('m/x', fmt, GRPOConfig(), load_dataset('d/e'))")
    assert recipe.reward == "./loc_rewards.py:fmt"


def test_the_divergence_of_rloo_is_in_the_reward(folder: Path) -> None:
    recipe, lines = written("RLOOTrainer('m/x', 'r/x', RLOOConfig(num_generations=4), load_dataset('d/e'))")
    algorithm = recipe.algorithm
    assert (algorithm.kl_coef, algorithm.kl_in, algorithm.kl_estimator) == (0.05, "reward", "k1")
    assert "ratio of a whole completion" in lost(lines, "RLOOTrainer")


@pytest.mark.parametrize(
    ("config", "groups", "minibatches"),
    [
        # 8 rows at once, 8 of them in an optimizer step: 64 rows, 8 groups
        ("per_device_train_batch_size=8, gradient_accumulation_steps=8, steps_per_generation=1", 8, 1),
        ("per_device_train_batch_size=8, gradient_accumulation_steps=8, generation_batch_size=8", 8, 1),
        ("per_device_train_batch_size=8, gradient_accumulation_steps=2, generation_batch_size=64", 8, 4),
    ],
)
def test_an_optimizer_step_is_never_less_than_what_is_accumulated(
    folder: Path, config: str, groups: int, minibatches: int
) -> None:
    recipe, _ = written(f"config = GRPOConfig({config})\n{TRAIN}")
    assert (recipe.groups_per_step, recipe.trainer.minibatches) == (groups, minibatches)


@pytest.mark.parametrize(
    ("config", "name"), [("eval_strategy='epoch'", "eval_strategy"), ("eval_steps=.1", "eval_steps")]
)
def test_evaluations_that_are_not_every_so_many_steps_are_lost(folder: Path, config: str, name: str) -> None:
    rows = "load_dataset('d/e'), load_dataset('d/e', split='test')"
    _, lines = written(f"GRPOTrainer('m/x', 'r/x', GRPOConfig({config}), {rows})")
    assert "say eval.every_steps" in lost(lines, name)


def test_epochs_stay_epochs_and_a_share_of_unknown_steps_is_lost(folder: Path) -> None:
    text = f"config = GRPOConfig(num_train_epochs=2, warmup_ratio=0.1)\n{TRAIN}"
    recipe, lines = written(text)
    assert recipe.max_epochs == 2
    assert "say trainer.warmup_steps" in lost(lines, "warmup_ratio")
    recipe, lines = written(text, "max_steps=50")
    assert (recipe.max_epochs, recipe.max_steps, recipe.trainer.warmup_steps) == (None, 50, 5)
    recipe, lines = written(text.replace("num_train_epochs=2", "max_steps=90"), "max_epochs=1")
    assert recipe.max_epochs == 1
    assert lost(lines, "warmup_ratio")


@pytest.mark.parametrize(
    "config",
    [
        "per_device_train_batch_size='8'",
        "warmup_steps='a'",
        "report_to=3",
        "save_steps='x'",
        "top_entropy_quantile='y'",
        "generation_kwargs=4",
    ],
)
def test_values_of_another_kind_are_said(folder: Path, config: str) -> None:
    _, lines = written(f"config = GRPOConfig({config})\n{TRAIN}")
    assert lost(lines, config.partition("=")[0]), lines


@pytest.mark.parametrize("config", ["num_generations=0", "max_completion_length='long'"])
def test_values_that_no_recipe_has_are_refused_by_the_name_of_the_script(folder: Path, config: str) -> None:
    with pytest.raises(UserError, match=r"^import: what it\.py says makes no recipe: \w+"):
        written(f"config = GRPOConfig({config})\n{TRAIN}")
    assert [path.name for path in folder.iterdir()] == ["it.py"]


def test_what_nests_too_deeply_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^import: it\.py .*(too deeply|cannot be read as Python)"):
        written(f"config = GRPOConfig(learning_rate={'1+' * 3000}1)\n{TRAIN}")


def test_a_value_that_doubles_with_each_line_ends(folder: Path) -> None:
    doubled = "\n".join(f"v{n} = [v{n - 1}, v{n - 1}]" for n in range(1, 40))
    _, lines = written(f"v0 = 1\n{doubled}\nconfig = GRPOConfig(stop=v39)\n{TRAIN}")
    assert lost(lines, "stop")


def test_long_rows_and_numbers_for_names(folder: Path) -> None:
    recipe, _ = written("SFTTrainer('m/x', SFTConfig(max_seq_length=8192, run_name=123), None, load_dataset('d/e'))")
    assert (recipe.sources[0].max_tokens, recipe.trainer.tokens_per_microbatch) == (8192, 8192)
    assert recipe.track.notes == "123"
    recipe, lines = written("SFTTrainer('m/x', SFTConfig(save_total_limit=None), None, load_dataset('d/e'))")
    assert recipe.sources[0].max_tokens == 1024, "TRL's default"
    assert "all checkpoints are kept there" in lost(lines, "save_total_limit")


def test_no_value_becomes_a_key(folder: Path) -> None:
    data = "load_dataset('json', data_files='a\\nrun_dir: b.jsonl')"
    Path("a\nrun_dir: c.py").write_text(
        HEAD + f"GRPOTrainer('m/x', 'r/x', GRPOConfig(odd='x\\nrun_dir: evil', run_name='y\\nseed: 3'), {data})"
    )
    importing.convert("trl", Path("a\nrun_dir: c.py"), Path("out.yaml"), 1, [])
    recipe = load(Path("out.yaml"))
    assert (recipe.run_dir, recipe.sources[0].path, recipe.track.notes) == (None, "a\nrun_dir: b.jsonl", "y\nseed: 3")


def test_the_targets_of_a_plain_lora_are_pefts(folder: Path) -> None:
    lora = "GRPOTrainer('m/x', 'r/x', GRPOConfig(), load_dataset('d/e'), peft_config=LoraConfig(r=16{}))"
    assert written(lora.format(""))[0].trainer.lora.targets == ["q_proj", "v_proj"]
    assert written(lora.format(", target_modules='all-linear'"))[0].trainer.lora.targets == "all-linear"


def test_what_the_command_sets_has_no_comment_of_the_script(folder: Path) -> None:
    recipe, _ = written(f"config = GRPOConfig(learning_rate=3e-4)\n{TRAIN}", "trainer.learning_rate=1e-5", "model=n/y")
    assert (recipe.trainer.learning_rate, recipe.model) == (1e-5, "n/y")
    text = Path("it.yaml").read_text()
    assert "learning_rate=" not in text
    assert "m/x" not in text
    assert text.count("# as the command says") == 2
