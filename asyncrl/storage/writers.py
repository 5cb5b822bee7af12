"""Who may have written a file: what names code that runs as this user must be of nobody else.

Owner and mode of the file count, and those of every folder and link on the way to it: who may write to a folder puts
another file in the place of the one that is there, unless the folder is sticky, as /tmp is.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from asyncrl.errors import UserError

FETCHED = ".fetched"
"""A file in a folder that came from a URL, until a run of this machine has taken it over: as much someone else's as the
storage is."""
MOST_LOOKED_AT = 100_000
_ACCESS_LIST = "system.posix_acl_access"


def others(path: Path) -> str | None:
    """`PLACE belongs to another user (id 1000)`, or the like, if someone else than this user and root may have written
    what is at the path, or may put something else there; None if nobody can, or nothing is there."""
    for place in _places(path):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if fault := of_status(place, place.lstat(), last=os.path.realpath(place) == os.path.realpath(path)):
                return fault
    return None


def others_below(place: Path, counts: Callable[[os.DirEntry[str]], bool]) -> str | None:
    """`others` of a file, or of a folder and of all in it and below that `counts`. Raises UserError if that is too much
    to look at."""
    seen: set[str] = set()
    todo, num_looked_at = deque([place]), 0
    while todo:
        above = todo.popleft()
        if (real := os.path.realpath(above)) in seen:
            continue
        seen.add(real)
        if fault := others(above):
            return fault
        with contextlib.suppress(PermissionError, FileNotFoundError, NotADirectoryError), os.scandir(above) as entries:
            for entry in entries:
                is_there = not entry.is_symlink() or os.path.exists(entry.path)
                if is_there and not counts(entry):
                    continue
                path, num_looked_at = Path(entry.path), num_looked_at + 1
                if num_looked_at > MOST_LOOKED_AT:
                    raise UserError(
                        f"{place} has more than {MOST_LOOKED_AT} files and folders of code, too many to see who may "
                        "have written them; put the recipe's code in a folder of its own, or say --trust"
                    )
                if fault := others(path) if entry.is_symlink() else of_status(path, entry.stat()):
                    return fault
                if is_there and entry.is_dir():
                    todo.append(path)
    return None


def of_status(path: Path, status: os.stat_result, last: bool = True) -> str | None:
    """The same of one file or folder, as its status says. Not `last`: a folder on the way, where sticky is enough."""
    if status.st_uid not in (os.geteuid(), 0):
        return f"{path} belongs to another user (id {status.st_uid})"
    if stat.S_ISLNK(status.st_mode) or (status.st_mode & stat.S_ISVTX and not last):
        return None
    if status.st_mode & stat.S_IWOTH:
        return f"{path} can be written by everyone"
    if status.st_mode & stat.S_IWGRP and (_has_access_list(path) or not _is_private(status.st_gid)):
        return f"{path} can be written by group {status.st_gid}"
    return None


def refusal(fault: str) -> UserError:
    return UserError(
        f"{fault}, and a run directory's recipe names code that would run as you; look at both, then say --trust, or "
        "make them yours alone"
    )


def _places(path: Path) -> Iterator[Path]:
    """Every file, folder and link that decides what is at the path."""
    seen, todo = set(), [path.absolute()]
    while todo:
        goal = todo.pop()
        for place in (*reversed(goal.parents), goal):
            if place not in seen:
                seen.add(place)
                yield place
                if place.is_symlink():
                    todo.append(place.parent / os.readlink(place))


def _is_private(gid: int) -> bool:
    """Whether a group is this user alone: root's, or the one that has the user's name, as most systems make one."""
    if gid == 0:
        return True
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _has_access_list(path: Path) -> bool:
    """Whether the bits of the group stand for a list, in which others may be."""
    with contextlib.suppress(OSError):
        return _ACCESS_LIST in os.listxattr(path)
    return False
