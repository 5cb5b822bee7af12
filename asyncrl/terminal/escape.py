"""Text of a run, a model or a stranger, for a terminal: nothing in it moves the cursor or turns the reading order."""

from __future__ import annotations

import logging
import re

_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but newline and tab
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # which way a text is read (Unicode UAX 9)
    r"\u2028\u2029\ud800-\udfff]"  # other ends of lines; halves of pairs, which no terminal can be sent
)


def visible(text: str) -> str:
    """Every control character but newline and tab as an escape, such as \\x1b, \\x9b or \\u202e."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class VisibleFormatter(logging.Formatter):
    """A log names what went wrong in the words of rewards, models and files. `%(level)s` is the level and a space, of
    warnings and what is worse."""

    def format(self, record: logging.LogRecord) -> str:
        record.level = f"{record.levelname} " if record.levelno >= logging.WARNING else ""
        return visible(super().format(record))
