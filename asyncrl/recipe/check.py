"""Whether a recipe can be run: combinations that cannot work, and files that are not there.

Run before anything is started or written. Imports neither torch nor ray nor vllm, unless a user's own reward,
loss or engine does. Every fault is a UserError that says what to change.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asyncrl.errors import UserError, nearest
from asyncrl.headers import read_headers
from asyncrl.metric_names import MORE_KEYS, STEP_KEYS
from asyncrl.models import TINY_CONTEXT, TINY_LLAMA, TINY_MODULES, local_config, weight_files
from asyncrl.plugins import load_object
from asyncrl.recipe import secret
from asyncrl.recipe.check_algorithm import check_algorithm
from asyncrl.recipe.check_answers import check_answers
from asyncrl.recipe.check_evaluation import check_best, check_evaluations
from asyncrl.recipe.check_sft import check_sft
from asyncrl.recipe.check_teacher import check_teachers
from asyncrl.recipe.check_trainer import check_trainer
from asyncrl.recipe.check_weights import check_weights
from asyncrl.recipe.load import control_settings, nearest_file
from asyncrl.recipe.paths import DATA_FILES
from asyncrl.recipe.schema import Recipe
from asyncrl.recipe.teacher import TeacherRecipe
from asyncrl.registry import ADVANTAGES, CORRECTIONS, ENGINES, LOSSES, TRACKERS, TRAINERS, Engine
from asyncrl.storage.atomic import model_of
from asyncrl.storage.small_files import of_model
from asyncrl.task import MADE

MOST_NAME_BYTES = 255
"""Of one name in a path: Linux's NAME_MAX."""
_HUB_MODEL = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_HUB_DATA = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_TOKENIZER = "tokenizer.json"
_QUICKSTART_MODEL = "models/smollm2-135m-instruct"
_QUICKSTART_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
_STRETCHING = ("linear", "dynamic")
"""Kinds of RoPE scaling whose factor is not in the positions that the config says."""
_SET_BY_ASYNCRL = {
    "model": "use the key model",
    "tokenizer": "use the key model",
    "dtype": "use weights.dtype",
    "seed": "use the key seed",
    "weight_transfer_config": "use weights.channel",
    "scheduler_cls": "a request may only read cached prefixes of its own weights",
    "logprobs_mode": "the objective needs log-probs of the sampled distribution",
}


def check(recipe: Recipe, base_dir: Path, elsewhere: bool = False, trains: bool = True) -> None:
    """Raises UserError for the first thing that would stop the run; relative paths are looked up from `base_dir`.

    `elsewhere`: it will run on other machines; what has an absolute path and is not here may be there. `trains`: unless
    it only evaluates.
    """
    if key := secret.found(recipe.model_dump()):
        raise UserError(
            f"{key} looks like a secret, and a recipe is stored, shown and tracked; leave it out, and let the code "
            "that needs it read the environment"
        )
    _check_run_dir(recipe, base_dir)
    control_settings(recipe)
    check_answers(recipe)
    _check_rollout(recipe)
    check_trainer(recipe)
    _check_keep_best(recipe)
    if not (elsewhere and _is_away(recipe.model)):
        _check_model(recipe, base_dir)
    check_teachers(recipe)
    for teacher in recipe.algorithm.teacher:
        if not (elsewhere and _is_away(teacher.vocabulary)):
            _check_teacher(recipe, teacher, base_dir)
    check_evaluations(recipe, trains)
    check_sft(recipe)
    for key, data in [
        *(("data.path", source) for source in recipe.sources),
        *((f"eval.{i}.data.path", p.data) for i, p in enumerate(recipe.eval)),
        *([("algorithm.sft.data.path", recipe.algorithm.sft.data)] if recipe.algorithm.sft else []),
    ]:
        for path in data.paths:
            if not (elsewhere and _is_away(path)):
                _check_data(key, path, base_dir)
        rates = data.success_rate.path if data.success_rate else None
        if rates is not None and not (elsewhere and _is_away(rates)) and not (base_dir / rates).is_file():
            key = key.removesuffix("path") + "success_rate.path"
            raise UserError(f"{key}: there is no file {rates}{nearest_file(Path(rates), ('.jsonl',), base_dir)}")
    with _no_bytecode():
        _check_reward(recipe, base_dir)
        _own("algorithm.loss", recipe.algorithm.loss, LOSSES, base_dir)
        _own("algorithm.advantage", recipe.algorithm.advantage, ADVANTAGES, base_dir)
        _own("algorithm.correction", recipe.algorithm.correction, ("none", *CORRECTIONS), base_dir)
        _own("trainer.backend", recipe.trainer.backend, TRAINERS, base_dir)
        engine = _engine(recipe.rollout.engine, base_dir)
        for tracker in recipe.track.also:
            _check_tracker(tracker, base_dir, elsewhere)
    check_algorithm(recipe, engine.provides_logprobs)
    check_weights(recipe, engine.holds_weights)


def _is_away(path: str) -> bool:
    return Path(path).is_absolute() and not Path(path).exists()


def _check_run_dir(recipe: Recipe, base_dir: Path) -> None:
    if recipe.run_dir is None or "://" in recipe.run_dir:
        return
    run_dir = base_dir / recipe.run_dir
    if too_long := [name for name in run_dir.parts if len(os.fsencode(name)) > MOST_NAME_BYTES]:
        raise UserError(
            f"run_dir: the name {too_long[0][:40]}… has {len(os.fsencode(too_long[0]))} bytes, and a file system takes "
            f"{MOST_NAME_BYTES}; choose a shorter run_dir"
        )
    if run_dir.exists():
        raise UserError(f"run_dir {recipe.run_dir} exists; choose another run_dir, or `asyncrl resume` it")
    above = next(folder for folder in run_dir.parents if folder.exists())
    try:
        # Modes alone do not tell: root may write in /proc by them, and nobody in a file system that is read-only.
        os.rmdir(tempfile.mkdtemp(prefix=".asyncrl.", dir=above))
    except OSError as error:
        raise UserError(
            f"run_dir {recipe.run_dir} cannot be made in {above}: {error.strerror}; choose another run_dir"
        ) from error


def _check_rollout(recipe: Recipe) -> None:
    rollout = recipe.rollout
    if rollout.first_replicas > rollout.replicas:
        raise UserError(
            f"rollout.replicas: min {rollout.min_replicas} is more than max {rollout.replicas}; lower min or raise max"
        )
    if rollout.cpu_cores and not _is_core_list(rollout.cpu_cores):
        raise UserError(f"rollout.cpu_cores '{rollout.cpu_cores}' is not a list of cores, such as 0-1 or 0,2")
    if rollout.engine == "simulated" and rollout.stop:
        raise UserError("rollout.stop needs text, and engine simulated has none; set rollout.stop_token_ids instead")
    if rollout.engine != "vllm":
        return
    args = rollout.engine_args
    for name, instead in _SET_BY_ASYNCRL.items():
        if name in args:
            raise UserError(f"rollout.engine_args.{name} is set by asyncrl; leave it out: {instead}")
    longest = recipe.max_context
    max_model_len = _whole_number(args, "max_model_len", longest)
    if max_model_len < longest:
        raise UserError(
            f"rollout.engine_args.max_model_len {max_model_len} is below {recipe.max_context_key} = {longest}; leave "
            "it out, or lower one of those"
        )
    gpus = _whole_number(args, "tensor_parallel_size", 1) * _whole_number(args, "pipeline_parallel_size", 1)
    if gpus > 1 and not rollout.gpus_per_replica:
        raise UserError(
            f"the parallel sizes in rollout.engine_args divide the model over {gpus} GPUs, but "
            f"rollout.gpus_per_replica is 0; set it to {gpus}, or leave them out"
        )
    if 0 < rollout.gpus_per_replica < 1 and "gpu_memory_utilization" in args:
        raise UserError(
            f"rollout.engine_args.gpu_memory_utilization is said by rollout.gpus_per_replica, the share of a GPU "
            f"({rollout.gpus_per_replica:g}), and the size of its KV cache by rollout.kv_cache_gib; leave it out"
        )
    if math.ceil(rollout.gpus_per_replica) not in (0, gpus):
        raise UserError(
            f"rollout.gpus_per_replica is {rollout.gpus_per_replica}, but the parallel sizes in rollout.engine_args "
            f"use {gpus}; set rollout.engine_args.tensor_parallel_size={rollout.gpus_per_replica}"
        )


def _is_core_list(text: str) -> bool:
    """Whether it is cores and rising ranges of them, between commas."""
    ranges = [part.split("-") for part in text.split(",")]
    return all(
        len(ends) in (1, 2) and all(end.isdecimal() for end in ends) and int(ends[0]) <= int(ends[-1])
        for ends in ranges
    )


def _whole_number(engine_args: dict[str, Any], name: str, default: int) -> int:
    value = engine_args.get(name, default)
    if type(value) is not int:
        raise UserError(f"rollout.engine_args.{name} must be a whole number, got {value!r}")
    return value


def _check_keep_best(recipe: Recipe) -> None:
    best, known = recipe.checkpoint.keep_best, (*STEP_KEYS, *MORE_KEYS)
    if best is not None and best.startswith("eval/"):
        check_best(recipe, best)
    elif best is not None and best not in known and not best.startswith("reward/"):
        raise UserError(
            f"checkpoint.keep_best: a step has no metric {best}{nearest(best, known)}; it has reward/mean, reward/NAME "
            "for what a reward names, and what metrics.jsonl shows"
        )


def _check_model(recipe: Recipe, base_dir: Path) -> None:
    model = recipe.model
    if model.startswith("random:"):
        if model != TINY_LLAMA:
            raise UserError(f"model {model} is not known; the only random model is {TINY_LLAMA}")
        check_context(recipe, TINY_CONTEXT)
        _check_targets(recipe, TINY_MODULES)
        return
    folder = folder_of("model", model, base_dir)
    if folder is None:
        return
    with of_model(folder / "config.json"):
        context = context_of(local_config(folder))
    check_context(recipe, context)
    if recipe.trainer.lora.rank:
        names = (name.removesuffix(".weight") for name in read_headers(weight_files(str(folder))))
        _check_targets(recipe, {part for name in names for part in name.split(".")})
    if any(source.chat for source in recipe.sources):
        from asyncrl.chat_template import chat_template

        if not chat_template(folder):
            raise UserError(
                f"data.chat is true, but model {model} has no chat template; "
                "use an instruct model, or set data.chat=false"
            )


def _check_teacher(recipe: Recipe, teacher: TeacherRecipe, base_dir: Path) -> None:
    if teacher.url:
        where = base_dir / teacher.vocabulary
        if not (where / _TOKENIZER).is_file() and (where.exists() or not _HUB_MODEL.fullmatch(teacher.vocabulary)):
            raise UserError(
                f"algorithm.teacher {teacher.model}: '{teacher.vocabulary}' is neither a directory with a {_TOKENIZER} "
                "nor a hub name; set algorithm.teacher.tokenizer, so that the vocabularies can be compared"
            )
    elif (folder := folder_of("algorithm.teacher", teacher.model, base_dir)) is not None:
        with of_model(folder / "config.json"):
            context = context_of(local_config(folder))
        check_context(recipe, context, teacher.model)


def folder_of(key: str, model: str, base_dir: Path) -> Path | None:
    """Of a local model; None: it is one of a hub. Raises UserError if it can be neither."""
    folder = base_dir / model
    if not model.startswith((".", "/", "models/", "runs/")) and not folder.exists():
        if not _HUB_MODEL.fullmatch(model):
            kinds = f"a directory, {TINY_LLAMA}" if key == "model" else "a directory"
            raise UserError(f"{key} '{model}' is neither {kinds} nor a hub name organisation/name")
        return None
    if (folder / "config.json").is_file():
        return folder
    fault = "is not a model directory: it has no config.json"
    if not folder.exists():
        looked = "" if Path(model).is_absolute() else f" in {base_dir}, nor beside the recipe"
        fault = f"does not exist{looked}"
    cure = "name a directory as save_pretrained writes it"
    if Path(model) == Path(_QUICKSTART_MODEL):
        cure = f"./scripts/quickstart makes it; if it is elsewhere say {key}=PATH, or take {key}={_QUICKSTART_HUB}"
    elif checkpoint := model_of(model) or model_of(str(base_dir / model)):
        cure = f"the model of that checkpoint is {checkpoint}"
    elif Path(model).parts[0] == "runs":
        cure = f"a run makes it; if it is elsewhere say {key}=PATH"
    raise UserError(f"{key} {model} {fault}; {cure}")


def _check_targets(recipe: Recipe, parts: Collection[str]) -> None:
    """Raises UserError for a name that no module has; `parts`: of the names of tensors, none if not known. What
    a regular expression finds is seen with the model's classes, when the run starts."""
    lora = recipe.trainer.lora
    for target in lora.names if lora.rank and parts else ():
        if (last := target.rpartition(".")[2]) not in parts:
            raise UserError(
                f"trainer.lora.targets: model {recipe.model} has no module {target}{nearest(last, sorted(parts))}"
            )


def check_context(recipe: Recipe, context: int | None, teacher: str = "") -> None:
    """Raises UserError if the longest trajectory has more tokens than the model, or the teacher, has positions (None:
    not known)."""
    longest, key, whose = recipe.max_context, recipe.max_context_key, f"model {recipe.model}"
    if teacher:
        longest, key, whose = recipe.max_tokens, recipe.max_tokens_key, f"algorithm.teacher {teacher}"
    if recipe.algorithm.sft and recipe.max_demonstration > longest and not teacher:
        longest, key = recipe.max_demonstration, "algorithm.sft.data.max_tokens"
    # Overrides of the model's config may give it more.
    overridden = "hf_overrides" in recipe.rollout.engine_args and not teacher
    if context is not None and longest > context and not overridden:
        raise UserError(
            f"{key} = {longest}, but {whose} has {context} positions (config.json); lower one of those, or take a "
            "model with a longer context"
        )


def context_of(config: dict[str, Any]) -> int | None:
    """Positions of a model by its config.json, as vLLM derives them (0.32, config/model.py `_get_and_verify_max_len`);
    None if it does not say."""
    text = {**config, **(config.get("text_config") or {})}
    known = [text[key] for key in _POSITIONS if isinstance(text.get(key), int)]
    if not known:
        return None
    positions = text["model_max_length"] if isinstance(text.get("model_max_length"), int) else min(known)
    if "gemma3" in str(text.get("model_type")):
        return positions
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    # One for all layers, or one for each kind of layers.
    for one in (rope, *(other for other in rope.values() if isinstance(other, dict))):
        if (one.get("rope_type") or one.get("type")) in _STRETCHING and one.get("factor"):
            return int(positions * one["factor"])
    return positions


def _check_data(key: str, path: str, base_dir: Path) -> None:
    if path.startswith(MADE):
        return
    if path.endswith(DATA_FILES):
        if not (base_dir / path).is_file():
            raise UserError(f"{key} {path} does not exist{nearest_file(Path(path), DATA_FILES, base_dir)}")
        return
    if (base_dir / path).is_file() or not ((base_dir / path).is_dir() or _HUB_DATA.fullmatch(path)):
        raise UserError(
            f"{key} '{path}' is neither {'NAME, '.join(MADE)}NAME, a {', '.join(DATA_FILES)} file, nor a hub name"
        )


def _check_reward(recipe: Recipe, base_dir: Path) -> None:
    from asyncrl.envs import load as environment
    from asyncrl.rewards.load import load_part

    for part in (*recipe.reward_parts, *(own for held_out in recipe.eval for own in recipe.parts_of(held_out))):
        load_part(part, base_dir)
    if recipe.env is not None:
        environment.check(recipe.env.path, base_dir, recipe.env.kwargs)


def _own(key: str, spec: str, known: Collection[str], base_dir: Path) -> Any:
    """A user's own that `spec` names; None: it is one of ours."""
    if spec in known:
        return None
    if ":" not in spec:
        raise UserError(f"{key} '{spec}' is neither {', '.join(known)} nor package.module:name{nearest(spec, known)}")
    return _callable(spec, base_dir, key)


def _engine(engine: str, base_dir: Path) -> Engine:
    """The class attributes of an engine; those that a user's own leaves out are true."""
    own = _own("rollout.engine", engine, ENGINES, base_dir)
    if own is None:
        return ENGINES[engine]
    return Engine(engine, getattr(own, "provides_logprobs", True), getattr(own, "holds_weights", True))


def _check_tracker(tracker: str, base_dir: Path, elsewhere: bool) -> None:
    if _own("track.also", tracker, TRACKERS, base_dir) or elsewhere:
        return
    if importlib.util.find_spec(tracker) is None:
        raise UserError(f"track.also {tracker} needs a package that is not installed; pip install 'asyncrl[{tracker}]'")


def _callable(spec: str, base_dir: Path, key: str) -> Any:
    found = load_object(spec, base_dir, key)
    if not callable(found):
        raise UserError(f"{key} '{spec}' is of type {type(found).__name__}, not a function or class")
    return found


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Import without leaving a __pycache__ beside the user's file: a refused run writes nothing."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
