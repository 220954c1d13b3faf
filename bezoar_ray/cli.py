"""The command `bezoar`: parse the arguments, call one function, print the result."""

import argparse
import getpass
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.runtime.gpus import GPUS, find_gpu
from bezoar_ray.stages import (
    STAGES,
    checkpoint_names,
    trained_checkpoint_names,
    working_stages,
)

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from bezoar_ray.recipe import Recipe
    from bezoar_ray.runs.submit import Jobs
    from bezoar_ray.store import Store

    Commands = _SubParsersAction[argparse.ArgumentParser]

_EPILOG = """\
examples:
  bezoar run tiny                            the whole recipe on this laptop
  bezoar plan openbezoar-3b                  calls, cost and time of the paper's recipe
  bezoar run openbezoar-3b --pilot 20        20 seeds per scheme, to read the samples
  bezoar plan openbezoar-3b --from runs/openbezoar-3b-pilot

`bezoar COMMAND --help` shows the options and examples of a command.

exit codes:
  0    done
  2    bad recipe or arguments, or the run directory is in use
  3    a stage failed; the results of finished stages are kept
  4    the budget is reached
  5    people have to review rows before training
  130  interrupted
Run the same command again to resume.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command `bezoar`, and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.call(options)
        # Here, where a broken pipe is still caught.
        sys.stdout.flush()
    except BezoarError as error:
        print(f"bezoar: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has ended
        # Python flushes once more when it ends, and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(
            "bezoar: interrupted; run the same command again to resume", file=sys.stderr
        )
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    # As in all commands, imported when it is called: --help answers in about a second.
    from bezoar_ray.report.preview import show
    from bezoar_ray.runs.orchestrator import parse_stages, pilot, run
    from bezoar_ray.runtime.progress import Progress
    from bezoar_ray.store import Store

    recipe = _recipe(options)
    stages = parse_stages(options.stages)
    folder = recipe.name
    if options.pilot:
        recipe = pilot(recipe, options.pilot)
        stages = ["generate", "filter", "report"]
        # Its own folder, since fewer seeds would redo the run's generation.
        folder += "-pilot"
    store = Store(options.run_dir or Path("runs") / folder)
    run(recipe, store, stages, Progress(run=store.name))
    if options.pilot:
        print(show(store, recipe.schemes))
    print(f"\n{store.root}/summary.json")
    if "report" in stages:
        print(f"{store.root}/report.html")


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

    findings = check(recipe, working_stages(), offline)
    print("\nTried: the first rows of each source, templates, tasks and questions.")
    for note in findings.notes:
        print(f"- note: {note}")
    for item in findings.unchecked:
        print(f"- not tried: {item}")
    if findings.problems:
        raise RecipeError("\n".join(findings.problems))


def _submit(options: argparse.Namespace) -> None:
    from bezoar_ray.runs.submit import Jobs

    arguments = []
    if options.stages:
        arguments += ["--stages", options.stages]
    if options.pilot:
        arguments += ["--pilot", str(options.pilot)]
    jobs = Jobs(options.address)
    job = jobs.submit(
        _recipe(options), options.run_dir, arguments, options.requirements
    )
    state = "already runs for this directory" if job.found else "submitted"
    print(f"{job.id}: {state}")
    print(
        f"to attach: bezoar status {options.run_dir} --address {options.address} "
        "--follow"
    )
    if options.follow:
        _follow(jobs, job.id)


def _follow(jobs: "Jobs", id: str) -> None:
    try:
        jobs.follow(id)
    except KeyboardInterrupt:
        print(f"\n{id} keeps running; `ray job stop {id}` stops it")


def _status(options: argparse.Namespace) -> None:
    from bezoar_ray.runs.status import render
    from bezoar_ray.store import Store

    if options.follow and not options.address:
        raise RecipeError(
            "--follow needs --address, the dashboard URL of the cluster that runs the job"
        )
    if not options.address:
        return print(render(Store(options.dir)))
    from bezoar_ray.runs.submit import Jobs

    jobs = Jobs(options.address)
    job = jobs.last(options.dir)
    if job:
        print(f"{job.id}: {job.status.lower()}")
    else:
        print(f"no job has used {options.dir}")
    if "://" in options.dir or Path(options.dir).is_dir():
        try:
            print(render(Store(options.dir)))
        except BezoarError as error:
            # The run has not begun, or this machine has no key of the bucket.
            print(error)
    if job and options.follow:
        _follow(jobs, job.id)


def _report(options: argparse.Namespace) -> None:
    from bezoar_ray.runs.orchestrator import report_again
    from bezoar_ray.runtime.progress import Progress

    store, recipe = _existing(options.dir)
    report_again(recipe, store, Progress())
    print(f"{store.root}/report.html")


def _review(options: argparse.Namespace) -> None:
    from bezoar_ray.review.queue import ReviewQueue
    from bezoar_ray.review.votes import VoteQueue
    from bezoar_ray.review.web import pair_app, row_app, serve_page

    store, recipe = _existing(options.dir)
    if options.approve is not None:
        return _approve(store, recipe, options.approve)
    if options.export_file or options.import_file:
        return _exchange(store, recipe, options)
    reviewer = options.reviewer or getpass.getuser()
    if options.pairs:
        votes = VoteQueue(store, tuple(options.pairs), recipe.seed)
        return serve_page(lambda token: pair_app(votes, reviewer, token), options.port)
    queue = ReviewQueue(store, recipe, options.rows)
    serve_page(lambda token: row_app(queue, reviewer, token), options.port)


def _exchange(store: "Store", recipe: "Recipe", options: argparse.Namespace) -> None:
    from bezoar_ray.review.exchange import export_decisions, import_decisions

    if options.export_file:
        entries = export_decisions(
            store, recipe, options.export_file, options.format, options.rows
        )
        noun = "decisions" if options.format == "jsonl" else "rows"
        return print(f"{options.export_file}: {entries} {noun}")
    added, unknown = import_decisions(
        store, recipe, options.import_file, options.format
    )
    print(f"{added} decisions added to {store.root}")
    if unknown:
        print(f"{unknown} decisions left out: the run has no such rows")


def _approve(store: "Store", recipe: "Recipe", name: str) -> None:
    from bezoar_ray.review.approval import approve
    from bezoar_ray.runs.manifest import fingerprint

    approval = approve(store, recipe, name, fingerprint(recipe, "filter", store))
    print(
        f"{approval.name} approved the rows of {store.root} "
        f"(filter {approval.fingerprint}, {approval.decided} rows decided on)"
    )


def _compare(options: argparse.Namespace) -> None:
    from bezoar_ray.report.compare import as_page, as_text, compare
    from bezoar_ray.store import Store

    runs = []
    for folder in options.dir:
        store, recipe = _existing(folder)
        runs.append((Path(folder).name, recipe, store))
    comparison = compare(runs)
    print(as_text(comparison))
    page = Path(options.page)
    Store(page.parent).replace(page.name, as_page(comparison))
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
    grid = trials(options.recipe, options.set, options.param, store)
    try:
        sweep(grid, store, Progress())
    finally:
        # Also after a trial has failed, as the others have results.
        print(report(grid, store))


def _push(options: argparse.Namespace) -> None:
    from bezoar_ray.report.hub import push, uploads

    store, recipe = _existing(options.dir)
    planned = uploads(recipe, store, options.owner, options.only)
    for upload in planned:
        print(upload)
    if not options.dry_run:
        push(planned, options.private)


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
        raise argparse.ArgumentTypeError(f"{text}: expected a number of at least 1")
    return number


def _serve_setting(text: str) -> str:
    if not text.startswith("serve."):
        raise argparse.ArgumentTypeError(
            f"{text}: expected serve.KEY=VALUE. All other fields are those of the run"
        )
    return text


def _recipe(options: argparse.Namespace) -> "Recipe":
    from bezoar_ray.recipe import load_recipe

    return load_recipe(options.recipe, options.set)


def _existing(
    folder: str, overrides: list[str] | tuple[str, ...] = ()
) -> "tuple[Store, Recipe]":
    """Open a run directory, and read its recipe."""
    from bezoar_ray.recipe import recipe_of
    from bezoar_ray.store import Store

    store = Store(folder)
    return store, recipe_of(store, overrides)


# The parser. The order of `add_argument` calls is the order in --help.


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bezoar",
        description="Make a small, aligned language model from a permissive teacher: "
        "generate, filter, train, evaluate, report.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    _add_plan(commands)
    _add_submit(commands)
    _add_status(commands)
    _add_report(commands)
    _add_review(commands)
    _add_compare(commands)
    _add_serve(commands)
    _add_sweep(commands)
    _add_push(commands)
    _add_tiny(commands)
    _add_doctor(commands)
    return parser


def _add_run(commands: "Commands") -> None:
    command = _command(
        commands,
        "run",
        _run,
        "carry out a recipe, and skip the stages that are done",
        examples="""\
  bezoar run tiny
  bezoar run openbezoar-3b --pilot 20
  bezoar run mine.yaml --set align.beta=0.2 --stages align,evaluate,report""",
    )
    _add_recipe(command)
    command.add_argument(
        "--run-dir",
        metavar="DIR",
        help="where all results go: a folder, s3://… or gs://… "
        "(default: runs/<recipe>, or runs/<recipe>-pilot)",
    )
    _add_stages(command)


def _add_plan(commands: "Commands") -> None:
    command = _command(
        commands,
        "plan",
        _plan,
        "estimate the calls, tokens, dollars and GPU hours of a recipe, and run nothing",
        examples="""\
  bezoar plan openbezoar-3b --check
  bezoar plan openbezoar-3b --from runs/openbezoar-3b-pilot
  bezoar plan modern --cluster A100=1.1""",
    )
    _add_recipe(command)
    command.add_argument(
        "--from",
        dest="measured",
        metavar="DIR",
        help="estimate from the measured tokens of the run in DIR, such as a pilot",
    )
    gpus = command.add_mutually_exclusive_group()
    gpus.add_argument(
        "--gpu",
        metavar="GPU",
        help="plan memory and hours for this kind of GPU instead of the recipe's: "
        f"{', '.join(GPUS)}",
    )
    gpus.add_argument(
        "--cluster",
        metavar="GPU[=USD]",
        help="print hours and dollars on 1, 8 and 64 GPUs of a kind; "
        "A100=1.1 sets your price per GPU hour",
    )
    command.add_argument(
        "--check",
        action="store_true",
        help="also try the inputs that can make a run fail: rows, templates, tasks, "
        "questions, the hub",
    )
    command.add_argument(
        "--offline",
        action="store_true",
        help="with --check: skip what needs the hub, and list it as not tried",
    )


def _add_submit(commands: "Commands") -> None:
    command = _command(
        commands,
        "submit",
        _submit,
        "carry out a recipe as a job on a Ray cluster, or attach to its running job",
        examples="""\
  bezoar submit modern --address http://127.0.0.1:8265 \\
      --run-dir s3://bucket/runs/modern --follow""",
    )
    _add_recipe(command)
    command.add_argument(
        "--address",
        required=True,
        metavar="URL",
        help="the URL of the cluster's dashboard, such as http://head:8265",
    )
    command.add_argument(
        "--run-dir",
        required=True,
        metavar="DIR",
        help="where all results go: s3://…, gs://…, or the absolute path of a folder "
        "that all nodes see",
    )
    _add_stages(command)
    command.add_argument(
        "--requirements",
        metavar="FILE",
        help="install these pinned packages on the nodes; for images without bezoar_ray",
    )
    command.add_argument(
        "--follow",
        action="store_true",
        help="print the output of the job until it ends; Ctrl-C does not stop the job",
    )


def _add_status(commands: "Commands") -> None:
    command = _command(
        commands,
        "status",
        _status,
        "show the state of a run: stages, rows, calls and dollars",
        examples="""\
  bezoar status runs/tiny
  bezoar status s3://bucket/runs/modern --address http://127.0.0.1:8265 --follow""",
    )
    _add_dir(command)
    command.add_argument(
        "--address",
        metavar="URL",
        help="also show the job of this run on the cluster with this dashboard URL",
    )
    command.add_argument(
        "--follow",
        action="store_true",
        help="print the output of the job until it ends; needs --address",
    )


def _add_report(commands: "Commands") -> None:
    command = _command(
        commands,
        "report",
        _report,
        "write the report and the cards of a run again",
        examples="  bezoar report runs/tiny",
    )
    _add_dir(command)


def _add_review(commands: "Commands") -> None:
    command = _command(
        commands,
        "review",
        _review,
        "read rows of a run in a browser, and compare yourself with the judge",
        details="The page runs on this machine only, at the address that is printed. "
        "Keys: a accept, r reject, e edit, s skip, u undo. The judge's verdict is shown "
        "after you have decided. Each decision is saved at once, so you can stop at any "
        "time. `bezoar report` then shows how far the judge agrees with people. With "
        "`filter.decisions: review` in the recipe, your decisions override it.",
        examples="""\
  bezoar review runs/tiny
  bezoar review runs/tiny --rows 200 --reviewer ada
  bezoar review s3://bucket/runs/modern --port 8400
  bezoar run tiny --set filter.decisions=review
  bezoar review runs/tiny --pairs sft dpo
  bezoar review runs/tiny --approve ada
  bezoar review runs/tiny --export decisions.jsonl
  bezoar review runs/tiny --import tasks.json --format label-studio""",
    )
    _add_dir(command)
    command.add_argument(
        "--rows",
        type=_positive,
        default=100,
        metavar="N",
        help="how many rows to show, of every scheme and every reason of a rejection "
        "(default: %(default)s)",
    )
    command.add_argument(
        "--reviewer",
        metavar="NAME",
        help="your name in the decisions (default: your login name); reviewers see the "
        "same rows, so that they can be compared",
    )
    command.add_argument(
        "--port",
        type=int,
        default=0,
        metavar="N",
        help="port of the page (default: a free one)",
    )
    modes = command.add_mutually_exclusive_group()
    modes.add_argument(
        "--pairs",
        nargs=2,
        metavar="MODEL",
        help="compare the answers of two checkpoints to MT-Bench's questions instead, "
        "without their names: left or right arrow for the better one, g both are good, "
        "b both are bad",
    )
    modes.add_argument(
        "--approve",
        metavar="NAME",
        help="open no page: record that the person NAME approves the rows that the "
        "filter has left, for recipes with `review.approve`",
    )
    modes.add_argument(
        "--export",
        dest="export_file",
        metavar="FILE",
        help="open no page: write the decisions to FILE or, with --format, rows for "
        "another tool",
    )
    modes.add_argument(
        "--import",
        dest="import_file",
        metavar="FILE",
        help="open no page: add the decisions in FILE; those that are here already are "
        "not added again",
    )
    command.add_argument(
        "--format",
        choices=("jsonl", "label-studio", "argilla"),
        default="jsonl",
        help="format of the file: our own lines, or JSON of Label Studio or Argilla "
        "(default: %(default)s)",
    )


def _add_compare(commands: "Commands") -> None:
    command = _command(
        commands,
        "compare",
        _compare,
        "show the recipes and the results of several runs side by side",
        examples="  bezoar compare runs/tiny runs/modern --page compare.html",
    )
    command.add_argument(
        "dir", metavar="DIR", nargs="+", help="run directories to compare"
    )
    command.add_argument(
        "--page",
        default="compare.html",
        metavar="FILE",
        help="where the page is written (default: %(default)s)",
    )


def _add_serve(commands: "Commands") -> None:
    command = _command(
        commands,
        "serve",
        _serve,
        "serve the checkpoints of a run behind one OpenAI-compatible endpoint",
        details="The endpoint is http://127.0.0.1:8000/v1 until Ctrl-C. It has a model "
        f"for each checkpoint of the run ({', '.join(checkpoint_names())}). If "
        "BEZOAR_API_KEY is set, clients must send that key.",
        examples="""\
  bezoar serve runs/tiny
  bezoar serve runs/tiny --set serve.port=8001""",
    )
    _add_dir(command)
    command.add_argument(
        "--set",
        action="append",
        default=[],
        type=_serve_setting,
        metavar="serve.KEY=VALUE",
        help="override a setting of serving, such as serve.num_gpus=0; can be repeated",
    )


def _add_sweep(commands: "Commands") -> None:
    command = _command(
        commands,
        "sweep",
        _sweep,
        "train a grid of recipes up to align, and rank them",
        details="Stages that no parameter changes run once, for all recipes.",
        examples="""\
  bezoar sweep tiny --param align.beta=0.1,0.5
  bezoar sweep tiny --param align.beta=0.1,0.5 --param align.learning_rate=1e-4,1e-5""",
    )
    _add_recipe(command)
    command.add_argument(
        "--param",
        action="append",
        required=True,
        metavar="KEY.PATH=A,B",
        help="a field and the values to try; repeat it for a grid",
    )
    command.add_argument(
        "--run-dir",
        metavar="DIR",
        help="where all results go (default: runs/<recipe>-sweep)",
    )


def _add_push(commands: "Commands") -> None:
    command = _command(
        commands,
        "push",
        _push,
        "upload checkpoints, adapters and rows of a run, with their cards, to a hub",
        examples="""\
  bezoar push runs/modern my-org --dry-run
  bezoar push runs/modern my-org --only dpo dataset --private""",
    )
    _add_dir(command)
    command.add_argument(
        "owner",
        metavar="OWNER",
        help="user or organization; the repositories are OWNER/<recipe>-<part>",
    )
    command.add_argument(
        "--only",
        nargs="+",
        metavar="PART",
        help="upload these parts only: "
        f"{', '.join(trained_checkpoint_names())}, dataset (default: all)",
    )
    command.add_argument(
        "--private", action="store_true", help="create the repositories as private"
    )
    command.add_argument(
        "--dry-run", action="store_true", help="list the uploads, and upload nothing"
    )


def _add_tiny(commands: "Commands") -> None:
    command = _command(
        commands,
        "tiny",
        _tiny,
        "build the embedded models and data that `bezoar run tiny` uses",
        examples="  bezoar tiny build",
    )
    command.add_argument(
        "action", choices=["build"], help="build them now, in the cache"
    )


def _add_doctor(commands: "Commands") -> None:
    command = _command(
        commands,
        "doctor",
        _doctor,
        "check this machine, and list what each recipe is missing",
        examples="""\
  bezoar doctor
  bezoar doctor modern mine.yaml""",
    )
    command.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs="*",
        help="names or YAML files of recipes, whose inputs are tried, too "
        "(default: all packaged recipes, without a try)",
    )


def _command(
    commands: "Commands",
    name: str,
    call: Callable[[argparse.Namespace], None],
    summary: str,
    *,
    examples: str,
    details: str = "",
) -> argparse.ArgumentParser:
    """Add a command; `--help` shows its summary, details and examples."""
    sentence = f"{summary[0].upper()}{summary[1:]}."
    command = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(f"{sentence} {details}".strip(), width=80),
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(call=call)
    return command


def _add_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "dir", metavar="DIR", help="the run directory: a folder, s3://… or gs://…"
    )


def _add_stages(command: argparse.ArgumentParser) -> None:
    selection = command.add_mutually_exclusive_group()
    selection.add_argument(
        "--stages",
        metavar="A,B",
        help=f"carry out these stages only, out of {','.join(STAGES)}",
    )
    selection.add_argument(
        "--pilot",
        type=_positive,
        metavar="N",
        help="generate and filter with N seeds per scheme (with N calls for LaMini), "
        "and print samples",
    )


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "recipe",
        metavar="RECIPE",
        help="the name of a packaged recipe, such as tiny, openbezoar-3b or modern, or "
        "the path of a YAML file",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        help="override a field of the recipe with a YAML value; can be repeated",
    )


if __name__ == "__main__":
    sys.exit(main())
