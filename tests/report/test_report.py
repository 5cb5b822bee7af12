"""report.html: one self-contained page, of a finished, a crashed and an empty run."""

from __future__ import annotations

import json
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from plots import figures

from asyncrl.observe.metrics import MetricsWriter, write_summary
from asyncrl.report.report import write_report


def run_dir(made_up: Any, folder: Path, num_steps: int) -> Path:
    (folder / "recipe.yaml").write_text(made_up.RECIPE)
    writer = MetricsWriter(folder / "metrics.jsonl")
    for record in made_up.records(num_steps):
        writer.write({**record, "rewards/failed_share": 0.27})
    return folder


class Page(HTMLParser):
    """Tags, and every address that the page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [v for k, v in attributes if k in ("src", "href") and v and not v.startswith("#")]


def test_a_finished_run(made_up: Any, tmp_path: Path) -> None:
    run = run_dir(made_up, tmp_path, 20)
    write_summary(
        run / "summary.json",
        {
            "ledger": {"drawn": 320, "trained": 320},
            "reward_failures": 1609,
            "bottleneck": "trainer-bound: x",
            "changes": [{"step": 5, "kind": "reward", "what": "source was <a>, is <b>"}],
        },
    )
    sample = {"step": 0, "task": 1, "prompt": "<script>alert(1)</script>", "completion": "3", "reward": 1.0}
    (run / "samples.jsonl").write_text(json.dumps({**sample, "tokens": ["3"], "versions": [0]}) + "\n")
    text = write_report(run).read_text()
    page = Page(text)
    assert page.fetched == []
    assert list(figures(text))[:2] == ["Reward", "Accuracy"]
    assert len(figures(text)) == page.tags.count("figcaption") == 14
    assert page.tags.count("script") == page.tags.count("noscript") == 1
    assert text.rindex("alert(1)") < text.index("<script")
    assert "&lt;script&gt;" in text
    assert "trainer-bound: x" in text
    assert "From step 6 on: reward, source was &lt;a&gt;, is &lt;b&gt;" in text
    assert "<b>2</b><span>bound 2 updates</span>" in text
    assert "<span>rewards failed</span><b>1,609</b><span>27.0 % lately</span>" in text
    assert "Truncated completions, failed rewards" in text
    assert "prefers-color-scheme: dark" in text


def test_a_run_on_answers_has_loss_and_perplexity_and_no_reward(made_up: Any, tmp_path: Path) -> None:
    run = run_dir(made_up, tmp_path, 0)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in made_up.of_answers(20)))
    sample = {"step": 0, "task": 1, "prompt": "2+2", "completion": "4</s>", "tokens": ["4", "</s>"], "versions": [0, 0]}
    (run / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    text = write_report(run).read_text()
    assert list(figures(text)) == [
        *("Loss", "Perplexity", "Gradient norm", "Learning rate", "Samples trained", "Tokens trained"),
        "Trainer time",
    ]
    assert "<span>last loss</span><b>0.150</b><span>first step 3.000</span>" in text
    assert "<b>5.00</b><span>passes over the data</span>" in text
    for silly in ("reward", "Generators", "staleness", "Colour the tokens", "version 0"):
        assert silly not in text.partition('<section id="recipe">')[0].partition("<body>")[2]
    assert 'title="learnt, tokens 0 to 1"' in text


def test_a_run_with_a_teacher_alone_has_the_kl_in_the_place_of_a_reward(made_up: Any, tmp_path: Path) -> None:
    run = run_dir(made_up, tmp_path, 0)
    none = dict.fromkeys(("reward/mean", "reward/std", "accuracy/mean"))
    records = [record | none | {"distil/kl": 0.8 - 0.25 * record["step"]} for record in made_up.records(3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text = write_report(run).read_text()
    assert "KL from the teacher</span><b>0.300</b><span>first step 0.800, nats per token</span>" in text
    assert "last reward" not in text
    assert "final reward" not in text


def test_a_crashed_run_has_what_there_is(made_up: Any, tmp_path: Path) -> None:
    drawn = figures(write_report(run_dir(made_up, tmp_path, 7)).read_text())
    assert len(drawn) == 14
    assert all(trace["x"] for figure in drawn.values() for trace in figure["data"])


def test_a_run_without_a_step_says_so(made_up: Any, tmp_path: Path) -> None:
    text = write_report(run_dir(made_up, tmp_path, 0)).read_text()
    assert "no step" in text.lower()


def test_a_record_of_many_keys_costs_no_look_at_each(tmp_path: Path, made_up: Any) -> None:
    made_up.write_run(run_dir := tmp_path / "run")
    (run_dir / "summary.json").unlink(missing_ok=True)
    wide = {"step": 0, **{f"a_time/{number}": 1 for number in range(4000)}}
    lines = [json.dumps(wide), *(json.dumps({"step": step}) for step in range(1, 20_000))]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    began = time.process_time()
    write_report(run_dir)
    assert time.process_time() - began < 5
