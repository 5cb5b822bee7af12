"""`asyncrl import trl`: the configuration, the trainer, the data and the rewards of a TRL script, to a recipe.

    GRPOConfig(...), GRPOTrainer(...)  --ast-->  names and values  --rules-->  keys, and what could not be carried over

Names and remarks are those of `recipe/names_trl.py`; here is how values are converted.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asyncrl.drafts import trl_data, trl_rewards, trl_training
from asyncrl.drafts.carried import Carried, Lost, Rule, Unresolved, to
from asyncrl.drafts.script import Script, called, text_of
from asyncrl.errors import UserError

KINDS = ("GRPO", "RLOO", "SFT", "DPO")
_AFTER_MODEL = ("processing_class", "compute_loss_func", "compute_metrics", "callbacks", "optimizers")
_LAST = ("optimizer_cls_and_kwargs", "preprocess_logits_for_metrics", "peft_config")
_DATA = ("train_dataset", "eval_dataset")
_OF_RL = ("model", "reward_funcs", "args", *_DATA, "processing_class", "reward_processing_classes", "callbacks")
_PLACES = {
    "GRPO": (*_OF_RL, "optimizers", "peft_config", "tools", "rollout_func", "environment_factory"),
    "RLOO": (*_OF_RL, "optimizers", "peft_config"),
    "SFT": ("model", "args", "data_collator", *_DATA, *_AFTER_MODEL, *_LAST, "formatting_func"),
    "DPO": ("model", "ref_model", "args", "data_collator", *_DATA, "processing_class", *_AFTER_MODEL[2:], *_LAST),
}
"""Arguments of the trainers by place (TRL 1.16)."""
_LORA = ("r", "lora_alpha", "target_modules")
_CLIPPING = {"grpo": "sequence", "dapo": "token", "bnpo": "token", "dr_grpo": "constant"}


def read(path: Path, processes: int, said: Mapping[str, Any] | None = None) -> tuple[Carried, dict[str, str]]:
    """What is carried over, and files to write beside the recipe, by the end of their name. `processes`: that the
    script is launched with; `said`: keys that the command sets. Raises UserError if not one of
    these trainers is called."""
    try:
        return _read(Script(path), processes, said or {})
    except RecursionError:
        raise UserError(f"import: {path} nests expressions too deeply to be read; write them out") from None


def _read(script: Script, processes: int, said: Mapping[str, Any]) -> tuple[Carried, dict[str, str]]:
    kind, given, config = _given(script)
    carried = Carried("TRL", {name: script.value(node) for name, node in config.items()}, said)
    if "args" in carried.given:
        carried.lost["args"] = (
            "its values come from elsewhere (a command line, a file, a branch); of what is not said, TRL's defaults"
        )
    files: dict[str, str] = {}
    model = given.pop("model", None)
    if model is not None:
        carried.given["model"] = _model(script, model)
        carried.apply(("model",), to("model")("model"))
    _lora(script, given.pop("peft_config", None), carried)
    dataset, held_out = given.pop("train_dataset", None), given.pop("eval_dataset", None)
    if not list(script.calls(f"{kind}Trainer")):
        loaded = [call for _, call in script.calls("load_dataset")]
        dataset = loaded[0] if len(loaded) == 1 else None
    trl_data.carry(script, dataset, held_out, carried)
    if kind in ("GRPO", "RLOO"):
        weights = carried.given.pop("reward_weights", None)
        trl_rewards.carry(script, given.pop("reward_funcs", None), weights, carried, files)
        _of_rl(carried, kind, processes)
    else:
        _of_answers(carried, kind, processes)
    trl_training.carry(carried)
    for name, node in given.items():
        carried.given.setdefault(name, script.value(node))
    carried.finish()
    return carried, files


def _given(script: Script) -> tuple[str, dict[str, ast.expr], dict[str, ast.expr]]:
    """Kind of trainer, its arguments, and those of its configuration. Raises UserError if it is not one trainer."""
    trainers = list(script.calls(*(f"{kind}Trainer" for kind in KINDS)))
    configs = list(script.calls(*(f"{kind}Config" for kind in KINDS)))
    calls = trainers or configs
    if not calls:
        known = ", ".join(f"{kind}Config" for kind in KINDS)
        raise UserError(f"import: {script.path} calls none of {known}; name the script that does")
    if len(calls) > 1:
        where = ", ".join(f"{name} in line {call.lineno}" for name, call in calls)
        raise UserError(f"import: {script.path} calls {where}; leave one of them in a copy of it, and name that")
    kind = calls[0][0].removesuffix("Trainer").removesuffix("Config")
    if not trainers:
        return kind, {}, script.keywords(configs[0][1], ("output_dir",))
    trainer = trainers[0][1]
    given = script.keywords(trainer, _PLACES[kind])
    said = given.pop("args", None)
    if said is None:
        return kind, given, {}
    config = script.resolved(said)
    is_call = isinstance(config, ast.Call) and called(config).endswith("Config")
    found = script.keywords(config, ("output_dir",)) if is_call and isinstance(config, ast.Call) else {"args": said}
    return kind, given, found | dict(script.set_later(said, trainer))


def _model(script: Script, node: ast.expr) -> Any:
    node = script.resolved(node)
    if isinstance(node, ast.Call) and called(node) == "from_pretrained" and node.args:
        return script.value(node.args[0])
    return script.value(node)


def _lora(script: Script, node: ast.expr | None, carried: Carried) -> None:
    call = None if node is None else script.resolved(node)
    if isinstance(call, ast.Call) and called(call) == "LoraConfig":
        given = {name: script.value(value) for name, value in script.keywords(call).items()}
        # PEFT's default.
        carried.given |= {"r": 8, "lora_alpha": 8, **given}
        carried.apply(("r",), to("trainer.lora.rank")("r"))
        carried.apply(("lora_alpha",), lambda v: {"trainer.lora.alpha": float(v["lora_alpha"])})
        # Of most models; ours is all linear layers.
        usual = ["q_proj", "v_proj"]
        carried.apply(
            ("target_modules",), lambda v: {"trainer.lora.targets": v.get("target_modules", usual)}, always=True
        )
    elif call is not None and not (isinstance(call, ast.Constant) and call.value is None):
        carried.given["peft_config"] = Unresolved(text_of(call))
        carried.lost["peft_config"] = "its values are only known when that script runs; say trainer.lora.rank"


def _of_rl(carried: Carried, kind: str, processes: int) -> None:
    given = carried.given
    group = carried.number("num_generations", 8 if kind == "GRPO" else 2)
    carried.apply(("num_generations",), lambda _: {"group_size": group}, always=True)
    rows = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")
    carried.apply((*rows, "generation_batch_size"), _batch(group, processes), always=True)
    carried.apply(
        ("max_completion_length",), lambda v: {"rollout.max_new_tokens": v.get("max_completion_length", 512)}, True
    )
    carried.apply(("max_prompt_length",), to("rollout.max_prompt_tokens")("max_prompt_length"))
    longest = carried.number("max_completion_length", 512) + (carried.number("max_prompt_length", 0) or 1024)
    if longest > 4096:
        carried.put("trainer.tokens_per_microbatch", longest, "the longest trajectory must fit")
    carried.apply(("num_iterations",), to("trainer.epochs")("num_iterations"))
    carried.apply(("temperature",), to("rollout.temperature")("temperature"))
    carried.apply(("generation_kwargs",), _stops)
    carried.apply(("use_vllm", "vllm_mode"), lambda _: {"rollout.engine": "vllm"})
    carried.apply(("vllm_tensor_parallel_size",), _tensor_parallel)
    if carried.value("vllm_mode") != "server" and "vllm_gpu_memory_utilization" in given:
        carried.lost["vllm_gpu_memory_utilization"] = (
            "it was the engine's share of a GPU beside the trainer; say rollout.gpus_per_replica, or "
            "rollout.engine_args.gpu_memory_utilization of a GPU of its own"
        )
    carried.apply(("epsilon", "epsilon_high", "loss_type", "importance_sampling_level"), _loss(kind), always=True)
    carried.apply(("delta",), to("algorithm.dual_clip")("delta"))
    carried.apply(("beta",), _kl_of_rewards if kind == "RLOO" else to("algorithm.kl_coef")("beta"), kind == "RLOO")
    carried.apply(("scale_rewards",), _scale)
    if kind == "RLOO":
        carried.put("algorithm.advantage", "rloo", "RLOOTrainer")
        carried.given["RLOOTrainer"] = Unresolved("clipping")
        carried.lost["RLOOTrainer"] = "it clips the ratio of a whole completion; here that of each token is clipped"
    carried.apply(("normalize_advantages",), to("algorithm.normalise_advantages")("normalize_advantages"))
    carried.apply(("mask_truncated_completions",), to("algorithm.mask_truncated")("mask_truncated_completions"))
    carried.apply(
        ("top_entropy_quantile",), lambda v: {"algorithm.entropy_quantile": round(1 - v["top_entropy_quantile"], 6)}
    )
    of_engine = "vllm_importance_sampling_"
    names = tuple(of_engine + end for end in ("correction", "mode", "clip_max", "cap", "clip_min"))
    carried.apply(names, _correction, nulls=names[2:4])
    carried.apply(("sync_ref_model", "ref_model_sync_steps"), _reference)


def _batch(group: int, processes: int) -> Rule:
    def rule(v: Mapping[str, Any]) -> Mapping[str, Any]:
        rows, accumulated = v.get("per_device_train_batch_size", 8), v.get("gradient_accumulation_steps", 1)
        at_once = rows * processes
        whole = v.get("generation_batch_size")
        said = whole // at_once if whole else v.get("steps_per_generation") or accumulated
        # An optimizer step takes all that is accumulated, of several generations if need be.
        steps = max(said, accumulated)
        groups = (whole if whole and said == steps else at_once * steps) / group
        if groups < 1:
            raise Lost(
                f"{at_once * steps} rows on {processes} process(es) are less than a group of {group}; say --processes "
                "as the script is launched with, or groups_per_step=N"
            )
        found: dict[str, Any] = {"groups_per_step": math.ceil(groups)}
        if steps > accumulated:
            found["trainer.minibatches"] = min(max(1, steps // accumulated), math.ceil(groups))
        return found

    return rule


def _stops(v: Mapping[str, Any]) -> Mapping[str, Any]:
    given = dict(v["generation_kwargs"] or {})
    found = {f"rollout.{name}": given.pop(name) for name in ("stop", "stop_token_ids") if given.get(name)}
    if given:
        raise Lost(f"{', '.join(given)} would change the sampled distribution, or is not here; say rollout.stop")
    return found


def _tensor_parallel(v: Mapping[str, Any]) -> Mapping[str, Any]:
    size = v["vllm_tensor_parallel_size"]
    return {"rollout.engine_args.tensor_parallel_size": size, "rollout.gpus_per_replica": size} if size > 1 else {}


def _loss(kind: str) -> Rule:
    def rule(v: Mapping[str, Any]) -> Mapping[str, Any]:
        low = v.get("epsilon", 0.2)
        high = v.get("epsilon_high") or low
        if kind == "RLOO":
            return {"algorithm.clip_low": low, "algorithm.clip_high": high, "algorithm.aggregation": "sequence"}
        name = v.get("loss_type", "dapo")
        if name == "cispo":
            if high <= 1:
                raise Lost("epsilon_high of cispo is the largest weight, which is above 1; say algorithm.clip_high")
            return {"algorithm.loss": "cispo", "algorithm.clip_low": 1.0, "algorithm.clip_high": round(high - 1, 6)}
        if name not in _CLIPPING:
            raise Lost(f"the loss {name} is not here; algorithm.loss may be your own (docs/own_loss.md)")
        found = {"algorithm.clip_low": low, "algorithm.clip_high": high, "algorithm.aggregation": _CLIPPING[name]}
        if v.get("importance_sampling_level") == "sequence":
            found["algorithm.loss"] = "gspo"
        return found

    return rule


def _kl_of_rewards(v: Mapping[str, Any]) -> Mapping[str, Any]:
    """rewards -= beta * sum(logp - logp_ref), over the tokens of a completion."""
    beta = v.get("beta", 0.05)
    found = {"algorithm.kl_coef": beta}
    return found | ({"algorithm.kl_in": "reward", "algorithm.kl_estimator": "k1"} if beta else {})


def _scale(v: Mapping[str, Any]) -> Mapping[str, Any]:
    scale = {True: "group", False: "none"}.get(v["scale_rewards"], v["scale_rewards"])
    if scale not in ("group", "none"):
        raise Lost("rewards are not divided by the deviation of the batch; algorithm.normalise_advantages is nearest")
    return {"algorithm.advantage": "grpo" if scale == "group" else "dr_grpo"}


def _correction(v: Mapping[str, Any]) -> Mapping[str, Any]:
    prefix = "vllm_importance_sampling_"
    if not v.get(f"{prefix}correction", True):
        return {"algorithm.correction": "none"}
    level, _, how = str(v.get(f"{prefix}mode", "sequence_mask")).partition("_")
    most = v.get(f"{prefix}clip_max", v.get(f"{prefix}cap", 3.0))
    found: dict[str, Any] = {"algorithm.correction_level": level}
    if how == "truncate":
        return found | {"algorithm.correction": "tis", "algorithm.tis_cap": float(most)}
    least = v.get(f"{prefix}clip_min") or 0.0
    return found | {"algorithm.correction": "mis", "algorithm.mis_low": least, "algorithm.mis_high": float(most or 1e6)}


def _reference(v: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"algorithm.reference_reset_steps": v.get("ref_model_sync_steps", 512)} if v.get("sync_ref_model") else {}


def _of_answers(carried: Carried, kind: str, processes: int) -> None:
    carried.put("rollout.engine", "data", f"{kind}Trainer: the rows have the answers")

    def rows(v: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "groups_per_step": v.get("per_device_train_batch_size", 8)
            * v.get("gradient_accumulation_steps", 1)
            * processes
        }

    carried.apply(("per_device_train_batch_size", "gradient_accumulation_steps"), rows, always=True)
    carried.apply(("max_length", "max_seq_length"), _longest, always=True, nulls=("max_length", "max_seq_length"))
    longest = carried.keys.get("data", {}).get("max_tokens", 0)
    if longest > 4096:
        carried.put("trainer.tokens_per_microbatch", longest, "the longest row must fit")
    for name in ("completion_only_loss", "assistant_only_loss"):
        if carried.value(name) is False:
            carried.lost[name] = "prompts are not learnt here"
    if kind == "DPO":
        carried.apply(("loss_type",), _preference, always=True)
        carried.apply(("beta",), lambda v: {"algorithm.beta": v.get("beta", 0.1)}, always=True)


def _longest(v: Mapping[str, Any]) -> Mapping[str, Any]:
    named = [v[name] for name in ("max_length", "max_seq_length") if name in v]
    most = next((one for one in named if one is not None), None if named else 1024)
    if most is None:
        raise Lost("rows have no bound there; say data.max_tokens and trainer.tokens_per_microbatch")
    return {"data.max_tokens": int(most)}


def _preference(v: Mapping[str, Any]) -> Mapping[str, Any]:
    name = v.get("loss_type", "sigmoid")
    name = name[0] if isinstance(name, list) and len(name) == 1 else name
    if name not in ("sigmoid", "ipo"):
        raise Lost("of preference losses there are dpo (sigmoid) and ipo")
    return {"algorithm.loss": "dpo" if name == "sigmoid" else "ipo"}
