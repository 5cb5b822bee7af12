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

from asyncrl.drafts import trl_data, trl_rewards
from asyncrl.drafts.carried import Carried, Lost, Rule, Unresolved, to
from asyncrl.drafts.script import Script, called
from asyncrl.errors import UserError

KINDS = ("GRPO", "RLOO", "SFT", "DPO")
_LORA = ("r", "lora_alpha", "target_modules")
_STEPS = 200
"""Where the script says epochs of rows that are not counted here."""
_CLIPPING = {"grpo": "sequence", "dapo": "token", "bnpo": "token", "dr_grpo": "constant"}


def read(path: Path, processes: int) -> tuple[Carried, dict[str, str]]:
    """What is carried over, and files to write beside the recipe, by the end of their name. `processes`: that the
    script is launched with. Raises UserError if it has none of these trainers."""
    script = Script(path)
    kind, given, config = _given(script)
    carried = Carried("TRL", {name: script.value(node) for name, node in config.items()})
    files: dict[str, str] = {}
    model = given.pop("model", None)
    if model is not None:
        carried.given["model"] = _model(script, model)
        carried.apply(("model",), to("model")("model"))
    _lora(script, given.pop("peft_config", None), carried)
    dataset, held_out = given.pop("train_dataset", None), given.pop("eval_dataset", None)
    trl_data.carry(script, dataset, held_out, carried)
    if kind in ("GRPO", "RLOO"):
        weights = carried.given.pop("reward_weights", None)
        trl_rewards.carry(script, given.pop("reward_funcs", None), weights, carried, files)
        _of_rl(carried, kind, processes)
    else:
        _of_answers(carried, kind, processes)
    _common(carried)
    for name, node in given.items():
        carried.given.setdefault(name, script.value(node))
    carried.finish()
    return carried, files


def _given(script: Script) -> tuple[str, dict[str, ast.expr], dict[str, ast.expr]]:
    """Kind of trainer, its arguments, and those of its configuration."""
    trainers = list(script.calls(*(f"{kind}Trainer" for kind in KINDS)))
    configs = list(script.calls(*(f"{kind}Config" for kind in KINDS)))
    if not trainers and not configs:
        known = ", ".join(f"{kind}Config" for kind in KINDS)
        raise UserError(f"import: {script.path} calls none of {known}; name the script that does")
    kind = (trainers or configs)[0][0].removesuffix("Trainer").removesuffix("Config")
    places = ("model", "reward_funcs", "args") if kind in ("GRPO", "RLOO") else ("model", "args")
    given = script.keywords(trainers[0][1], places) if trainers else {}
    named = script.resolved(given.pop("args", ast.Constant(None)))
    config = named if isinstance(named, ast.Call) else next((c for n, c in configs if n == f"{kind}Config"), None)
    return kind, given, script.keywords(config, ("output_dir",)) if config else {}


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
        carried.apply(("target_modules",), to("trainer.lora.targets")("target_modules"))
    elif call is not None and not (isinstance(call, ast.Constant) and call.value is None):
        carried.given["peft_config"] = Unresolved(ast.unparse(call))
        carried.lost["peft_config"] = "its values are only known when that script runs; say trainer.lora.rank"


def _of_rl(carried: Carried, kind: str, processes: int) -> None:
    given = carried.given
    group = carried.value("num_generations", 8 if kind == "GRPO" else 2)
    carried.apply(("num_generations",), lambda _: {"group_size": group}, always=True)
    rows = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")
    carried.apply((*rows, "generation_batch_size"), _batch(group, processes), always=True)
    carried.apply(
        ("max_completion_length",), lambda v: {"rollout.max_new_tokens": v.get("max_completion_length", 512)}, True
    )
    carried.apply(("max_prompt_length",), to("rollout.max_prompt_tokens")("max_prompt_length"))
    longest = carried.value("max_completion_length", 512) + (carried.value("max_prompt_length") or 1024)
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
    carried.apply(
        ("beta",), lambda v: {"algorithm.kl_coef": v.get("beta", 0.05 if kind == "RLOO" else 0.0)}, kind == "RLOO"
    )
    carried.apply(("scale_rewards",), _scale)
    if kind == "RLOO":
        carried.put("algorithm.advantage", "rloo", "RLOOTrainer")
    carried.apply(("normalize_advantages",), to("algorithm.normalise_advantages")("normalize_advantages"))
    carried.apply(("mask_truncated_completions",), to("algorithm.mask_truncated")("mask_truncated_completions"))
    carried.apply(
        ("top_entropy_quantile",), lambda v: {"algorithm.entropy_quantile": round(1 - v["top_entropy_quantile"], 6)}
    )
    of_engine = "vllm_importance_sampling_"
    carried.apply(tuple(of_engine + end for end in ("correction", "mode", "clip_max", "cap", "clip_min")), _correction)
    carried.apply(("sync_ref_model", "ref_model_sync_steps"), _reference)


def _batch(group: int, processes: int) -> Rule:
    def rule(v: Mapping[str, Any]) -> Mapping[str, Any]:
        rows, accumulated = v.get("per_device_train_batch_size", 8), v.get("gradient_accumulation_steps", 1)
        at_once = rows * processes
        steps = v.get("steps_per_generation") or accumulated
        if whole := v.get("generation_batch_size"):
            steps = max(1, whole // at_once)
        groups = (v.get("generation_batch_size") or at_once * steps) / group
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
    carried.apply(
        ("max_length", "max_seq_length"), lambda v: {"data.max_tokens": v.get("max_length") or v.get("max_seq_length")}
    )
    longest = carried.value("max_length") or 0
    if longest > 4096:
        carried.put("trainer.tokens_per_microbatch", longest, "the longest row must fit")
    for name in ("completion_only_loss", "assistant_only_loss"):
        if carried.value(name) is False:
            carried.lost[name] = "prompts are not learnt here"
    if kind == "DPO":
        carried.apply(("loss_type",), _preference, always=True)
        carried.apply(("beta",), lambda v: {"algorithm.beta": v.get("beta", 0.1)}, always=True)


def _preference(v: Mapping[str, Any]) -> Mapping[str, Any]:
    name = v.get("loss_type", "sigmoid")
    name = name[0] if isinstance(name, list) and len(name) == 1 else name
    if name not in ("sigmoid", "ipo"):
        raise Lost("of preference losses there are dpo (sigmoid) and ipo")
    return {"algorithm.loss": "dpo" if name == "sigmoid" else "ipo"}


def _common(carried: Carried) -> None:
    is_sft = carried.keys.get("rollout", {}).get("engine") == "data" and "algorithm" not in carried.keys
    rate = carried.value("learning_rate", 2e-5 if is_sft else 1e-6)
    carried.apply(("learning_rate",), lambda _: {"trainer.learning_rate": rate}, always=True)
    carried.apply(("max_steps", "num_train_epochs"), _steps(carried), always=True)
    carried.apply(("lr_scheduler_type",), _schedule, always=True)
    carried.apply(("warmup_steps", "warmup_ratio"), _warmup(carried))
    carried.apply(("weight_decay",), to("trainer.optimizer.weight_decay")("weight_decay"))
    carried.apply(("adam_beta1", "adam_beta2"), _betas, always=True)
    carried.apply(("adam_epsilon",), to("trainer.optimizer.eps")("adam_epsilon"))
    carried.apply(("optim",), _optimizer)
    carried.apply(("max_grad_norm",), to("trainer.max_grad_norm")("max_grad_norm"))
    carried.apply(
        ("gradient_checkpointing",),
        lambda v: {"trainer.gradient_checkpointing": v.get("gradient_checkpointing", True)},
        True,
    )
    carried.apply(("bf16", "fp16"), _precision)
    carried.apply(("save_steps", "save_strategy"), _saves(carried))
    carried.apply(("save_total_limit",), to("checkpoint.keep_last")("save_total_limit"))
    carried.apply(("seed",), to("seed")("seed"))
    carried.apply(("shuffle_dataset",), to("data.shuffle")("shuffle_dataset"))
    carried.apply(("chat_template_kwargs",), to("data.chat_template_kwargs")("chat_template_kwargs"))
    carried.apply(("output_dir",), lambda v: {"run_dir": v["output_dir"]} if v["output_dir"] else {})
    carried.apply(("run_name",), to("track.notes")("run_name"))
    carried.apply(("project",), to("track.project")("project"))
    carried.apply(("report_to",), _trackers)
    carried.apply(("model_init_kwargs",), _loading)
    if "eval" in carried.keys:
        carried.apply(("eval_strategy", "eval_steps", "num_generations_eval"), _evaluations)


def per_batch(carried: Carried) -> int:
    """Their optimizer steps in one of our training steps."""
    trainer = carried.keys.get("trainer", {})
    return int(trainer.get("minibatches", 1) * trainer.get("epochs", 1))


def _steps(carried: Carried) -> Rule:
    def rule(v: Mapping[str, Any]) -> Mapping[str, Any]:
        if v.get("max_steps", -1) > 0:
            return {"max_steps": math.ceil(v["max_steps"] / per_batch(carried))}
        epochs, rows = v.get("num_train_epochs", 3.0), carried.keys.pop("_rows", None)
        if rows is None:
            carried.put("max_steps", _STEPS, "a guess: rows x epochs / groups_per_step")
            raise Lost("how many rows there are is not known here; set max_steps = rows x epochs / groups_per_step")
        return {"max_steps": max(1, math.ceil(rows * epochs / carried.keys.get("groups_per_step", 16)))}

    return rule


def _schedule(v: Mapping[str, Any]) -> Mapping[str, Any]:
    known = {"constant_with_warmup": "constant", "warmup_stable_decay": "wsd"} | {
        n: n for n in ("linear", "cosine", "constant")
    }
    name = v.get("lr_scheduler_type", "linear")
    if name not in known:
        raise Lost("trainer.schedule is constant, linear, cosine or wsd")
    return {"trainer.schedule": known[name]}


def _warmup(carried: Carried) -> Rule:
    def rule(v: Mapping[str, Any]) -> Mapping[str, Any]:
        steps = v.get("warmup_steps") or 0
        # TRL 1.x: a share, if below 1.
        share = v.get("warmup_ratio") or (steps if 0 < steps < 1 else 0)
        of_batches = share * carried.keys.get("max_steps", _STEPS) if share else steps / per_batch(carried)
        return {"trainer.warmup_steps": math.ceil(of_batches)}

    return rule


def _betas(v: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"trainer.optimizer.betas": [v.get("adam_beta1", 0.9), v.get("adam_beta2", 0.999)]}


def _optimizer(v: Mapping[str, Any]) -> Mapping[str, Any]:
    if not str(v["optim"]).startswith("adamw") or "8bit" in str(v["optim"]):
        raise Lost("trainer.optimizer.name is adamw (with fp32 moments) or muon")
    return {"trainer.optimizer.name": "adamw"}


def _precision(v: Mapping[str, Any]) -> Mapping[str, Any]:
    if v.get("fp16"):
        return {"trainer.precision": "fp16", "weights.dtype": "float16"}
    return {"trainer.precision": "bf16" if v.get("bf16") is not False else "fp32"}


def _saves(carried: Carried) -> Rule:
    def rule(v: Mapping[str, Any]) -> Mapping[str, Any]:
        if v.get("save_strategy") == "no":
            return {"checkpoint.every_steps": 0}
        steps = v.get("save_steps", 500)
        if v.get("save_strategy") not in (None, "steps") or steps < 1:
            raise Lost("checkpoints are saved every so many steps; say checkpoint.every_steps")
        return {"checkpoint.every_steps": math.ceil(steps / per_batch(carried))}

    return rule


def _loading(v: Mapping[str, Any]) -> Mapping[str, Any]:
    given = set(v["model_init_kwargs"] or {}) - {
        "dtype",
        "torch_dtype",
        "attn_implementation",
        "use_cache",
        "device_map",
    }
    if given:
        raise Lost(f"of {', '.join(sorted(given))} nothing is here: download what is meant, and name its folder")
    return {}


def _trackers(v: Mapping[str, Any]) -> Mapping[str, Any]:
    named = v["report_to"]
    named = [named] if isinstance(named, str) else list(named or [])
    found: dict[str, Any] = {"track.wandb": "online" if {"wandb", "all"} & set(named) else "off"}
    if also := [name for name in named if name in ("mlflow", "trackio")]:
        found["track.also"] = also
    if odd := set(named) - {"wandb", "all", "none", "tensorboard", "mlflow", "trackio"}:
        raise Lost(f"{', '.join(sorted(odd))} is not here; track.also may be a class of your own (docs/tracking.md)")
    return found


def _evaluations(v: Mapping[str, Any]) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    if isinstance(v.get("eval_steps"), int):
        found["eval.every_steps"] = v["eval_steps"]
    if v.get("num_generations_eval"):
        found["eval.n"] = v["num_generations_eval"]
    return found
