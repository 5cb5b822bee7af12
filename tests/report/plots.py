"""The plots of a page as Plotly is given them."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any


def figures(page: str) -> dict[str, dict[str, Any]]:
    """By what they are called."""
    parser = _Plots()
    parser.feed(page)
    return parser.found


class _Plots(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, dict[str, Any]] = {}

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if given.get("class") == "plot":
            assert given["role"] == "img"
            self.found[given["aria-label"]] = json.loads(given["data-figure"], parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
