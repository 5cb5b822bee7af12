"""`asyncrl import trl`: scripts in the form of TRL's examples. Nothing of them is run, no name is dropped."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from asyncrl import local_gpus
from asyncrl.cli import main
from asyncrl.drafts import importing, trl
from asyncrl.errors import UserError
from asyncrl.recipe import elsewhere
from asyncrl.recipe.load import load
from asyncrl.rewards.load import load as load_reward
from asyncrl.rewards.score import RewardRequest

HEAD = """
raise RuntimeError("it was run")
import re
import torch
from datasets import load_dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer
from trl.rewards import accuracy_reward, get_soft_overlong_punishment, think_format_reward
"""
SUMS = """
MARK = "####"
SYSTEM = "Add the numbers." + " Say the sum last."

def last(text):
    return re.split(MARK, text)[-1].strip()

def right(completions, answer, **kwargs):
    found = [last(completion[0]["content"]) for completion in completions]
    return [1.0 if one == last(gold) else 0.0 for one, gold in zip(found, answer)]

def main():
    def brief(completions, **kwargs):
        return [-float(len(completion[0]["content"])) for completion in completions]

    def chat(example):
        return {"prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": example["question"]}]}

    train = load_dataset("openai/gsm8k", "main", split="train")
    train = train.map(chat, remove_columns=["question"]).shuffle(seed=1)
    test = load_dataset("openai/gsm8k", "main", split="test").map(chat)
    args = GRPOConfig(
        output_dir="out", num_generations=4, per_device_train_batch_size=2, gradient_accumulation_steps=4,
        steps_per_generation=8, num_iterations=2, max_completion_length=300, max_prompt_length=200, learning_rate=3e-6,
        lr_scheduler_type="cosine", warmup_ratio=0.1, max_steps=400, beta=0.04, epsilon=0.1, epsilon_high=0.3,
        loss_type="dr_grpo", scale_rewards=False, top_p=1.0, top_k=20, entropy_coef=0.01, bf16=True, save_steps=100,
        adam_beta2=0.98, weight_decay=0.1, report_to=["wandb", "tensorboard"], eval_strategy="steps", eval_steps=50,
        model_init_kwargs={"dtype": torch.bfloat16}, generation_kwargs={"stop": ["</answer>"]}, use_vllm=True,
        vllm_mode="colocate", log_completions=True, mask_truncated_completions=True, reward_weights=[1.0, 0.01, 0.5],
        frobnicate=3, seed=int("7"),
    )
    trainer = GRPOTrainer(
        model="Qwen/Qwen2.5-0.5B-Instruct", reward_funcs=[right, brief, think_format_reward], args=args,
        train_dataset=train, eval_dataset=test, peft_config=LoraConfig(r=16, lora_alpha=64, lora_dropout=0.05),
        callbacks=[object()],
    )
    trainer.train()
"""

TRAINER = """
args = GRPOConfig({})
trainer = GRPOTrainer('a/b', 'c/reward', args, train_dataset=load_dataset('d/e'))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local_gpus, "_QUERY", ("no-nvidia-smi-here",))
    return tmp_path


def script(folder: Path, text: str) -> Path:
    path = folder / "train_it.py"
    path.write_text(HEAD + textwrap.dedent(text))
    return path


def written(folder: Path, text: str, *words: str) -> tuple[Any, list[str]]:
    lines = importing.convert("trl", script(folder, text), None, 1, words)
    return load(Path("train_it.yaml")), lines


def test_a_grpo_script_is_carried_over(folder: Path) -> None:
    recipe, lines = written(folder, SUMS)
    data, trainer, algorithm = recipe.sources[0], recipe.trainer, recipe.algorithm
    assert (recipe.model, data.path, data.options) == ("Qwen/Qwen2.5-0.5B-Instruct", "openai/gsm8k", {"name": "main"})
    assert (data.chat, data.prompt_column, data.system) == (True, "question", "Add the numbers. Say the sum last.")
    # 2 rows x 8 micro-steps = 16 rows = 4 groups; 8 micro-steps = 2 optimizer steps, twice
    assert (recipe.group_size, recipe.groups_per_step, trainer.minibatches, trainer.epochs) == (4, 4, 2, 2)
    # 400 optimizer steps = 100 batches, of which a tenth is the warm-up; 100 = 25 batches, 50 = 12.5
    assert (recipe.max_steps, trainer.warmup_steps, recipe.checkpoint.every_steps) == (100, 10, 25)
    assert (trainer.learning_rate, trainer.schedule, trainer.optimizer.betas) == (3e-6, "cosine", [0.9, 0.98])
    assert (algorithm.clip_low, algorithm.clip_high, algorithm.kl_coef) == (0.1, 0.3, 0.04)
    assert (algorithm.aggregation, algorithm.advantage, algorithm.mask_truncated) == ("constant", "dr_grpo", True)
    assert (recipe.rollout.max_new_tokens, recipe.rollout.max_prompt_tokens) == (300, 200)
    assert (recipe.rollout.stop, recipe.track.wandb, recipe.run_dir) == (["</answer>"], "online", "out")
    assert recipe.max_staleness == 0
    assert "in turns   as TRL, with max_staleness=0; max_staleness=1 overlaps sampling and training" in lines
    assert re.search(r"^max_staleness: 0 +# as TRL: sampling and training", Path("train_it.yaml").read_text(), re.M)
    assert (trainer.lora.rank, trainer.lora.alpha) == (16, 64.0)
    assert (recipe.eval[0].data.split, recipe.eval[0].every_steps) == ("test", 13)
    assert [(part.name, part.weight) for part in recipe.reward_parts] == [
        ("right", 1.0),
        ("brief", 0.01),
        ("think_format_reward", 0.5),
    ]
    assert main(["train", "train_it.yaml", "--dry-run"]) == 0
    lost = {line.split()[1].partition("=")[0] for line in lines if line.startswith("LOST")}
    assert lost == {"top_k", "entropy_coef", "frobnicate", "seed", "lora_dropout", "callbacks"}
    head = Path("train_it.yaml").read_text().partition("model:")[0]
    assert all(name in head for name in lost)


def test_no_name_is_dropped(folder: Path) -> None:
    path = script(folder, SUMS)
    carried, _ = trl.read(path, 1)
    said = {*carried.kept, *carried.lost, *carried.moot}
    given = {keyword for line in SUMS.splitlines() for keyword in re.findall(r"(\w+)=(?!=)", line)}
    made_of = {"args", "peft_config", "split", "remove_columns", "seed", "reward_funcs"}
    assert given - made_of <= said
    assert {"reward_funcs", "seed"} <= said


def test_the_rewards_are_copied_with_what_they_use_and_score(folder: Path) -> None:
    recipe, _ = written(folder, SUMS)
    text = Path("train_it_reward.py").read_text()
    assert "RuntimeError" not in text
    assert "load_dataset" not in text
    request = RewardRequest([], ["it is #### 5", "4"], [[1], [2]], ["stop", "stop"], {"answer": "2 + 3\n#### 5"})
    right, brief, _ = (load_reward(part.fn, folder, kwargs=part.kwargs) for part in recipe.reward_parts)
    assert [score.reward for score in right.score(request)] == [1.0, 0.0]
    assert [score.reward for score in brief.score(request)] == [-12.0, -1.0]


def test_trls_own_rewards_have_an_equal(folder: Path) -> None:
    recipe, _ = written(
        folder,
        """
        trainer = GRPOTrainer(
            model="a/b",
            reward_funcs=[accuracy_reward, think_format_reward, get_soft_overlong_punishment(20, soft_punish_cache=5)],
            train_dataset=load_dataset("json", data_files="rows.jsonl", split="train"),
        )
        """,
    )
    assert recipe.sources[0].path == "rows.jsonl"
    accuracy, form, length = (load_reward(part.fn, folder, kwargs=part.kwargs) for part in recipe.reward_parts)
    texts = ["<think>so</think> \\boxed{5}", "\\boxed{4}"]
    request = RewardRequest([], texts, [[0] * 10, [0] * 20], ["stop", "stop"], {"solution": "$5$"})
    assert [score.reward for score in accuracy.score(request)] == [1.0, 0.0]
    assert [score.reward for score in form.score(request)] == [1.0, 0.0]
    assert [score.reward for score in length.score(request)] == [0.0, -1.0]


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        ("loss_type='cispo', epsilon_high=5.0", "algorithm.clip_high", 4.0),
        ("loss_type='grpo', importance_sampling_level='sequence'", "algorithm.loss", "gspo"),
        ("top_entropy_quantile=0.2", "algorithm.entropy_quantile", 0.8),
        ("delta=4.0", "algorithm.dual_clip", 4.0),
        ("vllm_importance_sampling_mode='token_truncate'", "algorithm.correction", "tis"),
        ("vllm_importance_sampling_mode='sequence_mask'", "algorithm.mis_high", 3.0),
        ("sync_ref_model=True, ref_model_sync_steps=64", "algorithm.reference_reset_steps", 64),
        ("fp16=True", "trainer.precision", "fp16"),
        ("vllm_tensor_parallel_size=2", "rollout.gpus_per_replica", 2),
        ("save_strategy='no'", "checkpoint.every_steps", 0),
        ("generation_batch_size=64", "groups_per_step", 8),
        ("max_completion_length=8000", "trainer.tokens_per_microbatch", 9024),
        ("report_to='none'", "track.wandb", "off"),
        ("chat_template_kwargs={'enable_thinking': False}", "data.chat_template_kwargs", {"enable_thinking": False}),
    ],
)
def test_units_and_values(folder: Path, config: str, key: str, value: Any) -> None:
    text = TRAINER.format(config)
    recipe, _ = written(folder, text)
    found: Any = recipe.model_dump()
    for part in key.split("."):
        found = found[0][part] if isinstance(found, list) else found[part]
    assert found == value


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("loss_type='sapo'", "the loss sapo is not here"),
        ("scale_rewards='batch'", "normalise_advantages is nearest"),
        ("optim='sgd'", "trainer.optimizer.name is adamw"),
        ("lr_scheduler_type='polynomial'", "trainer.schedule is constant, linear, cosine or wsd"),
        ("num_generations=16", "8 rows on 1 process(es) are less than a group of 16; say --processes"),
        ("generation_kwargs={'min_p': 0.1}", "min_p would change the sampled distribution"),
        ("temperature=float('0.7')", "its value is only known when that script runs"),
        ("**extra", "the name is not known here"),
    ],
)
def test_what_cannot_be_carried_over_is_said(folder: Path, config: str, said: str) -> None:
    text = TRAINER.format(config)
    _, lines = written(folder, text)
    assert any(line.startswith("LOST") and said in line for line in lines), lines


def test_answers_in_the_data(folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    sft, _ = written(
        folder,
        "SFTTrainer(model='a/b', args=SFTConfig(max_length=100, packing=True, per_device_train_batch_size=4), "
        "train_dataset=load_dataset('json', data_files='rows.jsonl'))",
    )
    assert (sft.from_data, sft.sources[0].max_tokens, sft.groups_per_step, sft.group_size) == (True, 100, 4, 1)
    assert sft.algorithm.loss == "sft"
    assert "max_staleness" not in Path("train_it.yaml").read_text(), "nothing is sampled"
    Path("train_it.yaml").unlink()
    args = "args=DPOConfig(beta=0.2, loss_type='ipo')"
    dpo, _ = written(folder, f"DPOTrainer(model='a/b', {args}, train_dataset=load_dataset('d/e'))")
    assert (dpo.algorithm.loss, dpo.algorithm.beta, dpo.group_size) == ("ipo", 0.2, 2)


def test_updates_may_overlap_if_the_command_says_so(folder: Path) -> None:
    recipe, lines = written(folder, "GRPOTrainer('a/b', 'c/d', train_dataset=load_dataset('d/e'))", "max_staleness=1")
    assert recipe.max_staleness == 1
    assert not any(line.startswith("in turns") for line in lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("print(1)", "calls none of GRPOConfig"),
        ("GRPOTrainer(reward_funcs='a/b', train_dataset=load_dataset('d/e'))", "does not say model"),
        ("GRPOTrainer(model='a/b', reward_funcs='a/b', train_dataset=mine)", "does not say data.path"),
    ],
)
def test_what_is_no_recipe_leaves_nothing_behind(folder: Path, text: str, said: str) -> None:
    before = {*folder.iterdir(), folder / "train_it.py"}
    with pytest.raises(UserError, match=said):
        written(folder, text)
    assert {*folder.iterdir()} == before


def test_the_command_takes_what_the_script_does_not_say(folder: Path) -> None:
    recipe, lines = written(
        folder, "GRPOTrainer(model=m, reward_funcs='a/b', train_dataset=rows)", "model=c/d", "data.path=x.jsonl"
    )
    assert (recipe.model, recipe.sources[0].path) == ("c/d", "x.jsonl")
    assert "not needed train_dataset=rows: the command says data.path" in lines
    assert not any(line.startswith(("LOST       model", "LOST       train_dataset")) for line in lines)


def test_the_table_has_all_fields_of_training_arguments() -> None:
    from transformers import TrainingArguments

    names = [field.name for field in dataclasses.fields(TrainingArguments)]
    assert [name for name in names if elsewhere.find("trl", name) is None] == []
