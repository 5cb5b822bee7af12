"""A checkpoint of a stranger, for `replay --verify` and `resume`: one sentence, whatever its files claim."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import stranger
import torch
from safetensors.torch import save_file

from asyncrl.buffer import log
from asyncrl.buffer.records import CONTROL_STREAM, ENTRY
from asyncrl.checkpoint import files
from asyncrl.errors import RunFailed, UserError
from asyncrl.orchestrator import replay
from asyncrl.trainer.sharding import fill


def described(**tensors: object) -> bytes:
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16)


F32 = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 90_000_000) + b"{" * 1000,
        described(a={**F32, "shape": [2**40, 2**40]}),
        described(a={**F32, "shape": [-1, 4]}),
        described(a={**F32, "data_offsets": [0, 2**50]}),
        described(a={**F32, "data_offsets": [16, 0]}),
        described(a={"dtype": "F32"}),
        described(a=[]),
        described(**{"a@x": F32}),
        described(**{"a@0": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}),
        struct.pack("<Q", 200_000) + b"[" * 200_000,
    ],
)
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rank_0.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint|trainer state"):
        files.read(tmp_path)
    if b"a@x" not in content:
        with pytest.raises(UserError, match=r"safetensors file|do not fit together"):
            files.shapes(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        {"a@1": torch.zeros(1, 3)},
        {"a@2": torch.zeros(1, 2)},
        {"a@0": torch.zeros(1, 2)},
        {"a": torch.zeros(1, 2)},
        {"a@x": torch.zeros(1, 2)},
        {"a@": torch.zeros(1, 2)},
        {"a@" + "1" * 5000: torch.zeros(1, 2)},
        {"model.b": torch.zeros(1, dtype=torch.int64)},
    ],
    ids=["other width", "a gap", "twice", "whole too", "no number", "none", "a long one", "no weights"],
)
def test_rows_that_do_not_fit_together(tmp_path: Path, other: dict[str, torch.Tensor]) -> None:
    save_file({"a@0": torch.zeros(1, 2)}, tmp_path / "rank_0.safetensors")
    save_file(other, tmp_path / "rank_1.safetensors")
    with pytest.raises(UserError, match=r"do not fit together|is no checkpoint of asyncrl|as no weights are"):
        files.read(tmp_path)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (6,)])
def test_a_tensor_of_another_shape_is_not_spread(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="in the place of one of"):
        fill(torch.zeros(3, 2), torch.ones(shape))


def test_a_link_in_a_checkpoint(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_dir / "checkpoints/step_000002/trainer"
    folder.mkdir(parents=True)
    (folder / "rank_0.safetensors").symlink_to(tmp_path / "secret")
    for command in ("resume", "replay"):
        assert "rank_0.safetensors is a link" in stranger.sentence(capsys, command, str(run_dir))


@pytest.mark.parametrize("error", [KeyError("model.x"), RuntimeError("sizes differ"), IndexError("index out of range")])
def test_what_cannot_be_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> list[int]:
        raise error

    import msgspec

    writer = log.JournalWriter(tmp_path / "journal", CONTROL_STREAM)
    for entry in json.loads((Path(__file__).parent / "control.json").read_text()):
        writer.append(ENTRY, msgspec.msgpack.encode(entry))
    writer.close()
    monkeypatch.setattr(replay, "_train", fail)
    assert replay.replay_run(tmp_path, None, False).trained == 6  # type: ignore[arg-type]
    with pytest.raises(RunFailed, match="cannot be trained again"):
        replay.replay_run(tmp_path, None, True)  # type: ignore[arg-type]


def test_versions_are_compared_by_all_of_their_tensors() -> None:
    one = {"a": torch.zeros(2), "rng": torch.zeros(1)}
    replay._compare(1, one, {**one, "rng": torch.ones(1)})
    for other in ({"a": torch.zeros(3)}, {"a": torch.zeros(2, dtype=torch.int64)}, {}, {**one, "b": torch.zeros(1)}):
        with pytest.raises(RunFailed, match="differs from its checkpoint in"):
            replay._compare(1, one, other)


def test_weights_that_two_ranks_wrote_are_refused(tmp_path: Path) -> None:
    for rank in (0, 1):
        save_file({"model.a": torch.zeros(rank + 1)}, tmp_path / f"rank_{rank}.safetensors")
    with pytest.raises(UserError, match="is no checkpoint of asyncrl"):
        files.read(tmp_path)


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "rank_0.safetensors").mkdir()
    for read in (files.read, files.shapes):
        with pytest.raises(UserError, match=r"is no checkpoint of asyncrl|is not a whole safetensors file"):
            read(tmp_path)
