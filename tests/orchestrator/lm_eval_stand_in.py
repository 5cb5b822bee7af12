"""As much of lm_eval (0.4.13) as `asyncrl eval --lm-eval` sees of it, without the package: its commands and words, the
requests that its `local-completions` makes, the file that it writes.

A task is FOLDER/NAME.jsonl, with FOLDER from --include_path; its rows have `question`, `choices` and `answer`, the
number of the right one. What a task called `fails`, `refuses`, `nothing` or `hangs` does, its name says.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

OPTIONS = ("tasks", "include_path", "limit", "num_fewshot", "model", "model_args", "output_path")
SAY = ("fails", "refuses", "nothing", "hangs")


def main() -> None:
    parser = argparse.ArgumentParser(prog="lm-eval")
    commands = parser.add_subparsers(dest="command")
    for command in ("run", "validate"):
        of_command = commands.add_parser(command)
        for option in OPTIONS:
            of_command.add_argument(f"--{option}", type=float if option == "limit" else str)
    asked = parser.parse_args(sys.argv[sys.argv.index("lm_eval") + 1 :])
    tasks = asked.tasks.split(",")
    if missing := [task for task in tasks if task not in SAY and not rows_of(asked, task)]:
        sys.stdout.write(f"Tasks not found: {', '.join(missing)}\n")
        sys.exit(1)
    if asked.command == "run":
        run(asked, tasks)


def rows_of(asked: argparse.Namespace, task: str) -> Path | None:
    path = Path(asked.include_path or "nowhere", f"{task}.jsonl")
    return path if path.exists() else None


def run(asked: argparse.Namespace, tasks: list[str]) -> None:
    if "fails" in tasks:
        raise ConnectionError("Couldn't reach 'some/data' on the Hub (OfflineModeIsEnabled)")
    if "refuses" in tasks:
        sys.exit(2)
    if "hangs" in tasks:
        sys.stdout.write(f"pid {os.getpid()}\n")
        sys.stdout.flush()
        time.sleep(600)
    found = {} if "nothing" in tasks else {task: scored(asked, task) for task in tasks}
    results: dict[str, Any] = {
        "results": {task: {"alias": task, "name": task, "sample_len": n, **of} for task, (n, _, of) in found.items()},
        "versions": dict.fromkeys(found, 1.0),
        "n-shot": dict.fromkeys(found, 0),
        "higher_is_better": {task: {"acc": True} for task in found},
        "n-samples": {task: {"original": all_, "effective": n} for task, (n, all_, _) in found.items()},
        "config": {"model": asked.model, "limit": asked.limit},
        "lm_eval_version": "0.4.13",
    }
    path = Path(asked.output_path)
    path.with_name(f"{path.stem}_2026-01-01T00-00-00.json").write_text(json.dumps(results))


def scored(asked: argparse.Namespace, task: str) -> tuple[int, int, dict[str, Any]]:
    args = json.loads(asked.model_args)
    rows = [json.loads(line) for line in Path(asked.include_path, f"{task}.jsonl").read_text().splitlines()]
    right = []
    for row in rows[: int(asked.limit or len(rows))]:
        sums = [log_likelihood(args, row["question"], choice) for choice in row["choices"]]
        right.append(float(sums.index(max(sums)) == row["answer"]))
    mean = sum(right) / len(right)
    stderr = math.sqrt(mean * (1 - mean) / (len(right) - 1)) if len(right) > 1 else "N/A"
    return len(right), len(rows), {"acc,none": mean, "acc_stderr,none": stderr}


def log_likelihood(args: dict[str, Any], question: str, choice: str) -> float:
    """Of a model whose tokens are bytes."""
    body = {"model": args["model"], "prompt": f"{question} {choice}", "temperature": 0, "max_tokens": 1}
    body |= {"logprobs": 1, "seed": 1234, "echo": True}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
    asked = urllib.request.Request(args["base_url"], json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=args["timeout"]) as answer:
        logprobs = json.load(answer)["choices"][0]["logprobs"]["token_logprobs"]
    return math.fsum(logprobs[len(question.encode()) : -1])


main()
