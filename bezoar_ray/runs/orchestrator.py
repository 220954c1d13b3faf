"""The orchestrator: carry out the stages of a recipe in a run directory.

`run` checks everything that can be checked without work, locks the run directory,
and hands over to `Run`. A stage that is done with this recipe is skipped. The
manifest of a stage is written last, and summary.json after every change of state.
"""

import contextlib
import importlib
import logging
import time
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from bezoar_ray import layout, tiny
from bezoar_ray.errors import BezoarError, BudgetReached, RecipeError, ReviewNeeded
from bezoar_ray.llm.ledger import SESSION
from bezoar_ray.recipe import ModelSection, Recipe
from bezoar_ray.review.approval import check_review
from bezoar_ray.runs.manifest import (
    StageManifest,
    fingerprint,
    forget,
    is_done,
    save,
)
from bezoar_ray.runs.revisions import pinned
from bezoar_ray.runs.summary import RunSummary, headline
from bezoar_ray.runtime.capacity import check_stages
from bezoar_ray.runtime.logs import event, keep_events, stderr_to
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.runtime.session import (
    check_shared,
    own_address,
    ray_session,
    stop_on_sigterm,
)
from bezoar_ray.stages import (
    STAGES,
    TOGETHER,
    StageContext,
    StageResult,
    Truth,
    current_names,
    training_stages,
)
from bezoar_ray.store import Store

_LOG = "driver.log"
# They ask a judge, or whether a response is right.
_JUDGING_STAGES = ("filter", "align", "evaluate")


def run(
    recipe: Recipe, store: Store, stages: list[str], progress: Progress
) -> dict[str, Any]:
    """Carry out stages of a recipe in a run directory; skip those that are done.

    Args:
        stages: Names of stages, in the order of `STAGES`.

    Returns:
        The contents of summary.json.

    Raises:
        BezoarError: A stage failed. The report is written nevertheless.
    """
    stages = _existing_stages(recipe, stages)
    _check_requirements(recipe, store, stages)
    with store.lock():
        # Under the lock, since it writes the commits that later commands use.
        recipe = pinned(recipe, store, progress.say)
        _check_earlier_stages(recipe, store, stages)
        unfinished = [stage for stage in stages if not _is_done(recipe, store, stage)]
        _run_preflight(recipe, unfinished, progress)
        return Run(recipe, store, progress).execute(stages)


def report_again(recipe: Recipe, store: Store, progress: Progress) -> None:
    """Write the report and the cards of a run again; leave summary.json as it is."""
    with store.lock():
        progress.start("report")
        result = _run_stage("report", StageContext(recipe, store, "", progress))
        progress.finish("done")
        report_manifest = StageManifest(
            fingerprint(recipe, "report", store), 0.0, result.files, result.summary
        )
        save(store, "report", report_manifest)


class Run:
    """The work of one command in a run directory."""

    def __init__(self, recipe: Recipe, store: Store, progress: Progress):
        self._recipe = recipe
        self._store = store
        self._progress = progress
        # Time first: the ledger's segments sort by it, and of equal
        # calls the last counts.
        self._session = f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}"
        self._summary = RunSummary(recipe, store, self._session)
        self._has_changed_files = False

    def execute(self, stages: list[str]) -> dict[str, Any]:
        """Carry out the stages in order, and return the contents of summary.json."""
        # From now on, processes that an earlier command left behind write nothing more.
        self._store.replace(SESSION, self._session.encode())
        with contextlib.ExitStack() as cleanup:
            cleanup.enter_context(stderr_to(self._store.log(_LOG)))
            keep_events(self._store, session=self._session)
            stop_on_sigterm()
            services = Services(self._recipe, self._store, stages, cleanup)
            try:
                for group in self._unfinished_groups(stages):
                    self._run_group(group, services)
                # Also where all stages are done: fields that change no
                # result may have changed.
                self._save_recipe()
            except KeyboardInterrupt:
                if self._may_write_summary():
                    self._summary.write("interrupted")
                raise
            except Exception as error:
                failure = self._as_bezoar_error(error)
                if self._may_write_summary():
                    self._report_failure(failure, services)
                raise failure from error
        return self._summary.write("done")

    def _unfinished_groups(self, stages: list[str]) -> Iterator[list[str]]:
        """Yield the stages that are not done, grouped if they share a Ray Data graph.

        Whether a stage is done is looked up when its turn comes: an earlier stage that
        was redone has removed its results.
        """
        remaining = list(stages)
        while remaining:
            group = [remaining.pop(0)]
            if _is_done(self._recipe, self._store, group[0]):
                self._progress.start(group[0])
                self._progress.finish("already done")
                continue
            while remaining and (group[-1], remaining[0]) in TOGETHER:
                group.append(remaining.pop(0))
            self._progress.start(group[0])
            yield group

    def _run_group(self, names: list[str], services: "Services") -> None:
        """Carry out one stage, or several that share one Ray Data graph."""
        if names[0] in training_stages():
            check_review(self._store, self._recipe)
        # Services come first: if one does not start, all earlier results are kept.
        recipes = [services.recipe_for(name) for name in names]
        context = self._context(recipes[-1], services)
        self._save_recipe()
        forget(self._store, names[0])
        # Taken once: a file that the recipe names may change while the stage runs.
        fingerprints = {
            name: fingerprint(self._recipe, name, self._store) for name in names
        }
        self._summary.start_stages(fingerprints)
        self._summary.write("running")
        event("stage begins", stage="+".join(names))
        started = time.monotonic()
        try:
            for name, result in _stage_results(names, context):
                seconds = round(time.monotonic() - started, 1)
                started = time.monotonic()
                self._finish_stage(name, fingerprints[name], seconds, result)
                if name != names[-1]:
                    self._progress.start(names[names.index(name) + 1])
        except BaseException as error:
            # Ctrl-C is no Exception, and the summary has to show it as well.
            seconds = round(time.monotonic() - started, 1)
            self._stop_stages(names, seconds, error)
            raise

    def _finish_stage(
        self, name: str, fingerprint: str, seconds: float, result: StageResult
    ) -> None:
        stage_manifest = StageManifest(
            fingerprint, seconds, result.files, result.summary
        )
        save(self._store, name, stage_manifest)
        self._summary.finish_stage(name, seconds)
        self._summary.write("running")
        event("stage done", stage=name, seconds=seconds)
        self._progress.finish(headline(result))

    def _stop_stages(
        self, names: list[str], seconds: float, error: BaseException
    ) -> None:
        """Record that a group of stages failed or was interrupted."""
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        event(f"stage {status}", logging.ERROR, stage="+".join(names), why=str(error))
        # A stage may attach the results that it has to its error.
        result = getattr(error, "outcome", StageResult([]))
        self._summary.stop_stages(names, status, seconds, result.summary)

    def _report_failure(self, failure: BezoarError, services: "Services") -> None:
        """Write the summary and, if possible, the report of a run that failed."""
        self._summary.set_error(str(failure))
        # Before the report, which shows status and error from it.
        self._summary.write(_status_of(failure))
        self._progress.start("report")
        try:
            recipe = services.recipe_for("report")
            _run_stage("report", self._context(recipe, services))
        except Exception as error:
            # Only logged: the user needs to see the first error.
            self._log_traceback(error)

    def _as_bezoar_error(self, error: Exception) -> BezoarError:
        """Put an unexpected error on one line, and its traceback into the log."""
        if isinstance(error, BezoarError):
            return error
        log_path = self._log_traceback(error)
        lines = str(error).strip().splitlines()
        last_line = lines[-1] if lines else ""
        return BezoarError(
            f"{type(error).__name__}: {last_line}. The traceback is in {log_path}"
        )

    def _log_traceback(self, error: Exception) -> str:
        log_path = str(self._store.log(_LOG))
        with open(log_path, "a") as log:
            traceback.print_exception(error, file=log)
        return log_path

    def _save_recipe(self) -> None:
        self._has_changed_files = True
        tree = self._recipe.model_dump(mode="json")
        self._store.replace(layout.RECIPE, yaml.safe_dump(tree, sort_keys=False))

    def _may_write_summary(self) -> bool:
        """Whether this command may write the summary after a failure.

        A command that changed nothing keeps the summary of the finished run before it.
        """
        return self._has_changed_files or not self._store.exists(layout.SUMMARY)

    def _context(self, recipe: Recipe, services: "Services") -> StageContext:
        return StageContext(
            recipe,
            self._store,
            self._session,
            self._progress,
            truth=services.truth,
        )


class Services:
    """The Ray session and the embedded judge, each started when first needed.

    A run whose stages are all done starts neither.
    """

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        stages: list[str],
        stack: contextlib.ExitStack,
    ):
        self._recipe = recipe
        self._store = store
        self._stages = stages
        self._stack = stack
        self._has_ray = False
        self._has_judge = False
        self.truth: Truth | None = None

    def recipe_for(self, stage: str) -> Recipe:
        """Start what a stage needs; return the recipe with the addresses of it."""
        if stage != "report" and not self._has_ray:
            self._has_ray = True
            self._stack.enter_context(ray_session())
            check_shared(self._store)
            # The stages before this one are done, and need no capacity.
            check_stages(self._recipe, self._stages[self._stages.index(stage) :])
        if stage in _JUDGING_STAGES and not self._has_judge:
            self._has_judge = True
            resolving = tiny.resolve(self._recipe, own_address())
            resolved = self._stack.enter_context(resolving)
            # Only here: the recipe that is saved keeps the world's names, not an
            # address that ends with this command.
            self._recipe = resolved.recipe
            self.truth = resolved.truth
        return self._recipe


def _status_of(failure: BezoarError) -> str:
    """Return the status of a run in summary.json, by the error that ended it."""
    if isinstance(failure, BudgetReached):
        return "budget"
    if isinstance(failure, ReviewNeeded):
        return "review"
    return "failed"


def _stage_results(
    names: list[str], context: StageContext
) -> Iterator[tuple[str, StageResult]]:
    """Run a group of stages; yield each name and result as soon as it is complete."""
    if len(names) == 1:
        yield names[0], _run_stage(names[0], context)
    else:
        module = importlib.import_module(TOGETHER[names[0], names[1]])
        yield from module.run(context)


def _run_stage(stage: str, context: StageContext) -> StageResult:
    module = importlib.import_module(STAGES[stage].module)
    return module.run(replace(context, stage=stage))


# Checks before any work.


def _existing_stages(recipe: Recipe, stages: list[str]) -> list[str]:
    """Return the requested stages that the recipe has.

    Raises:
        RecipeError: A stage was requested by name, and the recipe lacks its section.
    """
    if stages == list(STAGES):
        return list(recipe.stages)
    for stage in stages:
        if stage not in recipe.stages:
            section = STAGES[stage].section
            raise RecipeError(
                f"--stages: the recipe has no stage {stage!r}, because its section "
                f"`{section}` is null. Add the section"
            )
    return stages


def _check_requirements(recipe: Recipe, store: Store, stages: list[str]) -> None:
    """Report a missing key, price, endpoint or file before any work starts."""
    from bezoar_ray.llm.endpoint import api_key
    from bezoar_ray.runs.doctor import missing_files, models

    for stage, model in models(recipe):
        if stage in stages:
            api_key(model)
            _check_price(recipe, stage, model)
    if "evaluate" in stages and recipe.evaluate.mt_bench:
        local = [
            judge
            for judge in recipe.mt_bench_judges
            if not (judge.base_url or tiny.is_embedded_judge(judge))
        ]
        if local:
            raise RecipeError(
                f"evaluate.mt_bench.judge: {local[0].model!r} needs a `base_url`, "
                "because judges of MT-Bench are called through an endpoint. "
                "For a local model, start one with `vllm serve`"
            )
    for stage, message in missing_files(recipe):
        if stage in stages:
            raise RecipeError(message)
    _check_reward_judges(recipe, store)


def _check_reward_judges(recipe: Recipe, store: Store) -> None:
    """Check that no judge is trained on the rows that it rates.

    With such a judge, the filter would be redone after each training, and the training
    after each filter.
    """
    run_directory = Path(store.root).resolve()
    for index, judge in enumerate(recipe.judges):
        if judge.reward and run_directory in Path(judge.reward).resolve().parents:
            raise RecipeError(
                f"judges.{index}.reward: {judge.reward!r} is in this run directory, "
                "and is trained on the rows that it would rate. Copy the run "
                "directory, and run the copy with --run-dir"
            )


def _check_price(recipe: Recipe, stage: str, model: ModelSection) -> None:
    budgets = {
        "budget_usd": recipe.budget_usd,
        f"{stage}.budget_usd": getattr(recipe, stage).budget_usd,
    }
    limited = [field for field, dollars in budgets.items() if dollars is not None]
    if limited and model.base_url and not model.prices:
        raise RecipeError(
            f"{limited[0]} is set, but {model.model!r} has no `prices`, so its cost "
            "is unknown. Set the dollars per million tokens as "
            "prices: {input: …, output: …}. Use zeros for an endpoint of your own"
        )


def _check_earlier_stages(recipe: Recipe, store: Store, stages: list[str]) -> None:
    """Check that the stages that each requested one uses are requested, too, or done."""
    for stage in stages:
        # A report is made of whatever there is.
        if stage == "report":
            continue
        missing = []
        for before in recipe.stages_before(stage):
            if before not in recipe.stages or before in stages:
                continue
            if not _is_done(recipe, store, before):
                missing.append(before)
        if missing:
            raise RecipeError(
                f"--stages: {stage} needs the results of {', '.join(missing)}, and "
                f"{store.root} has none made with this recipe. "
                f"Add what is missing: --stages {','.join([*missing, stage])}"
            )


def _run_preflight(recipe: Recipe, stages: list[str], progress: Progress) -> None:
    """Try the inputs of the stages before any call is paid for.

    Raises:
        RecipeError: A stage would fail.
    """
    from bezoar_ray.runs.preflight import check

    findings = check(recipe, stages)
    for note in findings.notes:
        progress.say(f"note: {note}")
    if findings.problems:
        raise RecipeError("\n".join(findings.problems))


def _is_done(recipe: Recipe, store: Store, stage: str) -> bool:
    return is_done(store, stage, fingerprint(recipe, stage, store))


# Options of `bezoar run`.


def parse_stages(text: str | None) -> list[str]:
    """Return the stages of `--stages a,b` in the order of `STAGES`; without it, all."""
    if not text:
        return list(STAGES)
    requested = current_names(name.strip() for name in text.split(","))
    for name in requested:
        if name not in STAGES:
            raise RecipeError(
                f"--stages: no stage {name!r}. Choose from {', '.join(STAGES)}"
            )
    return [name for name in STAGES if name in requested]


def pilot(recipe: Recipe, seeds: int) -> Recipe:
    """Return the recipe with `seeds` seeds for each scheme."""
    generate = recipe.generate
    sections: dict[str, Any] = {"own": {}}
    for name in recipe.schemes:
        pilot_field = recipe.scheme(name).pilot_field
        section = generate.section(name).model_copy(update={pilot_field: seeds})
        if name in generate.own:
            sections["own"][name] = section
        else:
            sections[name] = section
    smaller = generate.model_copy(update=sections)
    return recipe.model_copy(update={"generate": smaller})
