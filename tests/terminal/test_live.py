"""What a person sees: a panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import logging
import re
from typing import Any

from rich.console import Console

from asyncrl.terminal.live import LiveView, step_line


def show(made_up: Any, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=110, height=40, _environ={"TERM": "xterm"})
    with LiveView(20, "arithmetic", 2, console=console) as view:
        view.phase("starting Ray")
        for record in made_up.records():
            view.step(record)
        view.state(
            {
                "ledger": {"running": 3, "ready": 2, "trained": 320},
                "waiting": ["trainer: step 19, for 4 s of 60 s"],
                "generators": [
                    {"name": "generator-0", "state": "serving", "version": 19, "groups": 7, "tokens_per_s": 431.2},
                    {"name": "generator-1", "state": "starting"},
                    *({"name": f"generator-{n}", "state": "serving", "version": 19, "groups": 0} for n in range(2, 20)),
                ],
                "warnings": ["offpolicy/ess is 0.10: a few tokens carry the weights"],
            }
        )
        if view._live:
            view._live.refresh()
    return out.getvalue()


def test_a_log_has_one_line_per_step_and_phase(made_up: Any) -> None:
    lines = show(made_up, terminal=False).splitlines()
    assert len(lines) == 21
    assert lines[0].endswith("starting Ray")
    assert " 20/20 " in lines[-1]
    assert "reward" in lines[-1]
    assert not any("\x1b" in line for line in lines)


def test_the_panel_shows_progress_tasks_and_waits(made_up: Any) -> None:
    panel = show(made_up, terminal=True)
    for text in ("arithmetic", "20/20", "running 3", "ready 2", "trainer: step 19, for 4 s of 60 s"):
        assert text in panel


def test_the_panel_shows_curves_and_a_sample_on_a_line_each(made_up: Any) -> None:
    out = io.StringIO()
    with LiveView(20, "arithmetic", 2, Console(file=out, force_terminal=True, width=80, height=40)) as view:
        for record in made_up.records():
            view.step(record | {"accuracy/mean": 0.0}, {"prompt": "What is\n3 + 5?", "completion": "It is " + 99 * "8"})
        view._live.refresh()
    rows = [line for line in out.getvalue().rpartition("progress")[2].splitlines() if "\u2502" in line]
    (prompt,) = [row for row in rows if "prompt" in row]
    (completion,) = [row for row in rows if "completion" in row]
    assert "What is 3 + 5?" in prompt
    assert "It is 888" in completion
    assert "\u2026" in completion
    assert any("reward" in row and "\u2588" in row for row in rows)
    assert any("length" in row for row in rows)
    assert not any("accuracy" in row for row in rows)


def test_a_step_says_how_far_the_teacher_is() -> None:
    record: dict[str, Any] = {"step": 4, "time_s": 9.0, "distil/kl": 0.125}
    assert "  teacher KL 0.125  " in step_line(record, 20, 1)
    assert "teacher" not in step_line(record | {"distil/kl": None}, 20, 1)
    beside = step_line(record | {"distil/taught_share": 1.0, "reward/mean": 0.5, "accuracy/mean": 0.5}, 20, 1)
    assert "reward  0.500  acc  50 %  teacher KL 0.125" in beside
    alone = record | {"distil/taught_share": 1.0, "reward/mean": None, "accuracy/mean": None}
    assert step_line(alone, 20, 1).startswith(" 5/20  teacher KL 0.125  stale")
    assert "  teacher KL 0.125  sft nll 2.500  " in step_line(record | {"sft/nll": 2.5}, 20, 1)


def test_a_run_on_answers_shows_loss_and_perplexity_and_no_reward(made_up: Any) -> None:
    panel, log = io.StringIO(), io.StringIO()
    for out, terminal in ((panel, True), (log, False)):
        console = Console(file=out, force_terminal=terminal, width=110, height=40)
        with LiveView(20, "sums", 1, console) as view:
            for record in made_up.of_answers():
                view.step(record)
            view.state({"generators": [{"name": "generator-0", "state": "serving", "version": 1, "groups": 0}]})
            if view._live:
                view._live.refresh()
    shown = panel.getvalue().rpartition("progress")[2]
    assert all(word in shown for word in ("loss", "0.150", "perplexity", "1.162", "epoch", "5.00", "tokens/s"))
    line = log.getvalue().splitlines()[-1]
    assert "20/20  loss  0.150  perplexity  1.162  epoch 5.00  trainer busy" in line
    for silly in ("reward", " acc", "stale", "gen"):
        assert silly not in shown
        assert silly not in line


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_what_lasts_is_said_again_at_each_doubling_with_the_amount_and_the_wait() -> None:
    out, clock = io.StringIO(), Clock()
    view = LiveView(20, "arithmetic", 2, console=Console(file=out, width=110), clock=clock)
    view.state({"waiting": ["generator-0: to load the model, for 20 s of 900 s"]})
    view.phase("starting the actors", total=3).done += 1
    for clock.now_s in range(45):
        view._beat()
    view.phase("stopping")
    lines = [line.partition("  ")[2] for line in out.getvalue().splitlines()]
    waits = ": waiting for generator-0: to load the model, for 20 s of 900 s"
    again = [f"starting the actors, 1 of 3, {seconds} s{waits}" for seconds in (5, 10, 20, 40)]
    assert lines == ["starting the actors", *again, "stopping"]


def test_a_log_is_told_when_a_step_takes_long(made_up: Any) -> None:
    out, clock = io.StringIO(), Clock()
    view = LiveView(20, "arithmetic", 2, console=Console(file=out, width=110), clock=clock)
    for record in made_up.records()[:2]:
        view.step(record)
        clock.now_s += 29
        view._beat()
    clock.now_s += 2
    view._beat()
    assert view.doing == "training"
    lines = [line.partition("  ")[2] for line in out.getvalue().splitlines()]
    assert len(lines) == 3
    assert lines[-1] == "training, 31 s"


def test_the_panel_has_a_bar_where_the_amount_is_known() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=110, height=40, _environ={"TERM": "xterm"})
    with LiveView(20, "arithmetic", 2, console=console) as view:
        view.phase("reading the journal", total=8).done = 4
        assert view.doing == "reading the journal, 4 of 8"
        view._live.refresh()
    line = next(line for line in out.getvalue().splitlines() if "reading the journal, 4 of 8" in line)
    assert "━" in line


def test_the_panel_shows_generators_with_version_and_load_and_the_warnings_that_hold(made_up: Any) -> None:
    plain = re.sub(r"\x1b\[[\d;?]*\w", "", show(made_up, terminal=True))
    lines = [" ".join(line.split()) for line in plain.splitlines()]
    for text in (
        "generator-0 version 19 7 groups 431 tokens/s",
        "generator-1 starting",
        "generator-7 version 19 0 groups",
        "and 12 more",
        "warnings offpolicy/ess is 0.10: a few tokens",
    ):
        assert any(text in line for line in lines), text
    assert not any("generator-8" in line for line in lines)


def test_handlers_without_a_stream_are_left_alone(made_up: Any) -> None:
    handler = logging.StreamHandler()
    handler.stream = None
    logger = logging.getLogger("a.library.that.waits")
    logger.addHandler(handler)
    try:
        show(made_up, terminal=True)
        assert logger.handlers == [handler]
    finally:
        logger.removeHandler(handler)


def test_generators_that_only_wait_for_rewards_are_not_just_busy() -> None:
    record = {"step": 3, "time_s": 9.0, "reward/mean": 0.5, "generator_time/busy": 0.99}
    assert "gen busy  99 % idle   - %  wait for rewards  95 %" in step_line(
        record | {"reward_time/waiting": 0.95}, 9, 1
    )
    for little in (0.05, None):
        assert "rewards" not in step_line(record | {"reward_time/waiting": little}, 9, 1)
