"""`asyncrl import verl`: a YAML configuration, or a script with `python -m verl.trainer.main_ppo key=value ...`.

Names and remarks are those of `recipe/names_verl.py`; here is how values are converted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asyncrl.drafts import verl_given
from asyncrl.drafts.carried import Carried, Lost, Rule, Unresolved, keep_last, of_steps, text, to

ACTOR, ROLLOUT, MODEL = (f"actor_rollout_ref.{part}." for part in ("actor", "rollout", "model"))
_ENGINE = ("max_num_seqs", "max_num_batched_tokens", "enforce_eager", "enable_prefix_caching", "enable_chunked_prefill")
_ESTIMATORS = {"low_var_kl": "k3", "k3": "k3", "kl": "k1", "k1": "k1", "mse": "k2", "k2": "k2"}
_AGGREGATIONS = {"token-mean": "token", "seq-mean-token-mean": "sequence", "seq-mean-token-sum-norm": "constant"}
_LOSSES = {"vanilla": "ppo", "geo_mean": "gmpo"} | {
    name: name for name in ("gspo", "cispo", "clip_cov", "kl_cov", "dppo_tv", "dppo_kl")
}
_JUDGE = '''"""verl chooses one by data_source; here math-verify judges all rows: change it."""

from asyncrl.rewards.math import math_verify


def reward(completion, reward_model, **row):
    return math_verify(completion, reward_model["ground_truth"])
'''


def read(path: Path, said: Mapping[str, Any] | None = None) -> tuple[Carried, dict[str, str]]:
    """What is carried over, and files to write beside the recipe. `said`: keys that the command sets. Raises UserError
    for what is no configuration."""
    given, in_branches = verl_given.read(path)
    carried = Carried("verl", given, said or {})
    if in_branches:
        carried.given["overrides in if and case"] = Unresolved(str(in_branches))
        carried.lost["overrides in if and case"] = "they are not taken; look whether one of them is yours"
    files: dict[str, str] = {}
    _data(carried)
    _model(carried)
    _reward(carried, files)
    _objective(carried)
    _rollouts(carried)
    _trainer(carried)
    _run(carried)
    carried.finish()
    return carried, files


def _data(c: Carried) -> None:
    c.apply(("data.train_files",), lambda v: {"data.path": _paths(v["data.train_files"])})
    c.apply(
        ("data.prompt_key",),
        lambda v: {"data.prompt_column": v["data.prompt_key"]} if v["data.prompt_key"] != "prompt" else {},
    )
    c.apply(
        ("data.train_batch_size",), lambda v: {"groups_per_step": v.get("data.train_batch_size", 1024)}, always=True
    )
    c.apply((f"{ROLLOUT}n",), lambda v: {"group_size": v.get(f"{ROLLOUT}n", 1)}, always=True)
    for name, key in (("max_prompt_length", "max_prompt_tokens"), ("max_response_length", "max_new_tokens")):
        is_bare = f"{ROLLOUT}{name.removeprefix('max_')}" not in c.given
        c.apply((f"data.{name}",), _length(f"data.{name}", f"rollout.{key}"), always=is_bare)
    for name, key in (("prompt_length", "max_prompt_tokens"), ("response_length", "max_new_tokens")):
        c.apply((f"{ROLLOUT}{name}",), to(f"rollout.{key}")(f"{ROLLOUT}{name}"))
    c.apply(("data.shuffle",), to("data.shuffle")("data.shuffle"))
    c.apply(("data.seed",), lambda v: {"seed": v["data.seed"]} if v["data.seed"] is not None else {})
    prefix = "data.apply_chat_template_kwargs"
    for name in [name for name in c.given if name.startswith(prefix)]:
        c.apply((name,), to("data.chat_template_kwargs" + name.removeprefix(prefix))(name))
    names = (
        "data.val_files",
        "trainer.test_freq",
        "data.val_max_samples",
        f"{ROLLOUT}val_kwargs.n",
        f"{ROLLOUT}val_kwargs.temperature",
    )
    c.apply(names, _held_out)


def _length(name: str, key: str) -> Rule:
    return lambda v: {key: v.get(name, 512)}


def _paths(value: Any) -> Any:
    paths = [value] if isinstance(value, str) else list(value)
    return paths[0] if len(paths) == 1 else paths


def _held_out(v: Mapping[str, Any]) -> Mapping[str, Any]:
    if not v.get("data.val_files") or v.get("trainer.test_freq", -1) <= 0:
        raise Lost("verl evaluates held-out rows with data.val_files and trainer.test_freq > 0; here `eval` says both")
    found = {"eval.data.path": _paths(v["data.val_files"]), "eval.every_steps": v["trainer.test_freq"]}
    if v.get("data.val_max_samples", -1) > 0:
        found["eval.max_tasks"] = v["data.val_max_samples"]
    found["eval.n"] = v.get(f"{ROLLOUT}val_kwargs.n", 1)
    return found | {"eval.temperature": float(v.get(f"{ROLLOUT}val_kwargs.temperature", 0))}


def _model(c: Carried) -> None:
    c.apply((f"{MODEL}path",), to("model")(f"{MODEL}path"))
    c.apply(
        (f"{MODEL}enable_gradient_checkpointing",),
        lambda v: {"trainer.gradient_checkpointing": v.get(f"{MODEL}enable_gradient_checkpointing", True)},
        True,
    )
    if c.value(f"{MODEL}lora_rank", 0):
        c.apply((f"{MODEL}lora_rank",), to("trainer.lora.rank")(f"{MODEL}lora_rank"))
        c.apply((f"{MODEL}lora_alpha",), lambda v: {"trainer.lora.alpha": float(v.get(f"{MODEL}lora_alpha", 16))}, True)
        c.apply((f"{MODEL}target_modules",), to("trainer.lora.targets")(f"{MODEL}target_modules"))
    else:
        c.apply(tuple(f"{MODEL}{end}" for end in ("lora_rank", "lora_alpha", "target_modules")), lambda _: {})


def _reward(c: Carried, files: dict[str, str]) -> None:
    for prefix in ("custom_reward_function.", "reward.custom_reward_function."):
        names = (f"{prefix}path", f"{prefix}name")
        if c.value(names[0]):
            c.apply(names, _function(prefix))
            kwargs = f"{prefix}reward_kwargs."
            for name in [name for name in c.given if name.startswith(kwargs)]:
                c.apply((name,), to(f"rewards.kwargs.{name.removeprefix(kwargs)}")(name))
        else:
            c.apply(names, lambda _: {})
    if "reward" not in c.keys:
        files["_reward.py"] = _JUDGE
        c.put("reward", "./_reward.py:reward", "verl chooses one by data_source: this is math-verify for all")
    for name in [name for name in c.given if name.endswith(("overlong_buffer.len", "overlong_buffer_cfg.len"))]:
        is_on = c.value(name.removesuffix("len") + "enable", True)
        c.apply(
            (name, name.removesuffix("len") + "enable"),
            to("algorithm.overlong_buffer")(name) if is_on else lambda _: {},
        )


def _function(prefix: str) -> Rule:
    def rule(v: Mapping[str, Any]) -> Mapping[str, Any]:
        path, name = str(v[f"{prefix}path"]), v.get(f"{prefix}name") or "compute_score"
        return {"reward": f"{path if path.startswith(('/', './', '../')) else f'./{path}'}:{name}"}

    return rule


def _objective(c: Carried) -> None:
    c.apply(("algorithm.adv_estimator", "algorithm.norm_adv_by_std_in_grpo"), _advantage, always=True)
    for name, key in (("gamma", "gae_gamma"), ("lam", "gae_lambda")):
        c.apply(
            (f"algorithm.{name}",), lambda v, name=name, key=key: {f"algorithm.{key}": float(v[f"algorithm.{name}"])}
        )
    ratios = tuple(f"{ACTOR}clip_ratio{end}" for end in ("", "_low", "_high"))
    c.apply(
        ratios,
        lambda v: {
            f"algorithm.clip_{end}": v.get(f"{ACTOR}clip_ratio_{end}", v.get(ratios[0], 0.2)) for end in ("low", "high")
        },
    )
    loss = f"{ACTOR}policy_loss."
    c.apply(
        (f"{loss}loss_mode",),
        to("algorithm.loss", _LOSSES, "that loss is not here; algorithm.loss may be your own (docs/own_loss.md)")(
            f"{loss}loss_mode"
        ),
    )
    for names, key in (
        (("clip_cov_ratio", "kl_cov_ratio"), "cov_share"),
        (("clip_cov_lb",), "cov_low"),
        (("clip_cov_ub",), "cov_high"),
        (("ppo_kl_coef",), "beta"),
    ):
        of_loss = c.value(f"{loss}loss_mode") in ("clip_cov", "kl_cov")
        for name in names:
            c.apply((f"{loss}{name}",), to(f"algorithm.{key}")(f"{loss}{name}") if of_loss else lambda _: {})
    bound = f"{ACTOR}clip_ratio_c"
    if c.keys.get("algorithm", {}).get("loss", "ppo") == "ppo":
        c.apply((bound,), lambda v: {"algorithm.dual_clip": float(v.get(bound, 3.0))}, always=True)
    elif bound in c.given:
        c.moot[bound] = "it is of the loss ppo alone"
    _aggregation(c)
    _penalty(c)
    c.apply(("algorithm.filter_groups.enable",), to("algorithm.filter_equal_rewards")("algorithm.filter_groups.enable"))
    correction = "algorithm.rollout_correction."
    c.apply((f"{correction}rollout_is", f"{correction}rollout_is_threshold"), _correction(correction))


def _aggregation(c: Carried) -> None:
    name, why = f"{ACTOR}loss_agg_mode", "algorithm.aggregation is token, sequence or constant"
    if c.keys.get("algorithm", {}).get("loss") == "gspo":
        c.put("algorithm.aggregation", "sequence", "as verl's gspo always has it")
        if name in c.given:
            c.moot[name] = "gspo has seq-mean-token-mean"
    else:
        c.apply((name,), to("algorithm.aggregation", _AGGREGATIONS, why)(name))


def _penalty(c: Carried) -> None:
    in_loss = tuple(f"{ACTOR}{end}" for end in ("use_kl_loss", "kl_loss_coef", "kl_loss_type"))
    c.apply(in_loss, _kl("loss", *in_loss))
    in_reward = ("algorithm.use_kl_in_reward", "algorithm.kl_ctrl.kl_coef", "algorithm.kl_penalty")
    if c.value(in_loss[0]) and c.value(in_reward[0]):
        why = "the KL divergence is in the loss too there, and here in one place: algorithm.kl_in"
        c.lost |= {name: why for name in in_reward if name in c.given}
    else:
        c.apply(in_reward, _kl("reward", *in_reward))


def _advantage(v: Mapping[str, Any]) -> Mapping[str, Any]:
    name = v.get("algorithm.adv_estimator", "gae")
    known: dict[str, dict[str, Any]] = {
        "grpo": {"advantage": "grpo" if v.get("algorithm.norm_adv_by_std_in_grpo", True) else "dr_grpo"},
        "gae": {"advantage": "gae", "normalise_advantages": True},
        "rloo": {"advantage": "rloo"},
        "reinforce_plus_plus": {"advantage": "none", "normalise_advantages": True},
        "reinforce_plus_plus_baseline": {"advantage": "dr_grpo", "normalise_advantages": True},
    }
    if (found := known.get(str(name).removesuffix("_vectorized"))) is None:
        raise Lost("algorithm.advantage has no such one, but may be your own (docs/own_loss.md)")
    return {f"algorithm.{key}": value for key, value in found.items()}


def _kl(where: str, use: str, coef: str, kind: str) -> Rule:
    def rule(v: Mapping[str, Any]) -> Mapping[str, Any]:
        if not v.get(use):
            return {}
        name = str(v.get(kind, "low_var_kl" if where == "loss" else "kl")).removesuffix("+")
        if name not in _ESTIMATORS:
            raise Lost("algorithm.kl_estimator is k1, k2 or k3")
        return {
            "algorithm.kl_coef": v.get(coef, 0.001),
            "algorithm.kl_in": where,
            "algorithm.kl_estimator": _ESTIMATORS[name],
        }

    return rule


def _correction(prefix: str) -> Rule:
    def rule(v: Mapping[str, Any]) -> Mapping[str, Any]:
        level, cap = v.get(f"{prefix}rollout_is"), v.get(f"{prefix}rollout_is_threshold", 2.0)
        if not level:
            return {}
        if not isinstance(cap, int | float):
            low, _, high = str(cap).partition("_")
            found = {"algorithm.correction": "mis", "algorithm.mis_low": float(low), "algorithm.mis_high": float(high)}
        else:
            found = {"algorithm.correction": "tis", "algorithm.tis_cap": float(cap)}
        return found | {"algorithm.correction_level": level}

    return rule


def _rollouts(c: Carried) -> None:
    c.apply(
        (f"{ROLLOUT}name",), to("rollout.engine", {"vllm": "vllm"}, "the engine is vLLM, or your own")(f"{ROLLOUT}name")
    )
    c.apply((f"{ROLLOUT}temperature",), lambda v: {"rollout.temperature": float(v[f"{ROLLOUT}temperature"])})
    for name in _ENGINE:
        c.apply((f"{ROLLOUT}{name}",), to(f"rollout.engine_args.{name}")(f"{ROLLOUT}{name}"))
    prefix = f"{ROLLOUT}engine_kwargs.vllm."
    for name in [name for name in c.given if name.startswith(prefix)]:
        c.apply((name,), to(f"rollout.engine_args.{name.removeprefix(prefix)}")(name))
    c.apply(
        (f"{ROLLOUT}dtype",), to("weights.dtype", {t: t for t in ("bfloat16", "float16", "float32")})(f"{ROLLOUT}dtype")
    )
    names = (f"{ROLLOUT}tensor_model_parallel_size", "trainer.n_gpus_per_node", "trainer.nnodes")
    c.apply(names, _division(*names), always=True)
    if f"{ROLLOUT}gpu_memory_utilization" in c.given:
        c.lost[f"{ROLLOUT}gpu_memory_utilization"] = (
            "the trainer had that GPU in turn; rollout.engine_args.gpu_memory_utilization is of an engine's own"
        )


def _division(tensor_parallel: str, per_node: str, nodes: str) -> Rule:
    def rule(v: Mapping[str, Any]) -> Mapping[str, Any]:
        total, size = int(v.get(per_node, 8)) * int(v.get(nodes, 1)), int(v.get(tensor_parallel, 2))
        if total == 1:
            return {"rollout.gpus_per_replica": 0.35, "trainer.gpus_per_rank": 0.65}
        size = min(size, max(1, total // 2))
        replicas = max(1, total // 2 // size)
        found: dict[str, Any] = {"rollout.replicas": replicas, "rollout.gpus_per_replica": size}
        if size > 1:
            found["rollout.engine_args.tensor_parallel_size"] = size
        return found | {"trainer.ranks": total - replicas * size, "trainer.gpus_per_rank": 1}

    return rule


def _trainer(c: Carried) -> None:
    optim = f"{ACTOR}optim."
    c.apply((f"{optim}lr",), to("trainer.learning_rate")(f"{optim}lr"))
    c.apply(("trainer.total_training_steps", "trainer.total_epochs"), _steps(c), always=True)
    why = "trainer.schedule is constant, linear, cosine or wsd"
    for name in ("warmup_style", "lr_scheduler_type"):
        c.apply(
            (f"{optim}{name}",),
            to("trainer.schedule", {"constant": "constant", "cosine": "cosine"}, why)(f"{optim}{name}"),
        )
    c.apply((f"{optim}min_lr_ratio",), to("trainer.min_lr_ratio")(f"{optim}min_lr_ratio"))
    c.apply((f"{optim}lr_warmup_steps", f"{optim}lr_warmup_steps_ratio"), _warmup(c, optim))
    c.apply(
        (f"{optim}weight_decay",),
        lambda v: {"trainer.optimizer.weight_decay": v.get(f"{optim}weight_decay", 0.01)},
        True,
    )
    c.apply((f"{optim}betas",), lambda v: {"trainer.optimizer.betas": list(v.get(f"{optim}betas", [0.9, 0.999]))}, True)
    c.apply(
        (f"{optim}optimizer",),
        to("trainer.optimizer.name", {"AdamW": "adamw"}, "it is adamw or muon")(f"{optim}optimizer"),
    )
    for name in (f"{ACTOR}grad_clip", f"{optim}clip_grad"):
        c.apply((name,), to("trainer.max_grad_norm")(name))
    c.apply((f"{ACTOR}ppo_mini_batch_size",), _minibatches(c), always=True)
    c.apply((f"{ACTOR}ppo_epochs",), to("trainer.epochs")(f"{ACTOR}ppo_epochs"))
    names = ("ppo_max_token_len_per_gpu", "ppo_micro_batch_size_per_gpu", "ppo_micro_batch_size")
    c.apply(tuple(f"{ACTOR}{name}" for name in names), _tokens(c), always=True)
    size = f"{ACTOR}fsdp_config.fsdp_size"
    c.apply(
        (size,), lambda v: {"trainer.shard_ranks": _shards(v[size], c.key("trainer.ranks", 1))} if v[size] > 0 else {}
    )
    rate = "critic.optim.lr"
    if c.keys.get("algorithm", {}).get("advantage") == "gae":
        c.apply((rate,), to("trainer.critic_learning_rate")(rate))


def _steps(c: Carried) -> Rule:
    def rule(v: Mapping[str, Any]) -> Mapping[str, Any]:
        if v.get("trainer.total_training_steps"):
            return {"max_steps": int(v["trainer.total_training_steps"])}
        return {"max_epochs": float(v.get("trainer.total_epochs", 30))}

    return rule


def _warmup(c: Carried, optim: str) -> Rule:
    def rule(v: Mapping[str, Any]) -> Mapping[str, Any]:
        steps, share = v.get(f"{optim}lr_warmup_steps", -1), v.get(f"{optim}lr_warmup_steps_ratio", 0.0)
        return {"trainer.warmup_steps": int(steps) if steps >= 0 else of_steps(c, share) if share else 0}

    return rule


def _minibatches(c: Carried) -> Rule:
    def rule(v: Mapping[str, Any]) -> Mapping[str, Any]:
        whole = c.key("groups_per_step")
        part = v.get(f"{ACTOR}ppo_mini_batch_size", min(256, whole))
        if whole % part:
            raise Lost(f"data.train_batch_size {whole} is no multiple of {part}; say trainer.minibatches")
        return {"trainer.minibatches": whole // part}

    return rule


def _tokens(c: Carried) -> Rule:
    def rule(v: Mapping[str, Any]) -> Mapping[str, Any]:
        longest = c.key("rollout.max_prompt_tokens", 1024) + c.key("rollout.max_new_tokens", 256)
        rows = v.get(f"{ACTOR}ppo_micro_batch_size_per_gpu") or v.get(f"{ACTOR}ppo_micro_batch_size") or 1
        said = v.get(f"{ACTOR}ppo_max_token_len_per_gpu", longest * rows)
        return {"trainer.tokens_per_microbatch": max(said, longest)}

    return rule


def _shards(size: int, ranks: int) -> int:
    if size < ranks and ranks % size:
        raise Lost(f"it does not divide the {ranks} ranks of the trainer; say trainer.shard_ranks")
    return min(size, ranks)


def _run(c: Carried) -> None:
    c.apply(
        ("trainer.save_freq",),
        lambda v: {"checkpoint.every_steps": max(0, v.get("trainer.save_freq", -1))},
        always=True,
    )
    kept = "trainer.max_actor_ckpt_to_keep"
    c.apply((kept,), keep_last(kept), nulls=(kept,))
    c.apply(("trainer.default_local_dir",), to("run_dir")("trainer.default_local_dir"))
    c.apply(("trainer.project_name",), text("track.project", "trainer.project_name"))
    c.apply(("trainer.experiment_name",), text("track.notes", "trainer.experiment_name"))
    c.apply(("trainer.logger",), _loggers)


def _loggers(v: Mapping[str, Any]) -> Mapping[str, Any]:
    named = v["trainer.logger"]
    named = [named] if isinstance(named, str) else list(named or [])
    if odd := set(named) - {"console", "wandb", "tensorboard", "mlflow", "trackio", "file"}:
        raise Lost(f"{', '.join(sorted(odd))} is not here; track.also may be a class of your own (docs/tracking.md)")
    found: dict[str, Any] = {"track.wandb": "online" if "wandb" in named else "off"}
    if also := [name for name in named if name in ("mlflow", "trackio")]:
        found["track.also"] = also
    return found
