import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from asyncrl.errors import UserError
from asyncrl.recipe.check import check, context_of
from asyncrl.recipe.load import load
from asyncrl.registry import ENGINES

RECIPE = """
model: models/chat
data: {path: "reasoning_gym:chain_sum"}
reward: asyncrl.rewards.math:last_number
max_steps: 3
max_staleness: 2
groups_per_step: 4
"""
PLUGINS = """
class Silent:
    provides_logprobs = False

class Plain:
    pass

def loss(logprobs, *rest): ...

def odd(x, y): ...

number = 3
"""
SIMULATED = "rollout.engine=simulated"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a recipe, two local models (one with a chat template), data and plug-ins."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "plugins.py").write_text(PLUGINS)
    (tmp_path / "rows.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    (tmp_path / "rows.txt").write_text("1+1\n")
    for name in ("models/plain", "models/chat", "models/short", "models/empty", "runs/old"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models/plain/config.json").write_text("{}")
    (tmp_path / "models/chat/config.json").write_text('{"max_position_embeddings": 1280}')
    (tmp_path / "models/short/config.json").write_text('{"text_config": {"max_position_embeddings": 1279}}')
    weights = {f"model.layers.0.self_attn.{name}.weight": np.zeros((1, 1)) for name in ("q_proj", "v_proj")}
    save_file(weights, tmp_path / "models/chat/model.safetensors")
    (tmp_path / "models/chat/tokenizer_config.json").write_text('{"chat_template": "x"}')
    return tmp_path


def run(overrides: str) -> None:
    check(load(Path("r.yaml"), overrides.split()), Path.cwd())


BAD = {
    # run directory
    "run_dir=runs/old": r"run_dir runs/old exists; choose another run_dir, or `asyncrl resume` it",
    # staleness
    "policy=sync": r"policy sync needs max_staleness 0, not 2; change one of the two",
    "experimental.policy=one_step": r"policy one_step needs max_staleness 1, not 2; change one of the two",
    "experimental.selection_window=2 on_stale=drop": r"selection_window 2 needs .* on_stale wait, .*; set .* to 1",
    "experimental.selection_window=2 on_stale=mask": r"selection_window 2 needs .* on_stale wait, .*; set .* to 1",
    "experimental.selection_window=2 policy=sync max_staleness=0": r"selection_window 2 needs policy bounded .*",
    "group_size=1": r"algorithm: group_size 1 gives every .* 0 under algorithm\.advantage grpo; set group_size to 2 .*",
    "group_size=1 algorithm.advantage=dr_grpo": r"algorithm: group_size 1 gives .* dr_grpo; .*",
    "group_size=1 algorithm.advantage=rloo": r"algorithm: group_size 1 gives .* rloo; .*",
    "algorithm.credit=turn": r"algorithm: credit turn is for the turns of an environment, .*; set it to episode",
    # rollout
    "rollout.engine_args.model=x": r"rollout\.engine_args\.model is set by asyncrl; leave it out: use the key model",
    "rollout.engine_args.dtype=x": r"rollout\.engine_args\.dtype is set .*: use weights\.dtype",
    "rollout.engine_args.logprobs_mode=x": r"rollout\.engine_args\.logprobs_mode is set by asyncrl; leave it out: .*",
    "rollout.engine_args.weight_transfer_config=x": r"rollout\.engine_args\.weight_.*: use weights\.channel",
    "rollout.engine_args.max_model_len=1000": (
        r"rollout\.engine_args\.max_model_len 1000 is below rollout\.max_prompt_tokens \+ rollout\.max_new_tokens "
        r"= 1280; leave it out, or lower one of those"
    ),
    "rollout.engine_args.max_model_len=8k": r"rollout\.engine_args\.max_model_len must be a whole number, got '8k'",
    "rollout.gpus_per_replica=2": (
        r"rollout\.gpus_per_replica is 2, but the parallel sizes in rollout\.engine_args use 1; "
        r"set rollout\.engine_args\.tensor_parallel_size=2"
    ),
    # trainer
    "trainer.ranks=4 trainer.shard_ranks=3": r"trainer\.shard_ranks 3 does not divide trainer\.ranks 4; .*",
    "trainer.ranks=2 checkpoint.snapshot_every_steps=1": r"checkpoint\.snapshot_every_steps is for one rank; .*",
    "weights.rolling=true": r"weights\.rolling needs channel shared_memory or disk, not auto",
    "trainer.tokens_per_microbatch=1279": (
        r"trainer\.tokens_per_microbatch 1279 is below rollout\.max_prompt_tokens \+ rollout\.max_new_tokens = 1280, "
        r"the longest trajectory; raise it, or lower one of those"
    ),
    # model
    "model=random:llama": r"model random:llama is not known; the only random model is random:tiny-llama",
    "model=llama": r"model 'llama' is neither a directory, random:tiny-llama nor a hub name organisation/name",
    "model=models/short": (
        r"rollout\.max_prompt_tokens \+ rollout\.max_new_tokens = 1280, but model models/short has 1279 positions "
        r"\(config\.json\); lower one of those, or take a model with a longer context"
    ),
    "model=random:tiny-llama": r"rollout\.max_prompt_tokens .* = 1280, but model .*tiny-llama has 512 positions .*",
    "model=a/b/c": r"model 'a/b/c' is neither a directory, .*",
    "model=./models/none": r"model \./models/none does not exist in /.*, nor beside the recipe; name .*",
    "model=/nowhere": r"model /nowhere does not exist; name .*",
    "model=models/empty": r"model models/empty is not a model directory: it has no config\.json; name .*",
    "model=models/smollm2-135m-instruct": (
        r"model models/smollm2-135m-instruct does not exist in /.*, nor beside the recipe; \./scripts/quickstart makes "
        r"it; if it is elsewhere say model=PATH, or take model=HuggingFaceTB/SmolLM2-135M-Instruct"
    ),
    "model=models/plain data.chat=true": (
        r"data\.chat is true, but model models/plain has no chat template; "
        r"use an instruct model, or set data\.chat=false"
    ),
    "model=models/chat trainer.lora.rank=4 trainer.lora.targets=[q_proj,v_prj]": (
        r"trainer\.lora\.targets: model models/chat has no module v_prj; did you mean v_proj\?"
    ),
    "model=random:tiny-llama rollout.max_new_tokens=64 rollout.max_prompt_tokens=64 trainer.lora.rank=4 "
    "trainer.lora.targets=mlp.up_prj": (
        r"trainer\.lora\.targets: model random:tiny-llama has no module mlp\.up_prj; did you mean up_proj\?"
    ),
    # data
    "data.path=row.jsonl": r"data\.path row\.jsonl does not exist; did you mean rows\.jsonl\?",
    "data.path=nowhere/rows.csv": r"data\.path nowhere/rows\.csv does not exist",
    "data.path=rows.txt": r"data\.path 'rows\.txt' is neither reasoning_gym:NAME, verifiers:NAME, a .*, nor a hub name",
    "data.path=./nowhere": r"data\.path '\./nowhere' is neither .*",
    # plug-ins
    "reward=asyncrl.rewards.math:last_numbr": r"reward '.*:last_numbr': .* has no 'last_numbr'; did you mean .*",
    "reward=no_such_module:f": r"reward 'no_such_module:f' does not import: .*",
    "reward=./none.py:f": r"reward '\./none\.py:f' does not import: .*",
    "reward=./plugins.py:number": r"reward '\./plugins\.py:number' is of type int, not a function",
    "reward=./plugins.py:odd": r"reward '\./plugins\.py:odd' takes \(x, y\), but must take .*",
    "algorithm.loss=po": (r"algorithm\.loss 'po' is neither ppo, .*, ipo nor package\.module:name; did you mean ppo\?"),
    "algorithm.loss=./plugins.py:number": r"algorithm\.loss '.*' is of type int, not a function or class",
    "rollout.engine=vlm": r"rollout\.engine 'vlm' is neither vllm, simulated, data nor .*; did you mean vllm\?",
    "rollout.engine=./plugins.py:number": r"rollout\.engine '.*' is of type int, not a function or class",
    # objective
    f"{SIMULATED} algorithm.correction=tis": (
        r"algorithm: correction tis needs behaviour log-probs, but engine simulated gives none; "
        r"set algorithm\.correction=none, or take another rollout\.engine"
    ),
    f"{SIMULATED} algorithm.loss=decoupled_ppo": r"algorithm: loss decoupled_ppo needs .*; set algorithm\.loss=ppo, .*",
    f"{SIMULATED} algorithm.proximal=behaviour": r"algorithm: proximal behaviour needs .*; set algorithm\.prox.*",
    "rollout.engine=./plugins.py:Silent algorithm.correction=tis": r"algorithm: .* engine .*:Silent gives.*",
    "algorithm.correction=tis algorithm.proximal=behaviour": (
        r"algorithm: correction tis has nothing to correct with proximal behaviour; set algorithm\.proximal=recompute"
    ),
    "algorithm.loss=decoupled_ppo algorithm.proximal=behaviour": r"algorithm: loss decoupled_ppo has nothing to .*",
    f"{SIMULATED} algorithm.second_moment_limit=0.1": r"algorithm: second_moment_limit 0\.1 needs .*",
    f"{SIMULATED} algorithm.reject_kl=0.1": r"algorithm: reject_kl 0\.1 needs .*; set algorithm\.reject_kl=null, .*",
    f"{SIMULATED} algorithm.preset=icepop": r"algorithm: correction mis needs .*; set algorithm\.correction=none, .*",
    "algorithm.loss=dpo": r"algorithm: loss dpo is one number per trajectory; set algorithm\.aggregation=sequence",
    "algorithm.preset=tba algorithm.correction=tis": r"algorithm: loss trajectory_balance needs no .*correction=none",
    "algorithm.loss_args.a=1": r"algorithm: loss_args go to a loss of your own, but loss is ppo; .*",
    "algorithm.mis_low=9": r"algorithm: mis_low 9 must be below mis_high 5",
    "algorithm.reference_reset_steps=5": r"algorithm: reference_reset_steps resets a reference policy that nothing .*",
    "algorithm.overlong_buffer=500": r"algorithm: overlong_buffer 500 is longer than rollout\.max_new_tokens; lower it",
    "trainer.minibatches=99": r"algorithm: trainer\.minibatches 99 is more than the groups of a step; set it to .*",
    "group_size=1 algorithm.preset=online_dpo": r"algorithm: group_size 1 gives .*",
    "algorithm.loss=decoupled_ppo algorithm.correction=tis": (
        r"algorithm: correction tis would repeat the weight that loss decoupled_ppo has; set algorithm\.correction=none"
    ),
    # weights
    "weights.channel=none": r"weights\.channel none would never update engine vllm; set weights\.channel=auto",
    f"{SIMULATED} weights.channel=gloo": r"weights\.channel gloo needs weights, engine simulated holds none; .*",
    f"{SIMULATED} weights.verify=true": r"weights\.verify needs weights, engine simulated holds none; .*",
    "weights.channel=nccl": r"weights\.channel nccl needs whole GPUs, but rollout\.gpus_per_replica is 0; set .*",
    "weights.channel=nccl rollout.gpus_per_replica=1": r"weights\.channel nccl .* trainer\.gpus_per_rank is 0; set .*",
}


@pytest.mark.parametrize(("overrides", "message"), BAD.items(), ids=BAD)
def test_what_cannot_run_is_refused_in_one_sentence(folder: Path, overrides: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(overrides)
    assert re.fullmatch(message, str(caught.value))


@pytest.mark.parametrize(
    "overrides",
    [
        "",
        "run_dir=runs/new",
        "policy=sync max_staleness=0",
        "experimental.policy=one_step max_staleness=1",
        "experimental.selection_window=3",
        "on_stale=drop",
        "rollout.engine_args.max_model_len=1280 trainer.tokens_per_microbatch=1280",
        "rollout.gpus_per_replica=2 rollout.engine_args.tensor_parallel_size=2",
        "rollout.gpus_per_replica=1 weights.channel=gloo",
        "rollout.gpus_per_replica=1 trainer.gpus_per_rank=1 weights.channel=nccl",
        "model=Qwen/Qwen2.5-1.5B-Instruct data.chat=true",
        "model=models/plain",
        "model=models/short rollout.max_new_tokens=255",
        "model=models/short rollout.engine_args.hf_overrides.rope_scaling=x",
        "model=random:tiny-llama rollout.max_prompt_tokens=256",
        "model=models/chat data.chat=true",
        "data.chat=true",
        "data.path=rows.jsonl",
        "data.path=openai/gsm8k",
        "data.path=./models",
        "algorithm.loss=./plugins.py:loss",
        "algorithm.loss=decoupled_ppo",
        "algorithm.correction=tis",
        "algorithm.proximal=behaviour",
        f"{SIMULATED} weights.channel=none",
        f"{SIMULATED} algorithm.loss=reinforce algorithm.proximal=behaviour",
        f"{SIMULATED} rollout.engine_args.model=any",
        "rollout.engine=./plugins.py:Plain algorithm.correction=tis",
    ],
)
def test_what_can_run_is_accepted(folder: Path, overrides: str) -> None:
    run(overrides)


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({}, None),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 4096, "seq_length": 2048}, 2048),
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": 4.0}}, 8192),
        ({"max_position_embeddings": 2048, "rope_parameters": {"a": {"rope_type": "dynamic", "factor": 2}}}, 4096),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        ({"max_position_embeddings": 32768, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 32768),
        ({"model_type": "gemma3_text", "max_position_embeddings": 9, "rope_scaling": {"rope_type": "linear"}}, 9),
        ({"text_config": {"max_position_embeddings": 9}, "vision_config": {"max_position_embeddings": 7}}, 9),
    ],
)
def test_the_context_of_a_model(config: dict[str, Any], positions: int | None) -> None:
    assert context_of(config) == positions


def test_a_check_leaves_nothing_beside_the_plugins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = sorted(folder.rglob("*"))
    run("algorithm.loss=./plugins.py:loss rollout.engine=./plugins.py:Plain")
    assert sorted(folder.rglob("*")) == before
    assert sys.dont_write_bytecode is False


def test_engines_by_name_have_the_traits_that_the_check_assumes() -> None:
    for entry in ENGINES.values():
        engine = entry.load()
        assert (engine.provides_logprobs, engine.holds_weights) == (entry.provides_logprobs, entry.holds_weights)
