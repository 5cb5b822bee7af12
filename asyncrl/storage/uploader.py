"""Keeping the URL of a run up to date while it runs: a thread pushes every 30 s, and once more at the end.

Waits for: the storage, and nobody for it: a push that fails is said, and tried again. One that finds that another
driver has taken the URL over ends the run as SIGTERM does.
"""

from __future__ import annotations

import _thread
import logging
import signal
import threading
from pathlib import Path

from asyncrl.errors import RunFailed, UserError
from asyncrl.storage.mirror import Mirror, is_newest, is_url

logger = logging.getLogger(__name__)

EVERY_S = 30.0


class Uploader:
    """Context manager; does nothing if `run_dir`, as the recipe has it, is no URL. Enter raises UserError if nothing
    can be written there, or if what is there is newer than the folder; exit raises RunFailed if the last push fails."""

    def __init__(self, run_dir: str | None, folder: Path, deadline_s: float) -> None:
        """deadline_s: of the last push but one, at the end."""
        self._url = run_dir if run_dir and is_url(run_dir) else None
        self._folder, self._deadline_s = folder, deadline_s
        self._end = threading.Event()
        self._lost: RunFailed | None = None

    def __enter__(self) -> None:
        if self._url is None:
            return
        if not is_newest(self._url, self._folder):
            raise UserError(f"{self._url} is newer than {self._folder}; asyncrl resume {self._url}")
        self._mirror = Mirror(self._url, self._folder)
        self._mirror.begin()
        self._mirror.push()
        self._thread = threading.Thread(target=self._follow, name="uploader", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._end.wait(EVERY_S):
            try:
                self._mirror.push()
            except RunFailed as error:
                self._lost = error
                # To the handler of the run, if it has one: a notebook, which has none, must not be killed.
                _thread.interrupt_main(signal.SIGTERM)
                return
            except (UserError, OSError) as error:
                logger.warning("%s; what is new is only in %s, and is sent with the next push", error, self._folder)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._url is None:
            return
        self._end.set()
        self._thread.join(self._deadline_s)
        if self._lost:
            raise self._lost
        try:
            self._mirror.push()
        except (UserError, OSError) as error:
            # An error of the run itself is the one to show.
            if kind is None:
                raise RunFailed(f"{error}; all of the run is in {self._folder}, what is new only there") from error
            logger.warning("%s; what is new is only in %s", error, self._folder)
