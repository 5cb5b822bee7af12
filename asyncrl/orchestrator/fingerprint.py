"""What a run was begun with: data, reward, prompts and training, known again by their contents, wherever they lie.

RUN_DIR/fingerprint.json    parts: kind -> fact -> value    draws: where the data begins    changes: those accepted

A run goes on only with what it was begun with, or with a change that its user accepts. Its model: `same_model.py`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from asyncrl.control.controller import Controller
from asyncrl.data.check import exact_tokenizer
from asyncrl.data.mixture import Tasks
from asyncrl.data.order import Draws
from asyncrl.data.sft import load_source
from asyncrl.data.tasks import TaskSource
from asyncrl.errors import UserError
from asyncrl.metric_names import nth
from asyncrl.models import fingerprint as model_fingerprint
from asyncrl.orchestrator.kinds import KINDS
from asyncrl.recipe.schema import Recipe
from asyncrl.storage.run_dir import json_object
from asyncrl.storage.run_dir import replace as replace_file

_FILE = "fingerprint.json"
_HASH_CHARS = 16
_HASHED = (
    *("content", "source", "environment's source", "chat template"),
    *("loss", "advantage", "correction", "engine", "trainer", "teachers", "demonstrations"),
)
_TRAINING = ("trainer.", "algorithm.")
_PLACES = {
    *("trainer.ranks", "trainer.shard_ranks", "trainer.gpus_per_rank", "trainer.cpu_threads"),
    "trainer.optimizer.offload",
}
"""Where is trained, not what."""

Parts = dict[str, dict[str, Any]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fingerprint:
    parts: Parts
    """By kind: facts in words, or hashes of contents."""
    draws: Draws = field(default_factory=Draws)
    """Which draws the present data gives."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    """Accepted ones: step, the first that is trained with it, kind, and what differed; of kind `recipe`, its key."""

    def write(self, run_dir: Path) -> None:
        replace_file(run_dir / _FILE, json.dumps(asdict(self), indent=1))


def taken(
    recipe: Recipe, base_dir: Path, tasks: Tasks, tokenizer: Any, demonstrations: TaskSource | None = None
) -> Fingerprint:
    """Of what a recipe names, as it is now; `demonstrations`: the rows of `algorithm.sft`."""
    data, parts_of_reward = recipe.sources, recipe.reward_parts
    template = getattr(tokenizer, "chat_template", None)
    parts: Parts = {
        "data": {
            "rows": tasks.num_rows,
            "left out": _each(source["left_out"] for source in tasks.selected()),
            "content": tasks.digest(),
            "seed": recipe.seed,
            "shuffle": _each(s.shuffle for s in data),
        },
        "reward": {
            "function": _each(p.fn.rpartition(":")[2] for p in parts_of_reward) or "",
            "source": _each(_source(p.fn, base_dir) for p in parts_of_reward) or None,
            "kwargs": _each(dict(p.kwargs) for p in parts_of_reward) or {},
            "weights": _each([p.source, p.name, p.weight] for p in parts_of_reward if p.name),
            "skip_special_tokens": recipe.rewards.skip_special_tokens,
            **_environment(recipe, base_dir),
        },
        "prompt": {
            "column": tasks.column,
            **({"answers": list(tasks.answers) or "chat"} if recipe.from_data else {}),
            "chat": _each(s.chat for s in data),
            "system": _each(s.system for s in data),
            "chat template": _hash(json.dumps(template, sort_keys=True).encode()),
            "chat_template_kwargs": _each(s.chat_template_kwargs for s in data),
        },
        "training": {
            "loss": _source(recipe.algorithm.loss, base_dir),
            "advantage": _source(recipe.algorithm.advantage, base_dir),
            "correction": _source(recipe.algorithm.correction, base_dir),
            "engine": _source(recipe.rollout.engine, base_dir),
            "trainer": _source(recipe.trainer.backend, base_dir),
            "teachers": _teachers(recipe, base_dir),
            "demonstrations": demonstrations.digest() if demonstrations else None,
        },
    }
    # As it comes back from the file.
    return Fingerprint(json.loads(json.dumps(parts)))


def _each(values: Iterable[Any]) -> Any:
    """One as it is, for a recipe that has one; several as a list."""
    found = [*values]
    return found[0] if len(found) == 1 else found


def _environment(recipe: Recipe, base_dir: Path) -> dict[str, Any]:
    if recipe.env is None:
        return {}
    return {
        "environment": recipe.env.path.rpartition(":")[2],
        "environment's source": _source(recipe.env.path, base_dir),
        "environment's kwargs": recipe.env.kwargs,
    }


def _teachers(recipe: Recipe, base_dir: Path) -> str | None:
    if not recipe.algorithm.teacher:
        return None
    told = []
    for teacher in recipe.algorithm.teacher:
        folder = base_dir / teacher.model
        model = str(folder) if folder.is_dir() and not teacher.url else teacher.model
        found = teacher.model if teacher.url else model_fingerprint(model)
        told.append([found, teacher.hint] if teacher.hint else found)
    return _hash(json.dumps(told).encode())


def read(run_dir: Path) -> Fingerprint | None:
    """None: the run was begun by a version that kept none."""
    if not (found := json_object(run_dir, _FILE)):
        return None
    try:
        return msgspec.convert(found, Fingerprint)
    except msgspec.ValidationError as error:
        raise UserError(f"{run_dir / _FILE} is not of a run ({error}); put the file back") from error


def changes(run_dir: Path) -> list[dict[str, Any]]:
    """What the user accepted since the run began."""
    before = read(run_dir)
    return before.changes if before else []


def compared(
    run_dir: Path,
    now: Fingerprint,
    accepted: Collection[str],
    controller: Controller,
    keys: Mapping[str, tuple[Any, Any]],
    again: int = 0,
) -> Fingerprint:
    """What the run goes on with. Raises UserError if it differs from what the run was begun with in a kind that is not
    accepted. keys: those of the recipe that were changed, before and now. again: steps that are to be trained again."""
    before = read(run_dir)
    if before is None:
        logger.warning(
            "%s says nothing of what it was begun with: see that data, reward and prompts are the same as then", run_dir
        )
        return now
    parts = {kind: (before.parts.get(kind, {}), now.parts[kind]) for kind in KINDS}
    differences = {kind: found for kind, (was, new) in parts.items() if (found := _difference(was, new))}
    if "data" in differences and "left out" not in before.parts.get("data", {}) and now.parts["data"].get("left out"):
        differences["data"] += ", as rows that cannot be trained are left out before the first draw now"
    trained = {key: values for key, values in keys.items() if shapes_training(key)}
    if trained and again:
        found = f"{_listed(trained)}, and the {again} steps since the last checkpoint are trained again"
        differences["training"] = ", ".join(filter(None, [differences.get("training"), found]))
    if refused := [kind for kind in differences if kind not in accepted]:
        shown = " and ".join(f"another {kind} ({differences[kind]})" for kind in refused)
        meaning = ", ".join(KINDS[kind] for kind in refused)
        raise UserError(
            f"{run_dir} was begun with {shown}; put back what it was, or resume with `--accept {','.join(refused)}` "
            f"too, which {meaning}"
        )
    draws = before.draws
    if "data" in differences:
        draws = Draws.begun_anew(controller, draws.first_row + before.parts["data"]["rows"])
        if controller.num_to_skip:
            logger.warning(
                "%d draws that were to be skipped stay so: as many rows of the new data are first drawn an epoch later",
                controller.num_to_skip,
            )
    step = controller.steps_done
    since = {"step": step, "trained_from": step - again}
    changes = [{**since, "kind": kind, "what": what} for kind, what in differences.items()]
    for change in changes:
        logger.warning("from step %d on with another %s (%s): accepted", nth(step), change["kind"], change["what"])
    for key, values in keys.items():
        what = _listed({key: values})
        logger.info("from step %d on %s", nth(step), what)
        changes.append({**since, "kind": "recipe", "key": key, "what": what})
    return replace(now, draws=draws, changes=[*before.changes, *changes])


def require_demonstrations(run_dir: Path, recipe: Recipe, base_dir: Path) -> None:
    """Raises UserError if the rows of `algorithm.sft` are not those that the run was begun with."""
    if recipe.algorithm.sft is None or (before := read(run_dir)) is None:
        return
    known = before.parts.get("training", {}).get("demonstrations")
    if known is not None and known != load_source(recipe, base_dir, exact_tokenizer(recipe, base_dir)).digest():
        raise UserError(
            f"{run_dir} was begun with other demonstrations than there are in {recipe.algorithm.sft.data.title} "
            "(algorithm.sft); put them back"
        )


def shapes_training(key: str) -> bool:
    """Whether the weights after a step depend on this key of the recipe."""
    return key.startswith(_TRAINING) and key not in _PLACES


def trained_anew_at(run_dir: Path) -> int:
    """The last step from which on a resume trained otherwise than before, or on other ranks, which sum in another
    order; 0 if none did."""
    shaping = (c for c in changes(run_dir) if c["kind"] == "training" or c.get("key", "").startswith(_TRAINING))
    return max((c.get("trained_from", c["step"]) for c in shaping), default=0)


def _source(spec: str, base_dir: Path) -> str | None:
    """Of the file that a reward is in; it may have moved."""
    where = spec.rpartition(":")[0]
    if not where:
        return None  # one of ours
    if where.endswith(".py"):
        path = base_dir / where
    else:
        found = importlib.util.find_spec(where)
        path = Path(found.origin) if found is not None and found.origin else base_dir / where
    return _hash(path.read_bytes()) if path.is_file() else None


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_HASH_CHARS]


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The facts that differ, in words; nothing if none does. One that only one version of asyncrl keeps is none."""
    return _listed({fact: (was, now[fact]) for fact, was in before.items() if fact in now and was != now[fact]})


def _listed(values: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(
        f"other {fact}" if fact in _HASHED else f"{fact} was {json.dumps(was)}, is {json.dumps(new)}"
        for fact, (was, new) in values.items()
    )
