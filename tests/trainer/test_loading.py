"""A folder is loaded whole or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES, make_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from asyncrl.errors import UserError
from asyncrl.trainer.loading import as_stored, from_folder, outline, some
from asyncrl.trainer.precision import place

Weights = dict[str, torch.Tensor]
DOWN = "model.layers.1.mlp.down_proj.weight"


def changed(model: Path, folder: Path, change: Callable[[Weights], Weights]) -> str:
    shutil.copytree(model, folder)
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {n: t for n, t in w.items() if n != DOWN}, f"it lacks {DOWN}. "),
        (
            lambda w: {f"base_model.{n}": t for n, t in w.items()},
            r"it lacks lm_head.weight, model.embed_tokens.weight, \S+ and 18 more; nothing takes base_model.model.emb",
        ),
        (lambda w: {**w, "extra.weight": torch.zeros(2)}, "nothing takes extra.weight. "),
        (lambda w: {**w, DOWN: torch.zeros(3, 4)}, rf"of another shape are {DOWN} \[3, 4\] for \[64, 128\]. "),
    ],
    ids=["missing", "prefixed", "unused", "shape"],
)
@pytest.mark.parametrize("load", [from_folder, outline])
def test_what_does_not_fit_is_named(
    tiny_model: Path, tmp_path: Path, load: Callable[[str], object], change: Callable[[Weights], Weights], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        load(changed(tiny_model, tmp_path / "m", change))


def test_a_file_cut_short_is_a_sentence(tiny_model: Path, tmp_path: Path) -> None:
    folder = changed(tiny_model, tmp_path / "m", lambda w: w)
    file = Path(folder, "model.safetensors")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match="could not be loaded"):
        from_folder(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w,
        lambda w: {**w, "lm_head.weight": w["model.embed_tokens.weight"].clone()},
        lambda w: {**w, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(16)},
        lambda w: {n.removeprefix("model."): t for n, t in w.items()},
    ],
    ids=["as saved", "tied head beside", "old buffer", "base model"],
)
def test_what_means_the_same_is_loaded(tiny_model: Path, tmp_path: Path, change: Callable[[Weights], Weights]) -> None:
    loaded = dict(from_folder(changed(tiny_model, tmp_path / "m", change)).named_parameters())
    saved = load_file(tiny_model / "model.safetensors")
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())


def test_a_head_of_its_own_beside_a_tied_one_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """Engines would go by the configuration, and compute with the embedding."""
    folder = changed(tiny_model, tmp_path / "m", lambda w: {**w, "lm_head.weight": w["model.embed_tokens.weight"] + 1})
    with pytest.raises(UserError, match=r"ties the output head to the embedding, but the folder has another head"):
        from_folder(folder)


def test_the_hub_form_of_gpt2_is_loaded(tmp_path: Path) -> None:
    """Without the prefix of its base model, with masks that its class ignores."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2))
    model.save_pretrained(tmp_path)
    weights = {n.removeprefix("transformer."): t for n, t in load_file(tmp_path / "model.safetensors").items()}
    weights["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = from_folder(str(tmp_path)).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_as_stored_is_the_same_model(family: str, tmp_path: Path) -> None:
    """Buffers too: Gemma scales its embedding by one, which bf16 would round."""
    folder = str(make_model(family, tmp_path))
    from_folder(folder).to(torch.bfloat16).save_pretrained(folder)
    stored, whole = as_stored(folder), from_folder(folder)
    assert {p.dtype for p in stored.parameters()} == {torch.bfloat16}
    place(stored, torch.device("cpu"))
    tokens = torch.arange(3, 20)[None]
    assert torch.equal(stored(tokens).logits, whole(tokens).logits)


def test_as_stored_takes_no_memory(tiny_model: Path, tmp_path: Path) -> None:
    """Its weights are pages of its file."""
    from_folder(str(tiny_model)).to(torch.bfloat16).save_pretrained(tmp_path)
    model = as_stored(str(tmp_path))
    found = maps()
    for name, parameter in model.named_parameters():
        assert any(start <= parameter.data_ptr() < stop and "safetensors" in file for start, stop, file in found), name


def maps() -> list[tuple[int, int, str]]:
    """Of this process: first address, the one behind the last, file."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    return [(*(int(place, 16) for place in line[0].split("-")), line[-1]) for line in lines]  # type: ignore[misc]


def test_what_is_stored_in_two_types_is_loaded_in_fp32(tiny_model: Path, tmp_path: Path) -> None:
    folder = changed(tiny_model, tmp_path / "m", lambda w: {n: t.half() if n == DOWN else t for n, t in w.items()})
    assert {p.dtype for p in as_stored(folder).parameters()} == {torch.float32}


def test_more_layers_than_tensors_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    """An outline of a million would take gigabytes and minutes."""
    folder = changed(tiny_model, tmp_path / "m", lambda w: w)
    config = json.loads(Path(folder, "config.json").read_text())
    Path(folder, "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**6}))
    with pytest.raises(UserError, match=r"says 1000000 layers .*, and its files hold 20 tensors"):
        outline(folder)


def test_an_outline_has_no_numbers(tiny_model: Path) -> None:
    shapes = {name: p.shape for name, p in outline(str(tiny_model)).named_parameters()}
    assert shapes == {name: p.shape for name, p in from_folder(str(tiny_model)).named_parameters()}
    assert all(p.is_meta for p in outline(str(tiny_model)).parameters())


def test_many_names_are_counted() -> None:
    assert some(["b", "a"]) == "a, b"
    assert some("fedcba") == "a, b, c and 3 more"
