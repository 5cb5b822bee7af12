"""Everything that is read from a run directory, as anyone may have written it: a page, a list or one sentence comes of
it, in seconds and without filling memory. `scripts/fuzz` tries more of it, under limits."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import made_up
import msgspec
import plotly.offline
import pytest
import stranger
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncrl.buffer.records import CONTROL_STREAM, ENTRY, GROUP, GROUPS_STREAM, TRAINED, TRAINED_STREAM, read_control
from asyncrl.checkpoint import files
from asyncrl.control.history import HistoryError, replay
from asyncrl.control.settings import Settings
from asyncrl.errors import RunFailed, UserError
from asyncrl.models import tiny_tokenizer
from asyncrl.orchestrator.recovery import recover
from asyncrl.planner import profile
from asyncrl.recipe.load import load
from asyncrl.report import inspection
from asyncrl.report.compare import write_comparison
from asyncrl.report.report import write_report
from asyncrl.report.watch import Following
from asyncrl.rollout.trajectory import Group, encode
from asyncrl.storage import mirror
from asyncrl.terminal.console import Console

INPUTS = int(os.environ.get("ASYNCRL_FUZZ", "60"))
ROUND = 1000
"""So many inputs at once: Hypothesis remembers them, 100 KB each."""
MOST_S = 5.0
NASTY = (
    *(b"[" * 20_000, b'{"a":' * 3000, b"- " * 5000, b"9" * 5000, b"0x" + b"f" * 5000, b"1:1:1:1:1:1:1:1:1", b"1e999"),
    *(b"NaN", b"-Infinity", b"-1", b"0", b"null", b"true", b"[]", b"{}", b'""', b'"\\ud800"', b"\x1b[2J\x9b", b"\0"),
    *(
        b"\xff\xfe",
        b"\n",
        b"&a [*a]",
        b"*a",
        b"!!python/object:os.system",
        b"2001-99-99",
        b".inf",
        b"[red]",
        b"<script>",
    ),
    b"a: &a [x, x, x, x, x, x, x, x, x, x]\nb: &b [" + b"*a, " * 50 + b"]\nc: [" + b"*b, " * 5000 + b"]\n",
)
text = st.text(max_size=8) | st.sampled_from(["\x1b[2J", "\u202e", "[red]", "<b>", "1", "trained", "_reasons"])
numbers = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([10**400, -(10**400), 10**15, 1e308, 0, 1, 2])
leaves = numbers | text | st.none() | st.booleans()
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=8
)


def mutated(valid: bytes) -> st.SearchStrategy[bytes]:
    """With pieces of it cut out and others put in."""
    cuts = st.tuples(st.integers(0, len(valid)), st.integers(0, 40), st.sampled_from(NASTY) | st.binary(max_size=8))

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        made = valid
        for start, length, piece in edits:
            made = made[:start] + piece + made[start + length :]
        return made

    return st.lists(cuts, min_size=1, max_size=5).map(apply)


def changed(valid: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """With other values under some of its keys, and of those below."""

    def other(value: Any) -> st.SearchStrategy[Any]:
        if isinstance(value, dict) and value:
            return values | st.fixed_dictionaries({}, optional={key: other(inner) for key, inner in value.items()})
        if isinstance(value, list) and value:
            return values | st.lists(other(value[0]), max_size=5)
        return values | st.just(value)

    return st.fixed_dictionaries(
        {key: st.just(value) | other(value) for key, value in valid.items()}, optional={"more": values}
    )


def lines(of: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in of).encode()


def json_lines(valid: list[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    return mutated(lines(valid)) | st.lists(changed(valid[0]) | st.just(valid[1]), min_size=1, max_size=5).map(lines)


def json_file(valid: dict[str, Any]) -> st.SearchStrategy[bytes]:
    return mutated(json.dumps(valid).encode()) | changed(valid).map(lambda found: json.dumps(found).encode())


RECORDS, SAMPLES = made_up.records(3), made_up.samples()[:2]
TRACE = b'[\n{"ph": "X", "name": "forward", "pid": 1203768320, "tid": 1446899168, "ts": 1000000, "dur": 500000},\n'


def frame(kind: int, payload: bytes) -> bytes:
    header = struct.pack("<4sBII", b"AJ01", kind, len(payload), zlib.crc32(payload))
    return header + struct.pack("<I", zlib.crc32(header)) + payload


def packed(valid: Any) -> st.SearchStrategy[bytes]:
    whole = msgspec.msgpack.encode(valid)
    return mutated(whole) | st.just(whole) | st.deferred(lambda: values.filter(_fits)).map(msgspec.msgpack.encode)


def _fits(value: Any) -> bool:
    with contextlib.suppress(Exception):
        msgspec.msgpack.encode(value)
        return True
    return False


def stream(kind: int, payloads: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Frames whose checksums are right, or damaged ones."""
    whole = st.lists(payloads, min_size=1, max_size=3).map(lambda parts: b"".join(frame(kind, part) for part in parts))
    return whole | whole.flatmap(mutated)


@st.composite
def group(draw: st.DrawFn) -> bytes:
    valid = encode(Group(0, 0, 7, (stranger.trajectory(), stranger.trajectory(None))))
    if draw(st.booleans()):
        return draw(mutated(valid))
    length = int.from_bytes(valid[:4], "little")
    header = draw(changed(msgspec.msgpack.decode(valid[4 : 4 + length])).filter(_fits))
    head = msgspec.msgpack.encode(header)
    return len(head).to_bytes(4, "little") + head + valid[4 + length :]


GOLDEN = json.loads((Path(__file__).parent / "control.json").read_text())
"""The control stream of a short run, entry by entry."""


@st.composite
def control(draw: st.DrawFn) -> bytes:
    entries = [msgspec.msgpack.encode(entry) for entry in GOLDEN[: draw(st.integers(1, len(GOLDEN)))]]
    place = draw(st.integers(0, len(entries) - 1))
    entry = GOLDEN[place]
    kind = draw(st.sampled_from(["state", "entry", "bytes"]))
    if kind == "state" and isinstance(entry[1], dict):
        entries[place] = msgspec.msgpack.encode([entry[0], draw(changed(entry[1]).filter(_fits))])
    elif kind == "entry":
        entries[place] = msgspec.msgpack.encode([entry[0], draw(values.filter(_fits))])
    else:
        entries[place] = draw(mutated(entries[place]))
    return b"".join(frame(ENTRY, entry) for entry in entries)


def report(run_dir: Path) -> None:
    write_report(run_dir)


def watch(run_dir: Path) -> None:
    Following(run_dir).changed(0)


def compare(run_dir: Path) -> None:
    report(run_dir)
    with contextlib.suppress(UserError):
        profile.read(run_dir)
    write_comparison([run_dir], run_dir / "compare.html")


def recipe(run_dir: Path) -> None:
    report(run_dir)
    text = (run_dir / "recipe.yaml").read_bytes().decode(errors="replace")
    load(run_dir / "recipe.yaml", text=text)


def inspect(run_dir: Path) -> None:
    decode, console = tiny_tokenizer().decode, Console(file=io.StringIO(), width=80)
    found = [*inspection.find(run_dir, inspection.Filters())]
    console.print("\n".join(inspection.listing(found, decode, 80)), markup=False)
    for one in found:
        inspection.show(console, one, decode)
    assert inspection.count(run_dir, inspection.Filters()) == len(found)
    inspection.export(run_dir / "out.parquet", iter(found), decode)


def fold(run_dir: Path) -> None:
    settings = Settings(groups_per_step=2, max_staleness=1, max_steps=3, tokens_per_group=8)
    with contextlib.suppress(UserError):
        recover(run_dir, settings)
    replay(read_control(run_dir / "journal"))


def fetch(run_dir: Path) -> None:
    mirror.fetch(f"file://{run_dir}", checkpoints=False)


def checkpoint(run_dir: Path) -> None:
    files.shapes(run_dir / "trainer")
    files.read(run_dir / "trainer")


TENSORS = {"model.a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "model.b@1": {}}
TENSORS["model.b@1"] = {"dtype": "I64", "shape": [1], "data_offsets": [16, 24]}


def safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(24)


TARGETS: dict[str, tuple[str, Any, Callable[[Path], None]]] = {
    "metrics": ("metrics.jsonl", json_lines(RECORDS), compare),
    "samples": ("samples.jsonl", json_lines(SAMPLES), report),
    "summary": ("summary.json", json_file(made_up.summary(RECORDS[-1])), report),
    "status": ("status.json", json_file({**made_up.status(), "time_s": 1.0, "log": [[1.0, "so"]]}), watch),
    "recipe": ("recipe.yaml", mutated(made_up.RECIPE.encode()), recipe),
    "trace": ("trace.json", mutated(TRACE) | json_lines([json.loads(TRACE[2:-2])] * 2), report),
    "groups": (f"journal/{GROUPS_STREAM}_000000.log", stream(GROUP, group()), inspect),
    "trained": (f"journal/{TRAINED_STREAM}_000000.log", stream(TRAINED, packed([3, [[0, 0]]])), inspect),
    "control": (f"journal/{CONTROL_STREAM}_000000.log", control(), fold),
    "manifest": ("MANIFEST.json", json_file({"owner": "a", "files": {"recipe.yaml": 4, "b/c": 1}}), fetch),
    "checkpoint": (
        "trainer/rank_0.safetensors",
        mutated(safetensors(json.dumps(TENSORS).encode())) | json_file(TENSORS).map(safetensors),
        checkpoint,
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The smallest run directory in which the target is read."""
    monkeypatch.setenv("ASYNCRL_CACHE", str(tmp_path / "cache"))
    # The same 5 MB on each page.
    monkeypatch.setattr(plotly.offline, "get_plotlyjs", lambda: "")
    run_dir = tmp_path / "run"
    (run_dir / "journal").mkdir(parents=True)
    (run_dir / "trainer").mkdir()
    (run_dir / "recipe.yaml").write_text(made_up.RECIPE)
    (run_dir / "metrics.jsonl").write_bytes(lines(RECORDS))
    (run_dir / f"journal/{GROUPS_STREAM}_000000.log").write_bytes(
        frame(GROUP, encode(Group(0, 0, 7, (stranger.trajectory(),))))
    )
    yield run_dir
    shutil.rmtree(tmp_path)


@pytest.mark.timeout(0 if INPUTS > 1000 else 120)
@pytest.mark.parametrize("target", TARGETS)
def test_a_page_a_list_or_one_sentence(folder: Path, target: str, record_property: Callable[[str, Any], None]) -> None:
    name, contents, read = TARGETS[target]
    slowest_s = 0.0

    @settings(
        max_examples=min(INPUTS, ROUND),
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(contents)
    def one(content: bytes) -> None:
        nonlocal slowest_s
        (folder / name).write_bytes(content)
        began = time.monotonic()
        try:
            read(folder)
        except (UserError, RunFailed, HistoryError):
            pass
        except OSError as error:  # which `cli.py` makes a sentence of
            if error.errno != errno.ENAMETOOLONG:
                raise
        slowest_s = max(slowest_s, time.monotonic() - began)
        assert slowest_s < MOST_S

    for _ in range(-(-INPUTS // ROUND)):
        one()
    record_property("slowest_s", round(slowest_s, 2))


@pytest.fixture(autouse=True, scope="module")
def limited_memory() -> Iterator[None]:
    """Of the fuzzing: a GiB more than what is loaded."""
    if INPUTS <= 1000:
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
