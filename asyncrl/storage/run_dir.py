"""The files of a run directory, which may be anyone's: the one place where they are opened, and replaced.

    names    relative, plain, below the directory
    reading  regular files only; no link is followed, no pipe waited for, no more read than `most` bytes
    writing  a new file under a random name takes the place of the old one, so a reader sees one of them whole
The directory itself may be named through a link; to write where others may (`placing`), through the user's own alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from asyncrl.errors import UserError, naming

MOST_BYTES = 16 * 2**20
"""Of a file that is read as a whole; those of runs have a few KiB."""
_MOST_PARTS, _MOST_CHARS = 16, 1000
_NO_FILE = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO)


def is_plain(name: object) -> bool:
    """Whether a name that someone else wrote is relative, and stays below the folder that it is relative to."""
    if not isinstance(name, str) or not name.isprintable() or "\\" in name or len(name) > _MOST_CHARS:
        return False
    parts = name.split("/")
    return len(parts) <= _MOST_PARTS and not {"", ".", ".."} & set(parts)


def open_file(run_dir: Path, name: str) -> BinaryIO:
    """To read. Raises FileNotFoundError; UserError if it is no regular file, lies behind a link or cannot be read."""
    with _named(run_dir / name), _folder(run_dir, name.split("/")[:-1]) as folder:
        file = os.open(Path(name).name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise _no_file(run_dir / name)
        return os.fdopen(file, "rb")


def read(run_dir: Path, name: str, most: int = MOST_BYTES) -> bytes | None:
    """None if it is missing. Raises UserError as `open_file`, and if it is longer than `most` bytes."""
    try:
        with open_file(run_dir, name) as file:
            found = file.read(most + 1)
    except FileNotFoundError:
        return None
    if len(found) > most:
        raise UserError(f"{run_dir / name} has more than {most} bytes, which no run writes there; see what it is")
    return found


def text(run_dir: Path, name: str, most: int = MOST_BYTES) -> str:
    """'' if it is missing; what is not UTF-8 is replaced."""
    return (read(run_dir, name, most) or b"").decode(errors="replace")


def json_object(run_dir: Path, name: str, most: int = MOST_BYTES) -> dict[str, Any]:
    """{} if it is missing, cut short, or no object."""
    return parsed(read(run_dir, name, most) or b"")


def lines(file: BinaryIO, run_dir: Path, name: str) -> Iterator[bytes]:
    """The rest of it. Raises UserError for a line of more than `MOST_BYTES`."""
    while line := file.readline(MOST_BYTES):
        if len(line) == MOST_BYTES:
            raise UserError(
                f"{run_dir / name} has a line of more than {MOST_BYTES} bytes, which no run writes there; see what it "
                "is"
            )
        yield line


def parsed(line: bytes) -> dict[str, Any]:
    """{} for what is no JSON object: a crash cut it short, or it is nested too deep."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def names(run_dir: Path, folder: str) -> list[str]:
    """What is in one of its folders, sorted; nothing if that is missing. Raises UserError as `open_file`."""
    try:
        with _named(run_dir / folder), _folder(run_dir, folder.split("/")) as file:
            return sorted(os.listdir(file))
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def open_to(run_dir: Path, readers: str) -> Iterator[None]:
    """Whom the directory is open to: its `owner`, or its `group` too; in the block, what this process makes as well."""
    with contextlib.suppress(PermissionError):  # another user's keeps its own mode
        run_dir.chmod({"owner": 0o700, "group": 0o750}[readers])
    with alike(run_dir):
        yield


@contextlib.contextmanager
def alike(run_dir: Path) -> Iterator[None]:
    """`make_alike` in the block only."""
    before = make_alike(run_dir)
    try:
        yield
    finally:
        os.umask(before)


def make_alike(run_dir: Path) -> int:
    """From now on, what this process makes is open to those whom the directory is, or to its user alone where there is
    none, as on a node that does not see it; returns the umask before."""
    try:
        mode = run_dir.stat().st_mode
    except FileNotFoundError:
        mode = 0o700
    return os.umask(0o777 & ~mode)


def require_plain(run_dir: Path) -> None:
    """Raises UserError if there is anything but files and folders in it: who writes there would write elsewhere."""
    for above, folders, files in os.walk(run_dir):
        for name in (*folders, *files):
            mode = os.lstat(os.path.join(above, name)).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise _no_file(Path(above, name))
        # wandb links to its newest run; asyncrl reads nothing there.
        folders[:] = [name for name in folders if name != "wandb"]


def sync(path: Path) -> None:
    """fsync of a file, or of a folder: then the names in it outlast a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[IO[bytes]]:
    """A new file to write, which takes the place of `path` when the block ends well. `durable`: a power failure does
    not undo it."""
    part = path.parent / f".{path.name[:200]}.{secrets.token_hex(4)}.part"
    with naming(path):
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            with os.fdopen(file, "wb") as opened:
                yield opened
                if durable:
                    opened.flush()
                    os.fsync(file)
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        if durable:
            sync(path.parent)


def replace(path: Path, content: str, durable: bool = False) -> None:
    """`replacing`, of a text."""
    with replacing(path, durable) as file:
        file.write(content.encode(errors="backslashreplace"))


def require_replaceable(path: Path) -> None:
    """Raises OSError for a pipe or a device, or a link to one: root would replace even /dev/null."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileExistsError(errno.EEXIST, "it is a pipe or a device", str(path))


@contextlib.contextmanager
def placing(root: Path, name: str) -> Iterator[IO[bytes]]:
    """`replacing`, in a folder of someone who may change it meanwhile: folders that are missing are made. Raises
    UserError for a link, on the way to `root` unless it is this user's or root's, or for what is no regular file."""
    with _plainly(root / name), _others_folder(root, name, make=True) as (folder, last):
        _require_file(root / name, folder)
        part = f".{last[:200]}.{secrets.token_hex(4)}.part"
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=folder)
        try:
            with os.fdopen(file, "wb") as opened:
                yield opened
            os.replace(part, last, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part, dir_fd=folder)
            raise


def require_place(root: Path, name: str) -> None:
    """Raises UserError where `placing` would, as things are."""
    with contextlib.suppress(FileNotFoundError), _plainly(root / name), _others_folder(root, name) as (folder, _):
        _require_file(root / name, folder)


def _require_file(path: Path, folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path.name, dir_fd=folder).st_mode):
            raise _no_file(path)


def remove(root: Path, name: str) -> None:
    """What `placing` has put there. Raises FileNotFoundError, and UserError as that does."""
    with _plainly(root / name), _others_folder(root, name) as (folder, last):
        os.unlink(last, dir_fd=folder)


@contextlib.contextmanager
def _others_folder(root: Path, name: str, make: bool = False) -> Iterator[tuple[int, str]]:
    """From `/` on, each opened in the one above; yields the last, and the name in it."""
    *below, last = name.split("/")
    # Linux passes through a folder that may be entered and not listed.
    flags = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY
    above = root.absolute().parts
    folder = os.open(above[0], flags)
    try:
        for number, part in enumerate((*above[1:], *below)):
            try:
                found = os.lstat(part, dir_fd=folder)
                trusted = number < len(above) - 1 and found.st_uid in (0, os.geteuid()) and stat.S_ISLNK(found.st_mode)
            except FileNotFoundError:
                if not make:
                    raise
                os.mkdir(part, dir_fd=folder)
                trusted = False
            inner = os.open(part, flags if trusted else flags | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder, last
    finally:
        os.close(folder)


@contextlib.contextmanager
def _folder(run_dir: Path, parts: list[str]) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY
    folder = os.open(run_dir, flags)
    try:
        for part in parts:
            inner = os.open(part, flags | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def _plainly(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_FILE:
            raise _no_file(path) from error
        raise


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        with _plainly(path):
            yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # the command line has words for it
            raise
        raise UserError(f"{path} cannot be read: {error.strerror}; name a run directory that you may read") from error


def _no_file(path: Path) -> UserError:
    return UserError(
        f"{path} is a link, or neither a file nor a folder; in a run directory asyncrl opens nothing else. See what it "
        "is, and put a copy in its place"
    )
