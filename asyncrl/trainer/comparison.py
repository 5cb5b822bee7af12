"""Is an exported folder the model? At start against the folder that it came from, at the end against the trainer.

at start  untouched model --export--> scratch: every tensor against the initial folder's, log-probs of a text
at end    the last checkpoint's model/ --load--> every tensor and the log-probs against the trainer's
For that the folder is loaded once more, in fp32 on the host; where there is no room for it, that is said, and what is
compared are names, shapes and, at start, numbers, one tensor at a time.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from asyncrl import memory
from asyncrl.errors import RunFailed, UserError
from asyncrl.headers import Header, read_headers
from asyncrl.models import weight_files
from asyncrl.trainer.export import exported_type
from asyncrl.trainer.loading import from_folder, some

logger = logging.getLogger(__name__)

_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
"""Mean |difference| of log-probs in nats that rounding to it explains: about 1e-6, and 0.02 in bf16, were seen."""
_USUAL_NATS = 5.0
"""Mean of -log-prob of a text up to which these hold."""


def require_unchanged(model: Any, exported: Path, tokens: list[int], rounded_to: torch.dtype) -> None:
    """The untouched model, whole, is what was exported to a folder. Raises UserError if that folder is not what the
    model was loaded from.

    rounded_to: the coarsest type that the numbers pass.
    """
    path = model.name_or_path
    theirs, ours = read_headers(weight_files(path)), read_headers(weight_files(str(exported)))
    # The folder of a base model lacks the first part of all names.
    longer = {name: f"{model.base_model_prefix}.{name}" for name in theirs}
    same = {name: name if name in ours else longer[name] for name in theirs if name in ours or longer[name] in ours}
    if changed := _changed(theirs, ours, same):
        raise UserError(
            f"model: an export of {path} would not be what it came from: other numbers are in {some(changed)}; open an "
            "issue with the model's name"
        )
    _say(path, theirs, ours, same, tied=set(model.all_tied_weights_keys))
    if not _has_room(model):
        return
    # Both in the type that the model has now, so that they differ by their weights alone.
    again = from_folder(str(exported), dtype=model.dtype)
    own = logprobs(model, tokens)
    gap = _gap(own, logprobs(again, tokens))
    if not gap <= _tolerance(model, rounded_to, own):
        raise UserError(
            f"model: an export of {path} would compute something else: its log-probs of a fixed text are {gap:.3g} "
            "nats a token off; open an issue with the model's name"
        )


def require_same(
    model: Any,
    weights: Mapping[str, torch.Tensor],
    exported: Path,
    expected: list[float],
    tokens: list[int],
    dtype: torch.dtype,
    rounded_to: torch.dtype,
) -> None:
    """A folder, loaded again, is the trainer's model. Raises RunFailed if it is not.

    weights: of the trainer, whole, adapters merged. expected: the trainer's log-probs of tokens[1:]. dtype: of the
    folder. rounded_to: the coarsest type that the numbers pass.
    """
    if not _has_room(model):
        return
    loaded = from_folder(str(exported))
    own = dict(loaded.named_parameters())
    changed = [
        name
        for name, weight in weights.items()
        if not torch.equal(own[name], weight.to("cpu", exported_type(model, name, dtype)).float())
    ]
    trainers = torch.tensor(expected)
    gap = _gap(trainers, logprobs(loaded, tokens))
    if changed or not gap <= _tolerance(model, rounded_to, trainers):
        numbers = f", and other numbers are in {some(changed)}" if changed else ""
        raise RunFailed(
            f"{exported}, loaded again, is not the trainer's model: its log-probs of a fixed text are {gap:.3g} nats a "
            f"token off{numbers}. The trainer's own files beside it are whole; open an issue with the model's name"
        )


@torch.no_grad()
def logprobs(model: Any, tokens: list[int]) -> torch.Tensor:
    """log pi of tokens[1:] at temperature 1, float32 [N], on the host."""
    ids = torch.tensor(tokens, device=model.device)
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
    found: torch.Tensor = logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    return found.cpu()


def _tolerance(model: Any, rounded_to: torch.dtype, found: torch.Tensor) -> float:
    """Of log-probs `found`: what rounding does to logits is a share of them, and a model that has lost its way has
    large ones. A GPU's kernels may round the factors of fp32 products to TF32."""
    usual = max(_TOLERANCE[rounded_to], 1e-2 if model.device.type == "cuda" else 0.0)
    return usual * max(1.0, float(found.abs().mean()) / _USUAL_NATS)


def _gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().mean())


def _changed(theirs: Mapping[str, Header], ours: Mapping[str, Header], same: Mapping[str, str]) -> list[str]:
    """The names whose tensors are not those of ours, but for rounding to our types."""
    with contextlib.ExitStack() as stack:
        paths = {header.file for header in (*theirs.values(), *ours.values())}
        files = {path: stack.enter_context(safe_open(path, framework="pt")) for path in paths}

        def is_copy(name: str, own: str) -> bool:
            written = files[ours[own].file].get_tensor(own)
            return torch.equal(files[theirs[name].file].get_tensor(name).to(written.dtype), written)

        return [name for name, own in same.items() if not is_copy(name, own)]


def _say(
    path: str, theirs: Mapping[str, Header], ours: Mapping[str, Header], same: Mapping[str, str], tied: set[str]
) -> None:
    """What an export holds otherwise than the initial folder, on purpose."""
    dropped = theirs.keys() - same.keys() - tied
    if dropped:
        logger.warning("exported models lack what the model's class does not use of %s: %s", path, some(dropped))
    types: dict[tuple[str, str], int] = {}
    for name, own in same.items():
        pair = theirs[name].dtype, ours[own].dtype
        types[pair] = types.get(pair, 0) + (pair[0] != pair[1])
    for (before, after), number in types.items():
        if before == "F32" and number:
            logger.warning(
                "exported models hold %d tensors as %s that are F32 in %s (weights.dtype; float32 keeps them so)",
                *(number, after, path),
            )
        elif number:
            logger.info("exported models hold %d tensors as %s that are %s in %s", number, after, before, path)


def _has_room(model: Any) -> bool:
    """Whether the host has memory for a second copy in fp32, and half of what is free to spare."""
    needed = 4 * sum(p.numel() for p in model.parameters())
    room = 2 * needed < memory.available()
    if not room:
        logger.warning("the exported model is not loaded again to be compared: that takes %d GiB", -(-needed // 2**30))
    return room
