"""The command `bezoar`: parses, calls one function, prints."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.runtime.gpus import GPUS, find_gpu
from bezoar_ray.stages import STAGES, checkpoint_names, working_stages

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from bezoar_ray.recipe import Recipe
    from bezoar_ray.runs.submit import Jobs
    from bezoar_ray.store import Store

_EPILOG = """\
examples:
  bezoar run tiny                                   the whole recipe on this laptop, into runs/tiny
  bezoar plan openbezoar-3b                         what the paper's recipe would call, cost and take
  bezoar run openbezoar-3b --pilot 20               20 seeds per scheme: look at them before the bill
  bezoar plan openbezoar-3b --from runs/openbezoar-3b-pilot
  bezoar run mine.yaml --set align.beta=0.2 --stages align,evaluate,report
  bezoar submit modern --address http://127.0.0.1:8265 --run-dir s3://bucket/runs/modern --follow

exit codes: 0 done, 2 bad recipe or usage or a run directory in use, 3 a stage failed (what is done stays),
4 budget reached, 130 interrupted. Run the same command again to go on.
"""


def main(arguments: list[str] | None = None) -> int:
    """The command's exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.call(options)
        sys.stdout.flush()
    except BezoarError as error:
        print(f"bezoar: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # who read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(
            "bezoar: interrupted; run the same command again to go on", file=sys.stderr
        )
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    from bezoar_ray.report.preview import show
    from bezoar_ray.runs.orchestrator import parse_stages, pilot, run
    from bezoar_ray.runtime.progress import Progress
    from bezoar_ray.store import Store

    recipe, stages = _recipe(options), parse_stages(options.stages)
    name = recipe.name
    if options.pilot:
        recipe, stages, name = (
            pilot(recipe, options.pilot),
            ["generate", "filter", "report"],
            f"{name}-pilot",
        )
    store = Store(options.run_dir or Path("runs") / name)
    run(recipe, store, stages, Progress(run=store.name))
    if options.pilot:
        print(show(store, recipe.schemes))
    print(
        f"\n{store.root}/summary.json"
        + (f"\n{store.root}/report.html" if "report" in stages else "")
    )


def _plan(options: argparse.Namespace) -> None:
    from bezoar_ray.plan import (
        Assumed,
        assumed_from,
        plan,
        render,
        render_scaling,
        scaling,
    )

    recipe = _recipe(options)
    assumed = assumed_from(recipe, options.measured) if options.measured else Assumed()
    if options.cluster:
        print(render_scaling(scaling(recipe, options.cluster, assumed)))
    else:
        gpu = find_gpu(options.gpu, "--gpu") if options.gpu else None
        print(render(plan(recipe, assumed, gpu)))
    if options.check:
        _check(recipe, options.offline)


def _check(recipe: "Recipe", offline: bool) -> None:
    from bezoar_ray.runs.preflight import check

    found = check(recipe, working_stages(), offline)
    print("\nTried: the first rows of each source, templates, tasks and questions.")
    for kind, lines in (("note", found.notes), ("not tried", found.unchecked)):
        for line in lines:
            print(f"- {kind}: {line}")
    if found.problems:
        raise RecipeError("\n".join(found.problems))


def _submit(options: argparse.Namespace) -> None:
    from bezoar_ray.runs.submit import Jobs

    arguments = [
        part
        for name in ("stages", "pilot")
        if (value := getattr(options, name))
        for part in (f"--{name}", str(value))
    ]
    jobs = Jobs(options.address)
    job = jobs.submit(
        _recipe(options), options.run_dir, arguments, options.requirements
    )
    print(f"{job.id}: {'works on it already' if job.found else 'submitted'}")
    print(
        f"to attach: bezoar status {options.run_dir} --address {options.address} --follow"
    )
    if options.follow:
        _follow(jobs, job.id)


def _follow(jobs: "Jobs", id: str) -> None:
    try:
        jobs.follow(id)
    except KeyboardInterrupt:
        print(f"\n{id} goes on; `ray job stop {id}` would end it")


def _status(options: argparse.Namespace) -> None:
    from bezoar_ray.runs.status import render
    from bezoar_ray.store import Store

    if options.follow and not options.address:
        raise RecipeError(
            "--follow needs the --address of the cluster whose job is to be followed"
        )
    if not options.address:
        return print(render(Store(options.dir)))
    from bezoar_ray.runs.submit import Jobs

    jobs = Jobs(options.address)
    job = jobs.last(options.dir)
    print(
        f"{job.id}: {job.status.lower()}"
        if job
        else f"no job has worked on {options.dir}"
    )
    if "://" in options.dir or Path(options.dir).is_dir():
        try:
            print(render(Store(options.dir)))
        except (
            BezoarError
        ) as error:  # it has not begun, or this machine has no key of the bucket
            print(error)
    if job and options.follow:
        _follow(jobs, job.id)


def _report(options: argparse.Namespace) -> None:
    from bezoar_ray.runs.orchestrator import report_again
    from bezoar_ray.runtime.progress import Progress

    store, recipe = _existing(options.dir)
    report_again(recipe, store, Progress())
    print(f"{store.root}/report.html")


def _compare(options: argparse.Namespace) -> None:
    from bezoar_ray.report.compare import as_page, as_text, compare
    from bezoar_ray.store import Store

    stores = {folder: _existing(folder) for folder in options.dir}
    runs = [
        (Path(folder).name, recipe, store) for folder, (store, recipe) in stores.items()
    ]
    found = compare(runs)
    print(as_text(found))
    page = Path(options.page)
    Store(page.parent).replace(page.name, as_page(found))
    print(f"\n{page.absolute()}")


def _serve(options: argparse.Namespace) -> None:
    from bezoar_ray.runtime.session import ray_session
    from bezoar_ray.serve.app import serve_forever

    store, recipe = _existing(options.dir, options.set)
    with ray_session():
        serve_forever(recipe, store)


def _sweep(options: argparse.Namespace) -> None:
    from bezoar_ray.recipe import load_recipe
    from bezoar_ray.runs.sweep import report, sweep, trials
    from bezoar_ray.runtime.progress import Progress
    from bezoar_ray.store import Store

    name = load_recipe(options.recipe, options.set).name
    store = Store(options.run_dir or Path("runs") / f"{name}-sweep")
    found = trials(options.recipe, options.set, options.param, store)
    try:
        sweep(found, store, Progress())
    finally:
        print(report(found, store))


def _push(options: argparse.Namespace) -> None:
    from bezoar_ray.report.hub import push, uploads

    store, recipe = _existing(options.dir)
    found = uploads(recipe, store, options.owner, options.only)
    print("\n".join(map(str, found)))
    if not options.dry_run:
        push(found, options.private)


def _tiny(options: argparse.Namespace) -> None:
    from bezoar_ray.runtime.caches import unwritable
    from bezoar_ray.runtime.embedded_world import find_world, world_folder

    for problem in () if world_folder().exists() else unwritable(embedded=True):
        raise RecipeError(problem)
    print(find_world().base.parent)


def _doctor(options: argparse.Namespace) -> None:
    from bezoar_ray.runs.doctor import report

    print(report(options.recipe))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return number


def _of_serve(text: str) -> str:
    if not text.startswith("serve."):
        raise argparse.ArgumentTypeError(
            f"{text}: expected serve.KEY=VALUE; the rest is as the run has it"
        )
    return text


def _recipe(options: argparse.Namespace) -> "Recipe":
    from bezoar_ray.recipe import load_recipe

    return load_recipe(options.recipe, options.set)


def _existing(
    folder: str, overrides: list[str] | tuple[str, ...] = ()
) -> "tuple[Store, Recipe]":
    """The run directory and its recipe."""
    from bezoar_ray.recipe import recipe_of
    from bezoar_ray.store import Store

    store = Store(folder)
    return store, recipe_of(store, overrides)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bezoar",
        description="Make a small, aligned language model from a permissive teacher: "
        "generate, filter, train, evaluate, report.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _command(
        commands, "run", _run, "carry out a recipe; what is done already is skipped"
    )
    _add_recipe(command)
    command.add_argument(
        "--run-dir",
        metavar="DIR",
        help="where everything goes (default: runs/<recipe>[-pilot])",
    )
    _add_stages(command)

    command = _command(
        commands,
        "plan",
        _plan,
        "calls, tokens, dollars and GPU hours of a recipe; runs nothing",
    )
    _add_recipe(command)
    command.add_argument(
        "--from",
        dest="measured",
        metavar="DIR",
        help="estimate from what the run (a pilot) in DIR measured",
    )
    cards = command.add_mutually_exclusive_group()
    cards.add_argument(
        "--gpu",
        metavar="GPU",
        help=f"the kind whose memory and hours are planned, in place of the recipe's: {', '.join(GPUS)}",
    )
    cards.add_argument(
        "--cluster",
        metavar="GPU[=USD]",
        help="hours and dollars on 1, 8 and 64 GPUs of a kind; A100=1.1 at your price an hour",
    )
    command.add_argument(
        "--check",
        action="store_true",
        help="try what a run would fail on: rows, templates, tasks, questions, the hub",
    )
    command.add_argument(
        "--offline",
        action="store_true",
        help="with --check: leave out, and name, what needs the hub",
    )

    command = _command(
        commands, "submit", _submit, "carry out a recipe as a job on a Ray cluster"
    )
    _add_recipe(command)
    command.add_argument(
        "--address",
        required=True,
        metavar="URL",
        help="the cluster's dashboard: http://head:8265",
    )
    command.add_argument(
        "--run-dir",
        required=True,
        metavar="DIR",
        help="s3://…, gs://…, or the whole path of a folder that all nodes see",
    )
    _add_stages(command)
    command.add_argument(
        "--requirements",
        metavar="FILE",
        help="pinned packages for nodes whose image has no bezoar_ray",
    )
    command.add_argument(
        "--follow",
        action="store_true",
        help="print its lines until it ends; Ctrl-C lets it go on",
    )
    command = _command(commands, "status", _status, "how far a run is")
    _add_dir(command)
    command.add_argument(
        "--address", metavar="URL", help="of the cluster whose job works on it"
    )
    command.add_argument(
        "--follow", action="store_true", help="print that job's lines until it ends"
    )
    command = _command(commands, "report", _report, "write a run's report again")
    _add_dir(command)
    command = _command(
        commands,
        "compare",
        _compare,
        "runs side by side: what differs in their recipes, what came of it",
    )
    command.add_argument("dir", metavar="DIR", nargs="+", help="run directories")
    command.add_argument(
        "--page",
        default="compare.html",
        metavar="FILE",
        help="where the page goes (default: %(default)s)",
    )
    command = _command(
        commands,
        "serve",
        _serve,
        "host a run's checkpoints behind one OpenAI-compatible endpoint, until Ctrl-C: "
        "http://127.0.0.1:8000/v1, with a model for each checkpoint that the run has "
        f"({', '.join(checkpoint_names())}). With BEZOAR_API_KEY set, clients must show that key.",
    )
    _add_dir(command)
    command.add_argument(
        "--set",
        action="append",
        default=[],
        type=_of_serve,
        metavar="serve.KEY=VALUE",
        help="override how it is served: serve.port=8001, serve.num_gpus=0",
    )
    command = _command(
        commands,
        "sweep",
        _sweep,
        "train a grid of recipes, up to align, that share all stages which no parameter touches",
    )
    _add_recipe(command)
    command.add_argument(
        "--param",
        action="append",
        required=True,
        metavar="KEY.PATH=A,B",
        help="values to try; several make a grid",
    )
    command.add_argument(
        "--run-dir",
        metavar="DIR",
        help="where everything goes (default: runs/<recipe>-sweep)",
    )
    command = _command(
        commands,
        "push",
        _push,
        "upload a run's checkpoints, adapters and rows with their cards to a hub",
    )
    _add_dir(command)
    command.add_argument(
        "owner",
        metavar="OWNER",
        help="user or organisation; repositories are OWNER/<recipe>-<part>",
    )
    command.add_argument(
        "--only",
        nargs="+",
        metavar="PART",
        help=f"of {', '.join(checkpoint_names()[1:])} and dataset (default: all)",
    )
    command.add_argument(
        "--private", action="store_true", help="create the repositories as private ones"
    )
    command.add_argument(
        "--dry-run", action="store_true", help="say what would be uploaded, and stop"
    )
    command = _command(
        commands, "tiny", _tiny, "build the embedded world that `run tiny` uses"
    )
    command.add_argument(
        "action", choices=["build"], help="make it now, into the cache"
    )
    command = _command(
        commands,
        "doctor",
        _doctor,
        "check this machine, and list what each recipe is missing",
    )
    command.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs="*",
        help="names or YAML files (default: all packaged ones)",
    )
    return parser


def _command(
    commands: "_SubParsersAction[argparse.ArgumentParser]",
    name: str,
    call: Callable[[argparse.Namespace], None],
    text: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    command.set_defaults(call=call)
    return command


def _add_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "dir", metavar="DIR", help="the run directory: a folder, s3://… or gs://…"
    )


def _add_stages(command: argparse.ArgumentParser) -> None:
    either = command.add_mutually_exclusive_group()
    either.add_argument(
        "--stages", metavar="A,B", help=f"only these of {','.join(STAGES)}"
    )
    either.add_argument(
        "--pilot",
        type=_positive,
        metavar="N",
        help="N seeds per scheme (of LaMini, N calls), generate and filter only; shows the samples",
    )


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a packaged name (tiny, openbezoar-3b, modern) or the path of a YAML file",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        help="override a recipe value (YAML); may be repeated",
    )


if __name__ == "__main__":
    sys.exit(main())
