"""What all TRL trainers have of transformers' TrainingArguments: steps, schedule, optimizer, checkpoints, trackers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from asyncrl.drafts.carried import Carried, Lost, Rule, keep_last, of_steps, text, to


def carry(carried: Carried) -> None:
    """After the keys of the trainer's kind, as units depend on them."""
    is_sft = carried.keys.get("rollout", {}).get("engine") == "data" and "algorithm" not in carried.keys
    rate = 2e-5 if is_sft else 1e-6
    carried.apply(("learning_rate",), lambda v: {"trainer.learning_rate": v.get("learning_rate", rate)}, always=True)
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
    carried.apply(("save_total_limit",), keep_last("save_total_limit"), nulls=("save_total_limit",))
    carried.apply(("seed",), to("seed")("seed"))
    carried.apply(("shuffle_dataset",), to("data.shuffle")("shuffle_dataset"))
    carried.apply(("chat_template_kwargs",), to("data.chat_template_kwargs")("chat_template_kwargs"))
    carried.apply(("output_dir",), lambda v: {"run_dir": str(v["output_dir"])} if v["output_dir"] else {})
    carried.apply(("run_name",), text("track.notes", "run_name"))
    carried.apply(("project",), text("track.project", "project"))
    carried.apply(("report_to",), _trackers)
    carried.apply(("model_init_kwargs",), _loading)
    if "eval" in carried.keys:
        carried.apply(("eval_strategy", "eval_steps"), _evaluations(carried))
        carried.apply(("num_generations_eval",), to("eval.n")("num_generations_eval"))


def _per_batch(carried: Carried) -> int:
    """Their optimizer steps in one of our training steps."""
    found = carried.key("trainer.minibatches", 1), carried.key("trainer.epochs", 1)
    return math.prod(one if isinstance(one, int) and one > 0 else 1 for one in found)


def _steps(carried: Carried) -> Rule:
    def rule(v: Mapping[str, Any]) -> Mapping[str, Any]:
        if v.get("max_steps", -1) > 0:
            return {"max_steps": math.ceil(v["max_steps"] / _per_batch(carried))}
        return {"max_epochs": float(v.get("num_train_epochs", 3.0))}

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
        return {"trainer.warmup_steps": of_steps(carried, share) if share else math.ceil(steps / _per_batch(carried))}

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
        return {"checkpoint.every_steps": math.ceil(steps / _per_batch(carried))}

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


def _evaluations(carried: Carried) -> Rule:
    def rule(v: Mapping[str, Any]) -> Mapping[str, Any]:
        steps = v.get("eval_steps", 1)
        if v.get("eval_strategy", "steps") != "steps" or steps < 1:
            raise Lost("evaluations are every so many steps; say eval.every_steps")
        return {"eval.every_steps": math.ceil(steps / _per_batch(carried))} if "eval_steps" in v else {}

    return rule
