"""Names of TRL, verl, OpenRLHF and slime are answered with ours; the table names keys that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asyncrl.cli import main
from asyncrl.recipe import elsewhere
from asyncrl.recipe.keys import every

SYSTEMS = ("trl", "verl", "openrlhf", "slime", "common")
WORDS = {
    "num_generations": "group_size",
    "n_samples_per_prompt": "group_size",
    "rollout.n": "group_size",
    "actor_rollout_ref.rollout.n": "group_size",
    "per_device_train_batch_size": "groups_per_step",
    "generation_batch_size": "groups_per_step",
    "rollout_batch_size": "groups_per_step",
    "data.train_batch_size": "groups_per_step",
    "lr": "trainer.learning_rate",
    "learning_rate": "trainer.learning_rate",
    "trainer.lr": "trainer.learning_rate",
    "actor_rollout_ref.actor.optim.lr": "trainer.learning_rate",
    "actor_learning_rate": "trainer.learning_rate",
    "beta": "algorithm.kl_coef",
    "kl_coef": "algorithm.kl_coef",
    "init_kl_coef": "algorithm.kl_coef",
    "kl_loss_coef": "algorithm.kl_coef",
    "epsilon_high": "algorithm.clip_high",
    "eps_clip": "algorithm.clip_low",
    "loss_type": "algorithm.loss",
    "algorithm.adv_estimator": "algorithm.advantage",
    "max_completion_length": "rollout.max_new_tokens",
    "max_new_tokens": "rollout.max_new_tokens",
    "generate_max_len": "rollout.max_new_tokens",
    "rollout_max_response_len": "rollout.max_new_tokens",
    "data.max_response_length": "rollout.max_new_tokens",
    "max_prompt_length": "rollout.max_prompt_tokens",
    "temperature": "rollout.temperature",
    "stop": "rollout.stop",
    "weight_decay": "trainer.optimizer.weight_decay",
    "max_grad_norm": "trainer.max_grad_norm",
    "gradient_accumulation_steps": "groups_per_step",
    "num_train_epochs": "max_epochs",
    "trainer.total_epochs": "max_epochs",
    "save_steps": "checkpoint.every_steps",
    "trainer.save_freq": "checkpoint.every_steps",
    "output_dir": "run_dir",
    "report_to": "track.wandb",
    "reward_funcs": "reward",
    "custom_reward_function.path": "reward",
    "data.train_files": "data.path",
    "pretrain": "model",
    "actor_rollout_ref.model.path": "model",
    "vllm_num_engines": "rollout.replicas",
    "lora_rank": "trainer.lora.rank",
    "bf16": "trainer.precision",
    "entropy_coef": "there is no entropy bonus",
    "top_p": "it cuts the sampled distribution",
    "logging_steps": "every step is in metrics.jsonl",
}


@pytest.mark.parametrize(("word", "ours"), WORDS.items())
def test_a_word_of_another_system_is_answered_with_ours(
    word: str, ours: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert main(["train", "recipes/tiny.yaml", f"{word}=1", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"asyncrl: command line: {word} is not a key; ")
    assert re.search(rf"(?<![\w.]){re.escape(ours)}(?![\w.])", said.partition("; ")[2])
    assert said.count("\n") == 1


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_table_names_keys_that_there_are_and_each_name_once(system: str) -> None:
    rows = elsewhere.table(system)
    names = [name for row in rows for name in row.names]
    assert len(names) == len({*names})
    keys = {key for row in rows for key in row.keys if not key.startswith("rollout.engine_args.")}
    assert keys <= {*every()}
    assert all(row.remark for row in rows if row.kind == "none")


def test_a_part_of_another_system_is_named_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: a/b\nactor_rollout_ref:\n  rollout:\n    temperature: 0.5\n")
    assert main(["train", str(recipe)]) == 2
    said = capsys.readouterr().err
    assert "actor_rollout_ref.rollout.temperature is not a key; verl's" in said
    assert said.endswith(" is rollout.temperature here\n")
