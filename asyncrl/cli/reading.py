"""Commands that read a run directory, or the data of a recipe, and doctor."""

from __future__ import annotations

import argparse
from pathlib import Path

from asyncrl.cli.common import check_run_dir, importing, local, of_step, say
from asyncrl.metric_names import nth


def report(arguments: argparse.Namespace) -> int:
    check_run_dir(arguments.run_dir)
    from asyncrl.report.report import write_report

    say(write_report(arguments.run_dir, arguments.out))
    return 0


def watch(arguments: argparse.Namespace) -> int:
    from asyncrl.report import watch, watch_many

    folder = arguments.run_dir
    many = folder.is_dir() and not (folder / "recipe.yaml").exists()
    if not many:
        check_run_dir(folder)
    watch.serve(folder, arguments.host, arguments.port, watch_many.app if many else watch.app)
    return 0


def compare(arguments: argparse.Namespace) -> int:
    run_dirs = [local(name, whole=False) for name in arguments.run_dirs]
    for run_dir in run_dirs:
        check_run_dir(run_dir)
    from asyncrl.report.compare import write_comparison

    say(write_comparison(run_dirs, arguments.out).resolve())
    if len(run_dirs) == 1:
        say(f"it shows one run, {run_dirs[0]}; name others beside it to compare them")
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    check_run_dir(arguments.run_dir)
    from asyncrl.report import inspection

    reward, age = (value and inspection.parse_range(value) for value in (arguments.reward, arguments.age))
    filters = inspection.Filters(arguments.task, reward, age)
    found = inspection.inspect(arguments.run_dir, filters, arguments.limit, arguments.show, arguments.export)
    return 0 if found else 1


def export(arguments: argparse.Namespace) -> int:
    name, step = of_step(arguments.checkpoint)
    run_dir = local(name, whole=True)
    check_run_dir(run_dir)
    from asyncrl.ship.push import push, require_hub
    from asyncrl.ship.wish import Wish, checked

    wish = Wish(step, arguments.adapter, arguments.ema, arguments.dtype)
    checked(run_dir, wish)
    if arguments.push:
        require_hub(arguments.push)
    with importing(for_a_run=False):
        from asyncrl.ship.export import export

    folder = export(run_dir, wish, arguments.out)
    say(folder)
    if arguments.push:
        say(push(folder, arguments.push))
    return 0


def data(arguments: argparse.Namespace) -> int:
    from asyncrl.cli.running import loaded
    from asyncrl.data.show import lines
    from asyncrl.recipe.check import check

    recipe, base_dir = loaded(arguments.recipe, arguments.overrides), Path.cwd()
    check(recipe.model_copy(update={"run_dir": None}), base_dir)
    say(*lines(recipe, base_dir, arguments.number))
    return 0


def replay(arguments: argparse.Namespace) -> int:
    from asyncrl.recipe.stored import load_stored

    run_dir, verify = arguments.run_dir, arguments.verify
    check_run_dir(run_dir)
    _, recipe = load_stored(run_dir, [], arguments.trust)
    with importing(for_a_run=False):
        from asyncrl.orchestrator.replay import replay_run

    found = replay_run(run_dir.resolve(), recipe, verify)
    print(f"history    {found.num_entries} entries; every decision comes out again")
    print(f"batches    steps {nth(found.steps.start)} to {found.steps.stop}: {found.trained} groups, none twice")
    if verify:
        versions = ", ".join(map(str, found.compared))
        print(f"weights    versions {versions} trained again: bit for bit as in their checkpoints")
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    from asyncrl.observe.doctor import doctor as look

    if arguments.recipe is None:
        return look()
    from asyncrl.observe.doctor import Finding
    from asyncrl.recipe.load import load

    recipe = load(arguments.recipe, [])
    with importing(for_a_run=False):
        from asyncrl.trainer.model import would_take_trees
    if would_take_trees(recipe):
        found = Finding("ok", "attention", f"{recipe.model} takes prefix trees")
    else:
        found = Finding("warn", "attention", f"{recipe.model} is trained one trajectory at a time", "see above")
    return look([found], arguments.recipe)
