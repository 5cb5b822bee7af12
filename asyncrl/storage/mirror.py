"""A run directory on object storage (s3://, gs://, any URL that fsspec knows), behind one on a local disk.

    run --> local copy --push: new or grown files, then MANIFEST.json; then what is obsolete goes--> URL
    URL --fetch: what the manifest lists, as long as it says--> local copy --> `asyncrl resume`
An object store cannot append or fsync, so the journal is written to the disk; `push` makes the URL hold a state that a
resume can start from: a run whose machine and disk are lost goes on from the last push. One writer: the manifest says
whose it is, and a driver that finds another one's stops. Whoever can write there writes nothing here but the copy:
names stay below it, and no more comes than the manifest says and the disk holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncrl.errors import RunFailed, UserError
from asyncrl.storage import atomic
from asyncrl.storage.run_dir import is_plain, open_file, parsed, placing, remove, require_place
from asyncrl.storage.writers import FETCHED
from asyncrl.terminal.progress import shown

_MANIFEST = "MANIFEST.json"
_NOT_PUSHED = (".lock", ".nonce", ".owner", FETCHED, ".push", "weights", "stacks", "prometheus.json")
_OWNER = re.compile(r"[0-9a-f]{1,64}")
_TRIES = 10
_MOST_MANIFEST_BYTES, _MOST_FILES = 16 * 2**20, 100_000
_PATIENCE_S, _LEAST_BYTES_PER_S = 60.0, 2**16
"""A file may take this long, and longer if it is so large that it comes at this rate or faster."""


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
    wanted = {
        name: size
        for name, size in manifest["files"].items()
        if checkpoints or not name.startswith(("checkpoints/", "journal/"))
    }
    shutil.rmtree(part := folder.with_name(folder.name + ".part"), ignore_errors=True)
    part.mkdir(mode=0o700, parents=True)
    try:
        _download(remote, wanted, part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if checkpoints:
        (part / ".owner").write_text(manifest["owner"])
    (part / FETCHED).touch()
    if folder.exists():
        _move_aside(folder, forever=not checkpoints)
    part.rename(folder)
    return folder


def _download(remote: Remote, wanted: dict[str, int], folder: Path) -> None:
    total, free = sum(wanted.values()), shutil.disk_usage(folder).free
    if total > free:
        raise UserError(
            f"{remote.url} holds {total} bytes, and {folder.parent} has room for {free}; free some, or set "
            "ASYNCRL_CACHE to a folder on a larger disk"
        )
    with shown(f"downloading {remote.url}, in MiB", total=total // 2**20) as advance:
        num_bytes = 0
        for name, size in wanted.items():
            remote.download(name, size, folder / name)
            num_bytes += size
            advance(num_bytes // 2**20)


def _move_aside(folder: Path, forever: bool) -> None:
    """A copy that another machine's is newer than is kept: it is for its owner to delete."""
    if forever:
        return shutil.rmtree(folder)
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(aside)


class _Enough(Exception):
    pass


class Remote:
    """What is at a URL. Every OSError becomes a UserError that names it."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        self._callback = lambda check: fsspec.Callback(hooks={"check": check})
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(f"run_dir {url}: {error}; install its package, such as s3fs or gcsfs") from error
        self._local = Path(self._root) if "file" in self._fs.protocol else None
        """The other file systems have no links and pipes."""

    def manifest(self) -> dict[str, Any] | None:
        """Raises UserError for one that asyncrl has not written."""
        with self._named():
            # What another machine has written since must be seen.
            self._fs.invalidate_cache()
            if not self._fs.exists(self._path(_MANIFEST)):
                return None
            with tempfile.TemporaryDirectory() as folder:
                self._get(_MANIFEST, _MOST_MANIFEST_BYTES, path := Path(folder, _MANIFEST))
                found = parsed(path.read_bytes())
        self._check(found)
        return found

    def _check(self, manifest: dict[str, Any]) -> None:
        owner, files = manifest.get("owner"), manifest.get("files")
        if not isinstance(owner, str) or not _OWNER.fullmatch(owner) or not isinstance(files, dict):
            raise UserError(f"{self.url}/{_MANIFEST} is no manifest of a run; name the URL of a run")
        if len(files) > _MOST_FILES:
            raise UserError(
                f"{self.url}/{_MANIFEST} lists {len(files)} files, more than any run has; nothing is fetched or "
                "deleted: see who can write there"
            )
        plain = [name.split("/") for name in files if is_plain(name)]
        folders = {"/".join(parts[:length]) for parts in plain for length in range(1, len(parts))}
        for name, size in files.items():
            own = is_plain(name) and name.split("/")[0] in _NOT_PUSHED
            if not is_plain(name) or own or name in folders or type(size) is not int or size < 0:
                raise UserError(
                    f"{self.url}/{_MANIFEST} lists {name!r:.200}, of size {size!r:.50}, which no run has written; "
                    "nothing is fetched or deleted: see who can write there"
                )

    def download(self, name: str, size: int, path: Path) -> None:
        """The first `size` bytes. Raises UserError if there are fewer, or they come too slowly."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._named():
            try:
                self._get(name, size, path)
            except FileNotFoundError:
                path.touch()
        if path.stat().st_size < size:
            raise UserError(f"{self.url} lacks {name}, or its end; it changes, so try again, or it has been damaged")
        os.truncate(path, size)

    def _get(self, name: str, most: int, path: Path) -> None:
        """Write it to a new file; not much more than `most` bytes."""
        ends = time.monotonic() + _PATIENCE_S + most / _LEAST_BYTES_PER_S

        def check(size: int | None, value: int) -> None:
            if value > most:
                raise _Enough
            if time.monotonic() > ends:
                raise TimeoutError(f"{name} does not come, {value} bytes in {_PATIENCE_S:.0f} s or more")

        with contextlib.suppress(_Enough):
            if self._local:
                with open_file(self._local, name) as source, path.open("xb") as target:
                    num_bytes = 0
                    while num_bytes <= most and (data := source.read(min(2**20, most + 1 - num_bytes))):
                        num_bytes += target.write(data)
            else:
                self._fs.get_file(self._path(name), str(path), callback=self._callback(check))

    def upload(self, name: str, path: Path, size: int) -> None:
        with self._named():
            if self._local:
                with path.open("rb") as source, placing(self._local, name) as target:
                    while size and (data := source.read(min(2**20, size))):
                        size -= target.write(data)
                return
            self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            if path.stat().st_size == size:
                self._fs.put_file(str(path), self._path(name))
                return
            # It has grown since.
            with path.open("rb") as file:
                self._fs.pipe_file(self._path(name), file.read(size))

    def require_places(self, names: Iterable[str]) -> None:
        """Raises UserError if a link is in the way of one, before anything is written."""
        if self._local:
            with self._named():
                for name in names:
                    require_place(self._local, name)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        content = json.dumps(manifest).encode()
        with self._named():
            if self._local:
                with placing(self._local, _MANIFEST) as target:
                    target.write(content)
                return
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(self._path(_MANIFEST), content)

    def delete(self, name: str) -> None:
        with self._named():
            if self._local:
                return remove(self._local, name)
            self._fs.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, UserError):
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
        self._remote.require_places([*self._snapshot(), *before["files"]])
        self._remote.write_manifest({**before, "owner": self._owner})
        (self._folder / ".owner").write_text(self._owner)
        (self._folder / FETCHED).unlink(missing_ok=True)

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
            if path.name not in (*_NOT_PUSHED, "journal", "checkpoints") and not path.is_symlink():
                files |= self._below(path)
        for folder in before:
            files |= self._below(folder)
        return files

    def _journal(self, stream: str) -> list[str]:
        found = sorted((self._folder / "journal").glob(f"{stream}_*.log"))
        return [f"journal/{path.name}" for path in found if stat.S_ISREG(path.lstat().st_mode)]

    def _linked(self, name: str) -> _File:
        """The file as it is now, under a name of its own: the run may delete it before it is sent."""
        link = self._folder / ".push" / Path(name).name
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        os.link(self._folder / name, link)
        return _file(link)

    def _below(self, path: Path) -> dict[str, _File]:
        paths = [path, *(path.rglob("*") if path.is_dir() else ())]
        return {str(p.relative_to(self._folder)): _file(p) for p in paths if stat.S_ISREG(p.lstat().st_mode)}


def _file(path: Path) -> _File:
    stat = path.stat()
    return _File(path, stat.st_size, stat.st_mtime_ns)


def _same(one: _File, other: _File) -> bool:
    return (one.size, one.changed_ns) == (other.size, other.changed_ns)
