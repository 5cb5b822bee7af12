"""A run directory on object storage (s3://, gs://, any URL that fsspec knows), behind one on a local disk.

    run --> local copy --push: new or grown files, then MANIFEST.json; then what is obsolete goes--> URL
    URL --fetch: what the manifest lists, as long as it says--> local copy --> `asyncrl resume`
An object store cannot append or fsync, so the journal is written to the disk; `push` makes the URL hold a state that a
resume can start from: a run whose machine and disk are lost goes on from the last push. One writer: the manifest says
whose it is, and a driver that finds another one's stops.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncrl.checkpoint import atomic
from asyncrl.errors import RunFailed, UserError
from asyncrl.observe.progress import shown

_MANIFEST = "MANIFEST.json"
_NOT_PUSHED = (".lock", ".owner", ".push", "weights", "stacks", "prometheus.json")
_TRIES = 10


def is_url(run_dir: str) -> bool:
    return "://" in run_dir


def local_copy(url: str) -> Path:
    """Where the run directory of a URL lies on this machine: under $ASYNCRL_CACHE, by default ~/.cache/asyncrl."""
    root = Path(os.environ.get("ASYNCRL_CACHE") or Path.home() / ".cache" / "asyncrl")
    url = url.rstrip("/")
    return root / f"{url.rpartition('/')[2][:200]}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def exists(url: str) -> bool:
    """Whether a run has been pushed there. Raises UserError if the storage cannot be asked."""
    return Remote(url).manifest() is not None


def is_newest(url: str, folder: Path) -> bool:
    """Whether nobody but the run in this folder has written to the URL, so that it may go on from there."""
    manifest, owner = Remote(url).manifest(), folder / ".owner"
    return manifest is None or (owner.exists() and owner.read_text() == manifest["owner"])


def fetch(url: str, *, checkpoints: bool = True) -> Path:
    """The local copy of a run, downloaded unless this machine wrote what is there last. Raises UserError.

    Without `checkpoints` and journal it is only to be looked at, and lies elsewhere.
    """
    remote, folder = Remote(url), local_copy(url)
    manifest = remote.manifest()
    if manifest is None:
        raise UserError(f"{url} is not a run directory: it has no {_MANIFEST}")
    owner = folder / ".owner"
    if owner.exists() and owner.read_text() == manifest["owner"]:
        return folder
    if not checkpoints:
        folder = folder.with_name(folder.name + ".view")
    shutil.rmtree(part := folder.with_name(folder.name + ".part"), ignore_errors=True)
    wanted = {
        name: size
        for name, size in manifest["files"].items()
        if checkpoints or not name.startswith(("checkpoints/", "journal/"))
    }
    with shown(f"downloading {url}, in MiB", total=sum(wanted.values()) // 2**20) as advance:
        num_bytes = 0
        for name, size in wanted.items():
            remote.download(name, size, part / name)
            num_bytes += size
            advance(num_bytes // 2**20)
    if checkpoints:
        (part / ".owner").write_text(manifest["owner"])
    if folder.exists():
        _move_aside(folder, forever=not checkpoints)
    part.rename(folder)
    return folder


def _move_aside(folder: Path, forever: bool) -> None:
    """A copy that another machine's is newer than is kept: it is for its owner to delete."""
    if forever:
        return shutil.rmtree(folder)
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(aside)


class Remote:
    """What is at a URL. Every OSError becomes a UserError that names it."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(f"run_dir {url}: {error}; install its package, such as s3fs or gcsfs") from error

    def manifest(self) -> dict[str, Any] | None:
        with self._named():
            # What another machine has written since must be seen.
            self._fs.invalidate_cache()
            path = self._path(_MANIFEST)
            return json.loads(self._fs.cat_file(path)) if self._fs.exists(path) else None

    def download(self, name: str, size: int, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._named():
            self._fs.get_file(self._path(name), str(path))
        os.truncate(path, size)

    def upload(self, name: str, path: Path, size: int) -> None:
        with self._named():
            self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            if path.stat().st_size == size:
                self._fs.put_file(str(path), self._path(name))
                return
            # It has grown since.
            with path.open("rb") as file:
                self._fs.pipe_file(self._path(name), file.read(size))

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        with self._named():
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(self._path(_MANIFEST), json.dumps(manifest).encode())

    def delete(self, name: str) -> None:
        with self._named():
            self._fs.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # whatever the storage's client raises: credentials, network, no such bucket
            text = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"run_dir {self.url}: {text}; check the URL and the storage's credentials") from error


@dataclass(frozen=True)
class _File:
    path: Path
    size: int
    changed_ns: int


class Mirror:
    """Pushes a local run directory to its URL. `begin` makes this process the only one that may."""

    def __init__(self, url: str, folder: Path) -> None:
        self._remote, self._folder = Remote(url), folder
        self._owner = secrets.token_hex(8)
        self._there: dict[str, _File] = {}

    def begin(self) -> None:
        """Take the URL over. Raises UserError if it cannot be written."""
        before = self._remote.manifest() or {"files": {}}
        self._remote.write_manifest({**before, "owner": self._owner})
        (self._folder / ".owner").write_text(self._owner)

    def push(self) -> int:
        """Bring the URL up to date; returns the number of files sent. Raises UserError if the storage does not take
        them, RunFailed if another driver has taken the URL over."""
        manifest = self._remote.manifest()
        if manifest is None or manifest["owner"] != self._owner:
            raise RunFailed(f"another driver has taken {self._remote.url} over, or removed it; this one stops")
        for _ in range(_TRIES):
            # A checkpoint may be pruned while it is sent; then a newer one is there.
            with contextlib.suppress(FileNotFoundError):
                return self._push(manifest)
        raise RunFailed(f"{self._folder} changes faster than it can be sent to {self._remote.url}; save less often")

    def _push(self, manifest: dict[str, Any]) -> int:
        files = self._snapshot()
        sent = 0
        for name, file in files.items():
            if self._there.get(name) is None or not _same(self._there[name], file):
                self._remote.upload(name, file.path, file.size)
                self._there[name] = file
                sent += 1
        listed = {name: file.size for name, file in files.items()}
        self._remote.write_manifest({"owner": self._owner, "files": listed})
        for name in sorted((manifest["files"].keys() | self._there.keys()) - listed.keys()):
            with contextlib.suppress(FileNotFoundError):
                self._remote.delete(name)
            self._there.pop(name, None)
        return sent

    def _snapshot(self) -> dict[str, _File]:
        """Files of one moment: checkpoints that are complete, control's log no newer than the groups that it names."""
        while True:
            before = atomic.complete(self._folder / "checkpoints")
            files = {name: self._linked(name) for name in self._journal("control")}
            files |= {name: self._linked(name) for name in self._journal("groups")}
            if atomic.complete(self._folder / "checkpoints") == before:
                break
        for path in self._folder.iterdir():
            if path.name not in (*_NOT_PUSHED, "journal", "checkpoints"):
                files |= self._below(path)
        for folder in before:
            files |= self._below(folder)
        return files

    def _journal(self, stream: str) -> list[str]:
        return [f"journal/{path.name}" for path in sorted((self._folder / "journal").glob(f"{stream}_*.log"))]

    def _linked(self, name: str) -> _File:
        """The file as it is now, under a name of its own: the run may delete it before it is sent."""
        link = self._folder / ".push" / Path(name).name
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        os.link(self._folder / name, link)
        return _file(link)

    def _below(self, path: Path) -> dict[str, _File]:
        paths = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and not p.is_symlink()]
        return {str(p.relative_to(self._folder)): _file(p) for p in paths}


def _file(path: Path) -> _File:
    stat = path.stat()
    return _File(path, stat.st_size, stat.st_mtime_ns)


def _same(one: _File, other: _File) -> bool:
    return (one.size, one.changed_ns) == (other.size, other.changed_ns)
