"""The page's looks: contrast in light and dark, width, landmarks, and that the keyboard reaches what can be used."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser

from asyncrl.observe.trace import Span, TraceFile
from asyncrl.report import page
from asyncrl.report.compare import write_comparison
from asyncrl.report.report import write_report

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no browser on this machine")
TEXT, GRAPHIC = 4.5, 3.0
"""Least contrast (WCAG 2.2, AA)."""


# -- colours, from the style sheet alone


def luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_from_their_ground(theme: int) -> None:
    colours = page.palettes()[theme]
    assert len({len(palette) for palette in page.palettes()}) == 1
    marks = [name for name in colours if re.fullmatch(r"[vg]\d", name)]
    assert len(marks) == 11
    for ground in ("paper", "card", *marks):
        assert contrast(colours["ink"], colours[ground]) >= TEXT, ground
    for ground in ("paper", "card"):
        assert contrast(colours["soft"], colours[ground]) >= TEXT, ground
    for name in ("blue", "green", "amber", "violet", "teal", "red", "grey"):
        assert contrast(colours[name], colours["card"]) >= GRAPHIC, name


# -- in a browser


ALL_DRAWN = "!document.querySelector('.plot:not(:has(.main-svg))')"


@pytest.fixture(scope="module")
def run_dir(made_up: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With everything that a page can show."""
    run_dir = made_up.write_run(tmp_path_factory.mktemp("page") / (2 * "a_run_with_a_name_so_long_that_it_must_break_"))
    (run_dir / "status.json").write_text(json.dumps(made_up.status()))
    spans = [Span("steps", name, 10.0 * i, 9.0) for i, name in enumerate(("fetch", "forward", "backward", "optimizer"))]
    TraceFile(run_dir / "trace.json").write("trainer", spans)
    records = made_up.records(23)
    records[21]["offpolicy/ess"], records[22]["trainer/entropy"] = 0.1, 0.001
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records[20:])
    return run_dir


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module", params=["report", "compare"])
def url(request: pytest.FixtureRequest, run_dir: Path, made_up: Any) -> str:
    if request.param == "report":
        return write_report(run_dir).as_uri()
    other = run_dir.parent / "other"
    return write_comparison([run_dir, made_up.write_run(other)], run_dir.parent / "compare.html").as_uri()


LOW_CONTRAST = """
(() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = (c) => { const f = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * f(c[0]) + 0.7152 * f(c[1]) + 0.0722 * f(c[2]); };
  const ground = (node) => { for (; node; node = node.parentElement) {
    const c = rgb(getComputedStyle(node).backgroundColor); if (c.length === 3 || c[3] === 1) return c; }
    return [255, 255, 255]; };
  const found = []; let seen = 0;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !node.checkVisibility() || node.closest("title, script, style")) continue;
    const style = getComputedStyle(node), svg = node instanceof SVGElement;
    const [a, b] = [light(rgb(svg ? style.fill : style.color)), light(ground(node))].sort((x, y) => y - x);
    seen += 1;
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push(walk.currentNode.data.slice(0, 40));
  }
  return [seen, found];
})()
"""


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_all_text_can_be_read_and_nothing_is_wider_than_the_window(
    browser: Browser, url: str, width: int, dark: bool
) -> None:
    browser.look(width, dark=dark)
    browser.open(url)
    if browser.value("!!document.getElementById('by-gap')"):
        browser.value("document.getElementById('by-gap').click()")
    browser.value("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    browser.until(ALL_DRAWN)
    seen, low = browser.value(LOW_CONTRAST)
    assert seen > 100
    assert low == []
    assert browser.value("document.documentElement.scrollWidth") <= width


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_axe_has_nothing_to_say(browser: Browser, url: str, width: int, dark: bool) -> None:
    """Of names, roles, contrast, tables, landmarks and what scrolls; all folded parts open."""
    browser.look(width, dark=dark)
    browser.open(url)
    browser.until(ALL_DRAWN)
    browser.value("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.axe() == []


@needs_browser
def test_axe_sees_what_is_wrong(browser: Browser, run_dir: Path) -> None:
    browser.look(1280)
    browser.open(write_report(run_dir).as_uri())
    browser.value("document.querySelector('h1').style.color = '#ddd'")
    browser.value("document.querySelector('#ledger th').textContent = ''")
    assert {said.partition(":")[0] for said in browser.axe()} == {"color-contrast", "empty-table-header"}


ROWS_OF_TILES = """Object.values(Object.groupBy([...document.querySelectorAll(".tile")].map((tile) =>
    tile.getBoundingClientRect()), (at) => at.top)).map((row) => [row.length, Math.round(row.at(-1).right)])"""


@needs_browser
def test_tiles_fill_rows_of_about_as_many_each(browser: Browser, tmp_path: Path) -> None:
    for count in range(1, 13):
        tiles = page.tiles([("4 min 43 s", "largest staleness", f"tile {number}") for number in range(count)])
        url = page.write(tmp_path / f"{count}.html", "tiles", [tiles]).as_uri()
        for width, most in ((1280, 7), (900, 4), (375, 2)):
            browser.look(width)
            browser.open(url)
            rows = browser.value(ROWS_OF_TILES)
            assert sum(number for number, _ in rows) == count
            assert max(number for number, _ in rows) <= most
            assert len({right for _, right in rows}) == 1, "a row is not filled"
            assert most == 2 or len(rows) == 1 or min(number for number, _ in rows) > 1, (count, width, rows)


WIDTHS = "[...document.querySelectorAll('.plot')].map((plot) => plot.querySelector('.main-svg').width.baseVal.value)"
INKS = """[...document.querySelectorAll(".plot .main-svg text, h1, .tile b, figcaption")].map((node) =>
    getComputedStyle(node)[node instanceof SVGElement ? "fill" : "color"])"""


@needs_browser
def test_paper_is_light_and_has_two_charts_beside_each_other(browser: Browser, run_dir: Path) -> None:
    browser.look(1280, dark=True)
    browser.open(write_report(run_dir).as_uri())
    browser.until(ALL_DRAWN)
    on_screen = browser.value("document.querySelector('.plot').clientWidth")
    browser.value(f"addEventListener('beforeprint', () => {{ window.printed = [{INKS}, {WIDTHS}]; }})")
    pages = len(re.findall(rb"/Type\s*/Page\b", browser.paper()))
    inks, widths = browser.value("window.printed")
    assert set(inks) <= {"rgb(29, 33, 39)", "rgb(92, 100, 112)"}
    assert set(widths) == {310, 960}
    assert 3 <= pages <= 8
    # Afterwards the screen has what it had.
    browser.until(f"!document.documentElement.classList.contains('paper') && {WIDTHS}[0] === {on_screen}")


REACHABLE = "document.querySelectorAll('summary, input:checked, [tabindex=\"0\"]').length"
FOCUS = """
(() => { const node = document.activeElement, style = getComputedStyle(node);
  if (node === document.body) return null;
  return [node.id || node.getAttribute("aria-label") || node.textContent.slice(0, 40),
    style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2]; })()
"""


@needs_browser
def test_the_keyboard_reaches_all_that_scrolls_unfolds_or_switches(browser: Browser, url: str) -> None:
    browser.look(1280)
    browser.open(url)
    browser.until(ALL_DRAWN)
    browser.value("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    scrolling = """[...document.querySelectorAll("body *")].filter((node) =>
        ["auto", "scroll"].includes(getComputedStyle(node).overflowX) && node.tabIndex < 0).map((n) => n.className)"""
    assert browser.value(scrolling) == []
    visited = []
    for _ in range(browser.value(REACHABLE)):
        browser.press("Tab", 9)
        visited.append(browser.value(FOCUS))
    assert all(visited), visited
    names = [name for name, _ in visited]
    assert len(set(names)) == len(names) > 0
    assert [name for name, ringed in visited if not ringed] == []


@needs_browser
def test_the_switch_works_by_keyboard_and_without_script(browser: Browser, run_dir: Path) -> None:
    browser.look(1280)
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(write_report(run_dir).as_uri())
    browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.value("document.querySelector('noscript').checkVisibility()")
    assert browser.value("typeof Plotly") == "undefined"
    colours = "[...document.querySelectorAll('.text span')].map((s) => getComputedStyle(s).backgroundColor)"
    legend = "document.querySelector('p.gap-only').checkVisibility()"
    by_version = browser.value(colours)
    assert not browser.value(legend)
    browser.value("document.getElementById('by-version').focus()")
    browser.press("ArrowRight", 39)
    assert browser.value("document.getElementById('by-gap').checked")
    by_gap = browser.value(colours)
    assert by_gap != by_version
    assert len(set(by_gap)) >= 4
    assert browser.value(legend)
    browser.press("ArrowLeft", 37)
    assert browser.value(colours) == by_version


@needs_browser
def test_landmarks_and_headings_are_in_order(browser: Browser, url: str) -> None:
    browser.open(url)
    assert browser.value("document.querySelectorAll('main').length") == 1
    levels = browser.value("[...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    unnamed = (
        "[...document.querySelectorAll('[role=img], table, [role=region]')].filter((n) => !(n.ariaLabel ?? n.caption))"
    )
    assert browser.value(f"{unnamed}.length") == 0
    ids = browser.value("[...document.querySelectorAll('[id]')].map((n) => n.id)")
    assert len(set(ids)) == len(ids)


# -- the plots


TOLD = "[...document.querySelectorAll('.hoverlayer text')].map((text) => text.textContent)"


@needs_browser
def test_plots_are_drawn_and_nothing_is_asked_for(browser: Browser, url: str) -> None:
    browser.look(1280)
    browser.open(url)
    browser.until(ALL_DRAWN)
    marks = ".plot:has(.scatterlayer path, .barlayer path)"
    assert browser.value(f"document.querySelectorAll('{marks}').length") >= 10
    assert browser.value("document.querySelectorAll('.modebar-btn').length") == 0
    assert browser.requests == [url]
    assert browser.complaints == []


@needs_browser
def test_the_mouse_shows_a_steps_figures_hides_a_curve_and_zooms(browser: Browser, run_dir: Path) -> None:
    browser.look(1280)
    browser.open(write_report(run_dir).as_uri())
    plot = "[aria-label='Importance weights']"
    drawn = f'document.querySelector("{plot}")'
    browser.until(ALL_DRAWN)
    x, y = browser.middle(f"{plot} .nsewdrag")
    browser.mouse((x - 1, y), (x, y))
    browser.until(f"{TOLD}.length > 0")
    step, *curves = browser.value(TOLD)
    assert re.fullmatch(r"step 1\d", step)
    assert [re.sub(r"[\d.]+%", "%", curve) for curve in curves] == ["effective sample size : %", "clipped : %"]
    browser.mouse((x, y), (x + 50, y), (x + 99, y), pressed=True)
    browser.until(f"{drawn}.layout.xaxis.autorange === false")
    low, high = browser.value(f"{drawn}.layout.xaxis.range")
    assert 8 < low < high < 22
    browser.mouse(browser.middle(f"{plot} .legendtoggle"), pressed=True)
    browser.until(f"{drawn}.data[0].visible === 'legendonly'")
    assert browser.value(f"{drawn}.data[1].visible") is not False
    assert browser.complaints == []


@needs_browser
def test_plots_follow_the_colours_of_the_user(browser: Browser, url: str) -> None:
    browser.look(1280)
    browser.open(url)
    stroke = "getComputedStyle(document.querySelector('.plot .legendlines path')).stroke"
    for theme, colours in enumerate(page.palettes()):
        browser.look(1280, dark=bool(theme))
        red, green, blue = (int(colours["blue"][i : i + 2], 16) for i in (1, 3, 5))
        browser.until(f"{stroke} === 'rgb({red}, {green}, {blue})'")


@needs_browser
def test_a_finger_on_a_plot_scrolls_the_page(browser: Browser, run_dir: Path) -> None:
    browser.look(375)
    browser.send("Emulation.setTouchEmulationEnabled", enabled=True)
    try:
        browser.open(write_report(run_dir).as_uri())
        browser.until(ALL_DRAWN)
        x, y = browser.middle("[aria-label=Accuracy] .nsewdrag")
        before = browser.value("scrollY")
        browser.drag(x, y, up=300)
        browser.until(f"scrollY > {before} + 200")
    finally:
        browser.send("Emulation.setTouchEmulationEnabled", enabled=False)


@needs_browser
def test_figures_and_names_that_anyone_made_up_are_drawn(browser: Browser, made_up: Any, tmp_path: Path) -> None:
    nasty = [5e-324, -5e-324, 1e-13, 1e-12, 0.3, 0, 1, -1, 1e15, 1e15 - 1, -1e15, 1e308, math.inf, math.nan, 10**400]
    rng = random.Random(0)
    run_dir = made_up.write_run(tmp_path / "<img src=x onerror=alert(1)>")
    for num_steps, choice in ((1, nasty), (2, nasty), (30, nasty), (3, [1e15]), (3, [1e-12]), (3, [1e15, 1e15 - 1])):
        records = made_up.records(num_steps)
        for record in records:
            record |= {key: rng.choice(choice) for key in record if key != "step"}
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (run_dir / "metrics.jsonl").write_text(lines)
        spans = [Span("steps", "</script><b>x</b>%{x}", 10.0 * i, 9.0) for i in range(num_steps)]
        (run_dir / "trace.json").unlink(missing_ok=True)
        TraceFile(run_dir / "trace.json").write("trainer", spans)
        for page_of in (write_report(run_dir), write_comparison([run_dir], tmp_path / "compare.html")):
            browser.open(page_of.as_uri())
            browser.until(ALL_DRAWN)
            assert browser.value("document.querySelectorAll('.plot :is(b, a, img, [style*=bold])').length") == 0
            assert browser.complaints == []
