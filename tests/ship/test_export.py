"""What is handed over computes, renders and ends as what was trained, under plain names, in the type asked for."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_model
from safetensors.torch import load_file, save_file
from shipped_runs import make_run
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from asyncrl.checkpoint import files
from asyncrl.cli import main
from asyncrl.errors import RunFailed, UserError
from asyncrl.headers import read_headers
from asyncrl.models import make_tiny_llama
from asyncrl.recipe.load import dump, load
from asyncrl.ship import export as shipping
from asyncrl.ship.export import export
from asyncrl.ship.wish import Wish
from asyncrl.trainer import export as writing
from asyncrl.trainer.learner import Learner
from asyncrl.trainer.loading import from_folder
from asyncrl.trainer.model import head

IDS = torch.arange(5, 45)[None]
TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.float()(IDS).logits
    return found


def transformers_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@torch.no_grad()
def trained(ours: Learner) -> torch.Tensor:
    """Of the learner's own weights, adapters and all, by transformers' usual attention."""
    ours.model.set_attn_implementation("eager")
    return head(ours.model).logits(ours.model.get_decoder()(IDS).last_hidden_state)


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("llama_tied", {}),
        ("gpt2", {}),
        ("glm4_moe", {}),
        ("llama_tied", {"rank": 4}),
        ("llama_tied", {"rank": 4, "targets": ["embed_tokens", "q_proj"]}),
        ("gpt2", {"rank": 4}),
        ("qwen3_moe", {"rank": 4}),
    ],
)
def test_a_reloaded_folder_gives_the_same_logits(family: str, lora: dict[str, Any], tmp_path: Path) -> None:
    base = make_model(family, tmp_path / "base")
    AutoTokenizer.from_pretrained(make_tiny_llama(tmp_path / "tiny", 0)).save_pretrained(base)
    run_dir, ours = make_run(tmp_path, base, lora)
    out = export(run_dir, Wish(dtype="float32"), tmp_path / "out")
    exported = logits(transformers_of(out))
    torch.testing.assert_close(exported, trained(ours), rtol=1e-4, atol=1e-4)
    assert float((exported - logits(transformers_of(base))).abs().max()) > 1e-2
    names = set(read_headers(out.glob("*.safetensors")))
    assert names == set(read_headers(base.glob("*.safetensors")))
    assert not any("lora" in name or "base_layer" in name or name.startswith("base_model") for name in names)


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama_tied", "all-linear"),
        ("llama_tied", "layers.0.self_attn.q_proj"),
        ("llama", ["embed_tokens", "o_proj"]),
        ("gpt2", "all-linear"),
        ("qwen3_moe", "all-linear"),
    ],
)
def test_peft_loads_the_adapter_and_gives_the_same_logits(family: str, targets: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    base = make_model(family, tmp_path / "base")
    AutoTokenizer.from_pretrained(make_tiny_llama(tmp_path / "tiny", 0)).save_pretrained(base)
    run_dir, ours = make_run(tmp_path, base, {"rank": 4, "alpha": 8.0, "targets": targets})
    out = export(run_dir, Wish(adapter=True, dtype="float32"), tmp_path / "out")
    assert not (out / "config.json").exists()
    theirs = transformers_of(base)
    alone = logits(theirs)
    adapted = PeftModel.from_pretrained(theirs, out)
    torch.testing.assert_close(logits(adapted), trained(ours), rtol=1e-4, atol=1e-4)
    assert float((logits(adapted) - alone).abs().max()) > 1e-2
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert {header.dtype for header in read_headers([out / "adapter_model.safetensors"]).values()} == {"F32"}


@pytest.fixture
def tiny_run(tiny_model: Path, tmp_path: Path) -> Path:
    return make_run(tmp_path, tiny_model)[0]


@pytest.mark.parametrize("dtype", TYPES)
def test_every_tensor_is_of_the_type_asked_for(tiny_run: Path, tmp_path: Path, dtype: str) -> None:
    out = export(tiny_run, Wish(dtype=dtype), tmp_path / "out")
    assert {header.dtype for header in read_headers(out.glob("*.safetensors")).values()} == {TYPES[dtype]}
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    masters = files.read(tiny_run / "checkpoints/step_000002/trainer", "model.")
    wanted = getattr(torch, dtype)
    for name, tensor in load_file(out / "model.safetensors").items():
        assert torch.equal(tensor, masters[f"model.{name}"][...].to(wanted))


def test_steps_are_chosen_and_the_newest_is_the_default(tiny_run: Path, tmp_path: Path) -> None:
    first, newest, second = (export(tiny_run, Wish(step), tmp_path / f"out{step}") for step in (1, None, 2))
    tensors = [load_file(folder / "model.safetensors") for folder in (first, newest, second)]
    assert all(torch.equal(tensor, tensors[2][name]) for name, tensor in tensors[1].items())
    assert not all(torch.equal(tensor, tensors[2][name]) for name, tensor in tensors[0].items())
    # In the type of the weights that the generators had, it is what the checkpoint has for them.
    saved = load_file(tiny_run / "checkpoints/step_000002/model/model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in tensors[2].items())


def test_it_renders_and_ends_as_in_training(tiny_model: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    config = json.dumps({"eos_token_id": 2, "do_sample": False, "temperature": 0.6}, indent=4)
    (base / "generation_config.json").write_text(config)
    rollout = {"temperature": 0.8, "max_new_tokens": 20, "stop_token_ids": [17, 2], "stop": ["done"]}
    run_dir, _ = make_run(tmp_path, base, rollout=rollout)
    before = AutoTokenizer.from_pretrained(base)
    # The base changes after the run; what training rendered with does not.
    (base / "chat_template.jinja").write_text("{{ messages[0]['content'] }} another")
    out = export(run_dir, Wish(), tmp_path / "out")
    after = AutoTokenizer.from_pretrained(out)
    chat = [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "5"}]
    assert after.apply_chat_template(chat) == before.apply_chat_template(chat)
    assert after("a b c").input_ids == before("a b c").input_ids
    assert (after.eos_token_id, after.pad_token_id) == (before.eos_token_id, before.pad_token_id)
    exported = json.loads((out / "generation_config.json").read_text())
    assert exported == {**json.loads(config), "eos_token_id": [2, 17]}
    assert GenerationConfig.from_pretrained(out).eos_token_id == [2, 17]
    assert '"done"' in (out / "README.md").read_text()


def test_without_other_ends_the_generation_config_is_the_initial_one_byte_for_byte(
    tiny_model: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    text = json.dumps({"eos_token_id": [2], "temperature": 0.6}, indent=7)
    (base / "generation_config.json").write_text(text)
    run_dir, _ = make_run(tmp_path, base)
    assert (export(run_dir, Wish(), tmp_path / "out") / "generation_config.json").read_text() == text


def test_an_index_names_the_shards_that_are_there_and_a_lost_one_is_refused(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_SHARD", "100KB")
    out = export(tiny_run, Wish(dtype="float32"), tmp_path / "out")
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    shards = {path.name for path in out.glob("*.safetensors")}
    assert len(shards) > 1
    assert shards == set(index.values())
    assert index == {name: header.file.name for name, header in read_headers(out.glob("*.safetensors")).items()}
    from_folder(str(out))
    (out / min(shards)).unlink()
    with pytest.raises(UserError, match="could not be loaded"):
        from_folder(str(out))


def test_the_card_says_where_it_comes_from_and_nothing_of_this_machine(tiny_run: Path, tmp_path: Path) -> None:
    scores = [{"name": "math", "version": v, "tasks": 10, "n": 1, "accuracy": v / 4} for v in range(3)]
    none = dict.fromkeys(("accuracy_low", "accuracy_high", "reward", "reward_low", "reward_high"))
    more = {**none, "pass_at": {}, "failed_share": 0.0, "other_versions_share": 0.0}
    (tiny_run / "evaluations.jsonl").write_text("".join(json.dumps({**line, **more}) + "\n" for line in scores))
    card = (export(tiny_run, Wish(1), tmp_path / "out") / "README.md").read_text()
    assert "- math of version 0: accuracy 0.0 % (10 tasks)\n- math of version 1: accuracy 25.0 % (10 tasks)\n" in card
    assert "version 2" not in card  # of a later step
    assert card.startswith('---\nlibrary_name: "transformers"\n')
    assert 'datasets: ["openai/gsm8k"]' in card
    assert "| 1 | 0.25 | 7 |" in card
    assert "1.25" not in card  # of a later step
    assert "reward: rewards.py:reward" in card
    assert "asyncrl " in card
    assert "transformers " in card
    assert str(tmp_path) not in card
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1
    assert "base_model:" not in card  # a folder of this machine


@pytest.mark.parametrize("lora", [{}, {"rank": 4}])
def test_the_running_mean_is_exported_in_the_place_of_the_weights(
    tiny_model: Path, lora: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = {"precision": "fp32", "learning_rate": 1e-2, "tokens_per_microbatch": 80, "lora": lora, "ema": 0.5}
    run_dir, ours = make_run(tmp_path, tiny_model, trainer=trainer)
    (run_dir / "evaluations.jsonl").write_text(json.dumps({"name": "math", "version": 2}) + "\n")
    monkeypatch.chdir(tmp_path)
    out = export(run_dir, Wish(ema=True, dtype="float32"), None)
    assert out == Path("run-step-2-ema")
    last = trained(ours)
    for name, master in ours.optimizer.named.items():
        master.data.copy_(ours.ema.means[name])
    torch.testing.assert_close(logits(transformers_of(out)), trained(ours), rtol=1e-4, atol=1e-4)
    assert float((logits(transformers_of(out)) - last).abs().max()) > 1e-3
    card = (out / "README.md").read_text()
    assert "their running mean of decay 0.5, which the run never sampled" in card
    assert "Held-out" not in card  # those scores are of the weights themselves


def test_what_cannot_be_had_is_refused_and_leaves_nothing(tiny_model: Path, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "there"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(UserError, match=r"there exists; move it away, or name another folder"):
        export(tiny_run, Wish(), out)
    with pytest.raises(UserError, match=r"no checkpoint of step 7; it has 1, 2"):
        export(tiny_run, Wish(7), tmp_path / "out")
    with pytest.raises(UserError, match=r"has kept no running mean of its weights \(trainer.ema\); leave --ema out"):
        export(tiny_run, Wish(ema=True), tmp_path / "out")
    with pytest.raises(UserError, match=r"has trained all weights .*; leave --adapter out"):
        export(tiny_run, Wish(adapter=True), tmp_path / "out")
    tied, _ = make_run(tmp_path / "tied", tiny_model, {"rank": 4, "targets": ["embed_tokens", "q_proj"]})
    with pytest.raises(UserError, match=r"adapter on model.embed_tokens counts in the output head too"):
        export(tied, Wish(adapter=True), tmp_path / "out")
    shutil.rmtree(tiny_run / "checkpoints/step_000001")
    shutil.rmtree(tiny_run / "checkpoints/step_000002")
    with pytest.raises(UserError, match=r"has no checkpoint; it has none"):
        export(tiny_run, Wish(), tmp_path / "out")
    own = load(tiny_run / "recipe.yaml", ["trainer.backend=./mine.py:Mine"])
    (tiny_run / "recipe.yaml").write_text(dump(own))
    with pytest.raises(UserError, match=r"only the weights of trainer.backend fsdp are known here"):
        export(tiny_run, Wish(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("run", "tied")] == ["there"]


def test_a_checkpoint_that_a_run_deletes_meanwhile_is_said(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_run / "checkpoints/step_000001"
    monkeypatch.setattr(shipping, "_write_whole", lambda *_: shutil.rmtree(checkpoint))
    with pytest.raises(UserError, match=r"the run deleted step_000001 meanwhile; export the newest"):
        export(tiny_run, Wish(1), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_a_full_disk_leaves_nothing(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shipping, "_copy_beside", full)
    with pytest.raises(RunFailed, match=r"could not be written: .*No space left on device; free or repair the disk"):
        export(tiny_run, Wish(), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_renamed_or_lost_weights_are_an_error_by_name(tiny_model: Path, tiny_run: Path, tmp_path: Path) -> None:
    adapted, _ = make_run(tmp_path / "adapted", tiny_model, {"rank": 4})
    for run_dir, error in ((tiny_run, RunFailed), (adapted, UserError)):
        path = run_dir / "checkpoints/step_000002/trainer/rank_0.safetensors"
        tensors = load_file(path)
        name = next(name for name in tensors if "q_proj" in name and name.startswith("model."))
        tensors["model.other." + name.removeprefix("model.")] = tensors.pop(name)
        save_file(tensors, path)
        with pytest.raises(error, match=r"q_proj"):
            export(run_dir, Wish(2), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_another_base_and_adapters_without_effect_are_said(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    run_dir, _ = make_run(tmp_path, base, {"rank": 4})
    export(run_dir, Wish(), tmp_path / "out")
    assert "as they began" not in caplog.text
    path = run_dir / "checkpoints/step_000002/trainer/rank_0.safetensors"
    zeros = {name: tensor * (".lora_B." not in name) for name, tensor in load_file(path).items()}
    save_file(zeros, path)
    export(run_dir, Wish(), tmp_path / "again")
    assert "as they began" in caplog.text
    other = {name: tensor + 1 for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(other, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="is not the one that the run was started with"):
        export(run_dir, Wish(), tmp_path / "third")


def test_the_command_takes_a_step_and_names_the_folder(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "run@1"]) == 0
    assert main(["export", f"{tiny_run}", "--merge", "--dtype", "float32", "--out", "deep/er"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["run-step-1", "deep/er"]
    assert json.loads(Path("deep/er/config.json").read_text())["dtype"] == "float32"
    assert "# run, step 1" in Path("run-step-1/README.md").read_text()
    assert main(["export", "run@1"]) == 2
    assert "run-step-1 exists" in capsys.readouterr().err
    # A folder may have such a name itself.
    tiny_run.rename(tmp_path / "run@2")
    assert main(["export", "run@2@1"]) == 0
    assert main(["export", "run@2"]) == 0
    assert {"run@2-step-1", "run@2-step-2"} <= {path.name for path in tmp_path.iterdir()}
