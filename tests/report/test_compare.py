"""One page over several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from plots import figures

from asyncrl.cli import main
from asyncrl.observe.metrics import MetricsWriter


@pytest.fixture
def run_of(made_up: Any, tmp_path: Path) -> Any:
    def make(name: str, num_steps: int) -> str:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(made_up.RECIPE)
        writer = MetricsWriter(folder / "metrics.jsonl")
        for record in made_up.records(num_steps):
            writer.write(record)
        return str(folder)

    return make


def test_curves_of_all_runs_are_in_each_chart(run_of: Any, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    runs = [run_of("short", 5), run_of("a/long", 700), run_of("b/long", 20)]
    assert main(["compare", *runs, "--out", str(out)]) == 0
    page = out.read_text()
    drawn = figures(page)
    assert list(drawn)[:2] == ["Reward", "Accuracy"]
    assert len(drawn) == 10
    runs = drawn["Reward"]["data"]
    assert [run["name"] for run in runs] == ["short", "a/long", "b/long"]
    assert len({run["marker"]["color"] for run in runs}) == 3
    for run in runs:  # thinned alike: none is broken
        shown = [y is not None for y in run["y"]]
        assert shown == sorted(shown, reverse=True)
        assert run["mode"] == "lines"
    assert "http" not in page.partition("<script")[0]


def test_names_of_runs_are_text(run_of: Any, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main(["compare", run_of("<b>'%{x}&\u2028", 2), run_of("x" * 200, 2), "--out", str(out)]) == 0
    first, second = (run["name"] for run in figures(out.read_text())["Reward"]["data"])
    assert first == "&lt;b&gt;'%{x}&amp;\u2028"
    assert second == "x" * 16 + "…" + "x" * 16


def test_it_says_where_the_page_is(
    run_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", run_of("one", 3)]) == 0
    page, alone = capsys.readouterr().out.splitlines()
    assert page == str(tmp_path / "compare.html")
    assert alone.startswith("it shows one run, ")
    assert main(["compare", run_of("two", 3), run_of("three", 3)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'compare.html'}\n"


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["one", "one"], "the same run is given twice"),
        (["one", "empty"], "has no finished step to compare"),
        (["one", "missing"], "is not a run directory: it does not exist"),
        (["one"] * 7, "7 runs are more than the 6 that can be told apart"),
    ],
)
def test_bad_input(
    run_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], sentence: str
) -> None:
    for name, num_steps in {"one": 3, "empty": 0}.items():
        run_of(name, num_steps)
    assert main(["compare", *(str(tmp_path / name) for name in names), "--out", str(tmp_path / "out.html")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.html").exists()
