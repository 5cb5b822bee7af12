"""`asyncrl import verl`: scripts and configurations in the form of verl's examples. No name is dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asyncrl.cli import main
from asyncrl.drafts import importing, shell, verl
from asyncrl.errors import UserError
from asyncrl.recipe.load import load

PLAIN = """#!/bin/bash
set -x
# A comment with data.train_files=nothing
export VLLM_ATTENTION_BACKEND=XFORMERS
nodes=2
len=$((512 * 2))
BATCH=${BATCH:-64}
python3 -m verl.trainer.main_ppo \\
    algorithm.adv_estimator=grpo \\
    algorithm.norm_adv_by_std_in_grpo=False \\
    data.train_files="['a/train.parquet', 'b/train.parquet']" \\
    data.val_files=a/test.parquet \\
    data.train_batch_size=${BATCH} \\
    data.max_prompt_length=512 \\
    data.max_response_length=$len \\
    data.truncation='error' \\
    actor_rollout_ref.model.path=Qwen/Qwen2.5-7B \\
    actor_rollout_ref.model.use_remove_padding=True \\
    actor_rollout_ref.model.lora_rank=16 \\
    actor_rollout_ref.actor.optim.lr=1e-6 \\
    actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=0.1 \\
    actor_rollout_ref.actor.ppo_mini_batch_size=16 \\
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 \\
    actor_rollout_ref.actor.clip_ratio_low=0.2 \\
    actor_rollout_ref.actor.clip_ratio_high=0.28 \\
    actor_rollout_ref.actor.use_kl_loss=True \\
    actor_rollout_ref.actor.kl_loss_coef=0.01 \\
    actor_rollout_ref.actor.kl_loss_type=low_var_kl \\
    actor_rollout_ref.actor.entropy_coeff=0.001 \\
    actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm \\
    actor_rollout_ref.actor.fsdp_config.param_offload=True \\
    actor_rollout_ref.rollout.name=vllm \\
    actor_rollout_ref.rollout.tensor_model_parallel_size=2 \\
    actor_rollout_ref.rollout.gpu_memory_utilization=0.6 \\
    actor_rollout_ref.rollout.max_num_seqs=128 \\
    +actor_rollout_ref.rollout.engine_kwargs.vllm.swap_space=8 \\
    actor_rollout_ref.rollout.n=5 \\
    actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8 \\
    algorithm.filter_groups.enable=True \\
    algorithm.filter_groups.metric=acc \\
    custom_reward_function.path=score.py \\
    custom_reward_function.name=score_it \\
    +custom_reward_function.reward_kwargs.scale=2 \\
    trainer.logger=['console','wandb'] \\
    trainer.project_name='mine' \\
    trainer.n_gpus_per_node=8 \\
    trainer.nnodes=$nodes \\
    trainer.save_freq=20 \\
    trainer.test_freq=5 \\
    trainer.total_training_steps=300 \\
    trainer.flux_capacitor=1 $@
"""
ARRAYS = """#!/usr/bin/env bash
MODEL_PATH=${MODEL_PATH:-Qwen/Qwen3-8B}
rollout_tp=${ROLLOUT_TP:-}
case "${DEVICE}" in
    gpu)
        rollout_tp=${rollout_tp:-2}
        case "${MACHINE}" in
            gb200)
                GPUS=${GPUS:-4}
                EXTRA+=(actor_rollout_ref.rollout.enforce_eager=True)
                ;;
            *)
                GPUS=${GPUS:-8}
                ;;
        esac
        ;;
    npu)
        rollout_tp=${rollout_tp:-4}
        ;;
esac
DATA=(
    algorithm.adv_estimator=rloo
    algorithm.use_kl_in_reward=True
    algorithm.kl_penalty=kl
    algorithm.kl_ctrl.kl_coef=0.002
    data.train_files=$HOME/train.parquet
    data.train_batch_size=32   # prompts
)
ROLLOUT=(
    actor_rollout_ref.model.path="$MODEL_PATH"
    actor_rollout_ref.rollout.tensor_model_parallel_size=${rollout_tp}
    actor_rollout_ref.actor.policy_loss.loss_mode=gspo
    trainer.n_gpus_per_node=${GPUS}
    trainer.experiment_name=run_$(date +%s)
)
"${LAUNCH[@]}" -m verl.trainer.main_ppo "${DATA[@]}" "${ROLLOUT[@]}" "$@"
"""
YAML = """
defaults: [ppo_trainer, _self_]
data: {train_files: rows.parquet, train_batch_size: 16, max_prompt_length: 100, max_response_length: 50, shuffle: false}
actor_rollout_ref:
  model: {path: a/b}
  actor:
    _target_: verl.workers.config.FSDPActorConfig
    optim: {lr: 2.0e-6, lr_scheduler_type: cosine, min_lr_ratio: 0.1, betas: [0.9, 0.95]}
    ppo_max_token_len_per_gpu: 9000
    policy_loss: {loss_mode: clip_cov, clip_cov_ratio: 0.001, clip_cov_lb: 1.5}
  rollout: {name: vllm, n: 4, prompt_length: "${data.max_prompt_length}"}
algorithm:
  adv_estimator: gae
  lam: 0.95
  rollout_correction: {rollout_is: token, rollout_is_threshold: 3.0}
critic: {optim: {lr: 3.0e-5}}
reward: {reward_model: {enable: false, model_path: c/d}}
trainer: {n_gpus_per_node: 1, nnodes: 1, total_epochs: 3}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    return tmp_path


def written(folder: Path, name: str, text: str, *words: str) -> tuple[Any, list[str]]:
    (folder / name).write_text(text)
    lines = importing.convert("verl", Path(name), Path("out.yaml"), 1, words)
    return load(Path("out.yaml")), lines


def names_of(lines: list[str], word: str) -> set[str]:
    return {line.removeprefix(word).strip().partition("=")[0] for line in lines if line.startswith(word)}


def test_a_script_with_overrides_is_carried_over(folder: Path) -> None:
    (folder / "score.py").write_text("def score_it(data_source, solution_str, ground_truth, extra_info, scale): ...\n")
    recipe, lines = written(folder, "run.sh", PLAIN)
    rollout, trainer, algorithm = recipe.rollout, recipe.trainer, recipe.algorithm
    assert (recipe.model, recipe.sources[0].paths) == ("Qwen/Qwen2.5-7B", ["a/train.parquet", "b/train.parquet"])
    assert (recipe.group_size, recipe.groups_per_step, recipe.max_steps) == (5, 64, 300)
    assert (rollout.max_prompt_tokens, rollout.max_new_tokens) == (512, 1024)
    # a micro-batch of 4 rows of 512 + 1024 tokens; a batch of 64 prompts in parts of 16; a tenth of 300 steps
    assert (trainer.tokens_per_microbatch, trainer.minibatches, trainer.warmup_steps) == (6144, 4, 30)
    assert (trainer.learning_rate, trainer.lora.rank, trainer.lora.alpha) == (1e-6, 16, 16.0)
    assert (algorithm.advantage, algorithm.aggregation, algorithm.dual_clip) == ("dr_grpo", "constant", 3.0)
    assert (algorithm.clip_low, algorithm.clip_high, algorithm.filter_equal_rewards) == (0.2, 0.28, True)
    assert (algorithm.kl_coef, algorithm.kl_in, algorithm.kl_estimator) == (0.01, "loss", "k3")
    assert (rollout.replicas, rollout.gpus_per_replica, trainer.ranks) == (4, 2, 8)
    assert rollout.engine_args == {"tensor_parallel_size": 2, "max_num_seqs": 128, "swap_space": 8}
    assert (recipe.reward, recipe.rewards.kwargs) == ("./score.py:score_it", {"scale": 2})
    assert (recipe.eval[0].data.path, recipe.eval[0].every_steps, recipe.eval[0].temperature) == (
        "a/test.parquet",
        5,
        0,
    )
    assert (recipe.checkpoint.every_steps, recipe.track.project, recipe.track.wandb) == (20, "mine", "online")
    assert names_of(lines, "LOST") == {
        "actor_rollout_ref.actor.entropy_coeff",
        "actor_rollout_ref.actor.fsdp_config.param_offload",
        "actor_rollout_ref.rollout.gpu_memory_utilization",
        "trainer.flux_capacitor",
    }


@pytest.mark.parametrize("text", [PLAIN, ARRAYS])
def test_no_name_is_dropped(folder: Path, text: str) -> None:
    (folder / "run.sh").write_text(text)
    carried, _ = verl.read(Path("run.sh"))
    code = [line for line in text.splitlines() if not line.lstrip().startswith(("#", "EXTRA"))]
    given = {
        word.lstrip("+").partition("=")[0] for line in code for word in line.split() if "." in word.partition("=")[0]
    }
    given = {name for name in given if name.partition(".")[0] in ("data", "trainer", "algorithm", "actor_rollout_ref")}
    assert len(given) > 10
    assert given <= {*carried.kept, *carried.lost, *carried.moot}


def test_arrays_variables_and_branches_of_a_script(folder: Path) -> None:
    recipe, lines = written(folder, "run.sh", ARRAYS)
    assert (recipe.model, recipe.sources[0].path) == ("Qwen/Qwen3-8B", "/home/me/train.parquet")
    assert (recipe.rollout.gpus_per_replica, recipe.rollout.replicas, recipe.trainer.ranks) == (2, 2, 4)
    algorithm = recipe.algorithm
    assert (algorithm.advantage, algorithm.loss, algorithm.kl_in, algorithm.kl_estimator) == (
        "rloo",
        "gspo",
        "reward",
        "k1",
    )
    assert (algorithm.kl_coef, recipe.group_size, recipe.max_epochs) == (0.002, 1, 30)
    lost = [line for line in lines if line.startswith("LOST")]
    assert any("overrides in if and case=1: they are not taken" in line for line in lost)
    assert any("trainer.experiment_name" in line and "only known when that script runs" in line for line in lost)
    assert "enforce_eager" not in recipe.rollout.engine_args
    assert "math_verify" in (folder / "out_reward.py").read_text()


def test_a_yaml_is_carried_over(folder: Path) -> None:
    recipe, lines = written(folder, "config.yaml", YAML)
    trainer, algorithm = recipe.trainer, recipe.algorithm
    assert (trainer.schedule, trainer.min_lr_ratio, trainer.optimizer.betas) == ("cosine", 0.1, [0.9, 0.95])
    assert (trainer.tokens_per_microbatch, trainer.critic_learning_rate, recipe.sources[0].shuffle) == (
        9000,
        3e-5,
        False,
    )
    assert (algorithm.advantage, algorithm.gae_lambda, algorithm.normalise_advantages) == ("gae", 0.95, True)
    assert (algorithm.loss, algorithm.cov_share, algorithm.cov_low) == ("clip_cov", 0.001, 1.5)
    assert (algorithm.correction, algorithm.correction_level, algorithm.tis_cap) == ("tis", "token", 3.0)
    assert (recipe.rollout.gpus_per_replica, trainer.gpus_per_rank) == (0.35, 0.65)
    assert "reward.reward_model.model_path" in names_of(lines, "not needed")
    assert names_of(lines, "LOST") == {"actor_rollout_ref.rollout.prompt_length"}
    assert recipe.max_epochs == 3


def test_the_recipe_of_a_script_passes_a_dry_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "rows.jsonl").write_text('{"prompt": "1 + 1?", "reward_model": {"ground_truth": "2"}}\n' * 40)
    assert main(["import", "verl", str(script(folder)), "data.path=rows.jsonl", "group_size=4"]) == 0
    assert "next:\n  asyncrl train run.yaml --dry-run" in capsys.readouterr().out
    assert main(["train", "run.yaml", "--dry-run"]) == 0, capsys.readouterr().err


def script(folder: Path) -> Path:
    (folder / "run.sh").write_text(ARRAYS)
    return Path("run.sh")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("run.sh", "echo nothing\n", "has no key=value of verl"),
        ("c.yaml", "model: a\n", "has none of verl's parts"),
        ("c.yaml", "data: [\n", "is not valid YAML"),
        ("c.yaml", "data: {train_batch_size: 3}\n", "does not say model"),
    ],
)
def test_what_is_none_of_verl_leaves_nothing_behind(folder: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        written(folder, name, text)
    assert {path.name for path in folder.iterdir()} == {name}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A=1\nx.y=$A\n", "1"),
        ("x.y=${A:-${B:-2}}\n", "2"),
        ("x.y=$((2 * (3 + 4)))\n", "14"),
        ("A=3\nx.y=$((A * 2))k\n", "6k"),
        ("x.y='a b'\n", "a b"),
        ("x.y=$(rm -rf /nothing)\n", "$(rm"),
        ('export A=5\nB="${A}"\nx.y=${B}\n', "5"),
    ],
)
def test_variables_of_a_script(text: str, value: str) -> None:
    assert shell.overrides(text)[0] == {"x.y": value}


CALL = "python3 -m verl.trainer.main_ppo"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"if [ -z $A ]; then A=3; fi\n{CALL} x.y=$A\n", {"x.y": "3"}),
        (f"if [ -z $A ]; then A=3; else A=4; fi; {CALL} x.y=$A 2>&1 | tee log.x=1\n", {"x.y": "3"}),
        (f"for seed in 1 2; do\n  {CALL} x.y=1 \\\n    x.z=2\ndone\n", {"x.y": "1", "x.z": "2"}),
        (f"for seed in 1 2; do {CALL} x.y=1; done\n", {"x.y": "1"}),
        (f"cat <<EOF > a.txt\n{CALL} x.y=9\nEOF\n{CALL} x.y=1\n", {"x.y": "1"}),
        (f"cat <<-'END'\nx.y=9\n  END\n{CALL} x.y=1\n", {"x.y": "1"}),
        (f"python prepare.py data.x=1\nA=(x.z=2)\n{CALL} x.y=1 ${{A[@]}}\n", {"x.y": "1", "x.z": "2"}),
        (f"ARGS='x.y=1 x.z=2'\n{CALL} $ARGS\n", {"x.y": "1", "x.z": "2"}),
        (f"{CALL} x.y=1\n  x.z=2 \\\n  x.w=3\n", {"x.y": "1", "x.z": "2", "x.w": "3"}),
        (f"cd a && {CALL} x.y='a;b' || exit 1\n", {"x.y": "a;b"}),
    ],
)
def test_the_call_is_read_wherever_it_stands(text: str, found: dict[str, str]) -> None:
    assert shell.overrides(text) == (found, 0)


def test_several_calls_are_refused(folder: Path) -> None:
    text = f"if [ $A ]; then\n{CALL} data.train_files=a\nelse\n{CALL} data.train_files=b\nfi\n"
    with pytest.raises(UserError, match=r"run\.sh calls verl 2 times; leave one of them"):
        written(folder, "run.sh", text)


def test_a_name_that_looks_like_a_date_is_a_name(folder: Path) -> None:
    call = f"{CALL} data.train_files=a.jsonl actor_rollout_ref.model.path=a/b trainer.experiment_name=2026-13-45\n"
    assert written(folder, "run.sh", call)[0].track.notes == "2026-13-45"


def test_variables_that_double_with_each_line_end() -> None:
    doubled = "".join(f"v{n}=$v{n - 1}$v{n - 1}\n" for n in range(1, 60))
    found, _ = shell.overrides(f"v0=abc\n{doubled}{CALL} x.y=$v59 x.z=$v1\n")
    assert found["x.z"] == "abcabc"
    assert "$" in found["x.y"]


PARTS = "data: {{train_files: a.parquet{data}}}\nactor_rollout_ref: {{model: {{path: a/b}}, actor: {{{actor}}}}}\n"


def of_parts(folder: Path, data: str = "", actor: str = "", more: str = "", *words: str) -> tuple[Any, list[str]]:
    return written(folder, "c.yaml", PARTS.format(data=data, actor=actor) + more, *words)


def test_verls_defaults_are_written(folder: Path) -> None:
    recipe, _ = of_parts(folder)
    assert (recipe.groups_per_step, recipe.trainer.minibatches, recipe.max_epochs) == (1024, 4, 30)
    assert (recipe.rollout.max_prompt_tokens, recipe.rollout.max_new_tokens) == (512, 512)


def test_sampling_and_training_take_turns_as_in_verl(folder: Path) -> None:
    recipe, lines = of_parts(folder)
    assert recipe.max_staleness == 0
    assert "in turns   as verl, with max_staleness=0; max_staleness=1 overlaps sampling and training" in lines


def test_what_the_command_says_is_not_carried_over_from_the_script(folder: Path) -> None:
    recipe, lines = written(folder, "c.sh", PLAIN, "data.path=mine.jsonl", "model=c/d")
    assert (recipe.sources[0].path, recipe.model) == ("mine.jsonl", "c/d")
    assert "data.train_files" in names_of(lines, "not needed")
    assert any(line.endswith("model.path='Qwen/Qwen2.5-7B': the command says model") for line in lines)
    assert not {"data.train_files", "actor_rollout_ref.model.path"} & names_of(lines, "kept")


def test_a_key_of_the_command_that_is_none_is_blamed_on_the_command(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^import: command line, data.train_files: .*data.path"):
        written(folder, "c.sh", PLAIN, "data.train_files=mine.parquet")
    assert not Path("c.yaml").exists()


def test_gspo_is_averaged_over_sequences(folder: Path) -> None:
    recipe, lines = of_parts(folder, actor="loss_agg_mode: token-mean, policy_loss: {loss_mode: gspo}")
    assert recipe.algorithm.aggregation == "sequence"
    assert "actor_rollout_ref.actor.loss_agg_mode" in names_of(lines, "not needed")


def test_of_two_penalties_the_second_is_lost(folder: Path) -> None:
    of_reward = "algorithm: {use_kl_in_reward: true, kl_ctrl: {kl_coef: 0.5}}\n"
    recipe, lines = of_parts(folder, actor="use_kl_loss: true, kl_loss_coef: 0.01", more=of_reward)
    assert (recipe.algorithm.kl_in, recipe.algorithm.kl_coef) == ("loss", 0.01)
    assert names_of(lines, "LOST") == {"algorithm.use_kl_in_reward", "algorithm.kl_ctrl.kl_coef"}


def test_a_share_of_steps_is_of_those_that_the_command_says(folder: Path) -> None:
    share = "optim: {lr_warmup_steps_ratio: 0.1}"
    _, lines = of_parts(folder, actor=share)
    assert "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio" in names_of(lines, "LOST")
    Path("out.yaml").unlink()
    Path("out_reward.py").unlink()
    recipe, _ = of_parts(folder, "", share, "trainer: {total_training_steps: 900}\n", "max_steps=70")
    assert recipe.trainer.warmup_steps == 7


@pytest.mark.parametrize(
    ("actor", "more", "odd"),
    [
        ("optim: {lr_warmup_steps: null, betas: null, lr: null}", "trainer: {logger: null}\n", None),
        ("clip_ratio_low: null, clip_ratio_high: null, fsdp_config: {fsdp_size: 64}", "", None),
        ("ppo_mini_batch_size: 0", "", "actor_rollout_ref.actor.ppo_mini_batch_size"),
        ("ppo_mini_batch_size: abc", "", "actor_rollout_ref.actor.ppo_mini_batch_size"),
        (
            "",
            "algorithm: {rollout_correction: {rollout_is: token, rollout_is_threshold: abc}}\n",
            "algorithm.rollout_correction.rollout_is_threshold",
        ),
        ("", "trainer: {max_actor_ckpt_to_keep: -1}\n", "trainer.max_actor_ckpt_to_keep"),
        ("", "trainer: {max_actor_ckpt_to_keep: null}\n", "trainer.max_actor_ckpt_to_keep"),
        ("", "trainer: {experiment_name: 123, project_name: 4}\n", None),
    ],
)
def test_nulls_and_values_of_another_kind(folder: Path, actor: str, more: str, odd: str | None) -> None:
    recipe, lines = of_parts(folder, actor=actor, more=more)
    assert (odd in names_of(lines, "LOST")) if odd else not names_of(lines, "LOST")
    assert (recipe.algorithm.clip_low, recipe.trainer.optimizer.betas) == (0.2, [0.9, 0.999])


def test_no_value_or_name_becomes_a_key(folder: Path) -> None:
    odd = 'custom: "x\\nrun_dir: /etc/evil #"\n'
    odd += 'custom_reward_function:\n  path: a.py\n  reward_kwargs: {"y\\nseed: 3 #": 1}\n'
    recipe, _ = of_parts(folder, ', prompt_key: "p\\nseed: 4"', "", odd)
    assert (recipe.run_dir, recipe.sources[0].prompt_column) == (None, "p\nseed: 4")
    assert recipe.rewards.kwargs == {"y\nseed: 3 #": 1}
