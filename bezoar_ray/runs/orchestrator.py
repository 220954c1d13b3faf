"""A run: which stages, in what order, what is already done; keeps summary.json whole at every moment."""

import contextlib
import importlib
import itertools
import logging
import time
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import yaml

from bezoar_ray import layout, tiny
from bezoar_ray.errors import BezoarError, BudgetReached, RecipeError
from bezoar_ray.licenses import commercial_use
from bezoar_ray.llm.ledger import SESSION, Counted, accounts
from bezoar_ray.recipe import ModelSection, Recipe
from bezoar_ray.runs import environment, manifest
from bezoar_ray.runs.manifest import (
    StageManifest,
    fingerprint,
    forget,
    is_done,
    load,
    save,
)
from bezoar_ray.runs.revisions import pinned
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
)
from bezoar_ray.stats import as_percent
from bezoar_ray.store import Store

_LOG = "driver.log"
_JUDGING = ("filter", "evaluate")


def run(
    recipe: Recipe, store: Store, stages: list[str], progress: Progress
) -> dict[str, Any]:
    """Carry out stages of a recipe in a run directory; what is done already is skipped.

    Returns:
        What summary.json holds.

    Raises:
        BezoarError: a stage failed; its report is written all the same.
    """
    _check_means(recipe, stages)
    with store.lock():
        recipe = pinned(recipe, store, progress.say)
        _check_order(recipe, store, stages)
        _check_ahead(
            recipe,
            [stage for stage in stages if not _is_done(recipe, store, stage)],
            progress,
        )
        return Run(recipe, store, progress).carry_out(stages)


def report_again(recipe: Recipe, store: Store, progress: Progress) -> None:
    """Write report and cards anew from what a run directory holds; what summary.json says of the run stays."""
    with store.lock():
        progress.start("report")
        outcome = _call("report", StageContext(recipe, store, "", progress))
        progress.finish("done")
        save(
            store,
            "report",
            StageManifest(
                fingerprint(recipe, "report"), 0.0, outcome.files, outcome.summary
            ),
        )


class Run:
    """One command's work in a run directory."""

    def __init__(self, recipe: Recipe, store: Store, progress: Progress):
        self._recipe, self._store, self._progress = recipe, store, progress
        self._session = f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}"
        self._began = time.time()
        self._stages = {
            stage: _done_before(store, stage)
            for stage in STAGES
            if manifest.exists(store, stage)
        }
        self._error = ""
        self._touched = False  # whether this command has begun to change what is there
        self._counted: Counted = {}
        self._left: dict[str, Any] = {}  # what a stage that failed could still say

    def carry_out(self, stages: list[str]) -> dict[str, Any]:
        """The stages in order; the summary says at every moment how far they are."""
        self._store.replace(SESSION, self._session.encode())
        with contextlib.ExitStack() as stack:
            stack.enter_context(stderr_to(self._store.log(_LOG)))
            keep_events(self._store, session=self._session)
            stop_on_sigterm()
            machinery = Machinery(self._recipe, self._store, stages, stack)
            try:
                for names in self._not_done(stages):
                    self._carry_out(names, machinery)
                self._keep_recipe()
            except KeyboardInterrupt:
                if self._tells():
                    self._summarise("interrupted")
                raise
            except Exception as error:
                ours = error if isinstance(error, BezoarError) else self._wrapped(error)
                self._error = str(ours)
                if self._tells():
                    self._end(
                        "budget" if isinstance(ours, BudgetReached) else "failed",
                        machinery,
                    )
                raise ours from error
        return self._summarise("done")

    def _carry_out(self, names: list[str], machinery: "Machinery") -> None:
        """One stage, or several that flow into one another. What is done is forgotten only once it can begin."""
        recipe = [machinery.recipe_for(name) for name in names][-1]
        self._keep_recipe()
        forget(self._store, names[0])
        self._stages = {
            name: entry
            for name, entry in self._stages.items()
            if manifest.exists(self._store, name)
        }
        for name in names:
            mark = fingerprint(self._recipe, name)
            self._stages[name] = {
                "status": "running",
                "seconds": 0.0,
                "fingerprint": mark,
                "skipped": False,
            }
        self._summarise("running")
        event("stage begins", stage="+".join(names))
        began = time.monotonic()
        try:
            for current, outcome in _outcomes(names, self._context(recipe, machinery)):
                seconds, began = round(time.monotonic() - began, 1), time.monotonic()
                entry = self._stages[current]
                save(
                    self._store,
                    current,
                    StageManifest(
                        entry["fingerprint"], seconds, outcome.files, outcome.summary
                    ),
                )
                entry |= {"status": "done", "seconds": seconds}
                self._summarise("running")
                event("stage done", stage=current, seconds=seconds)
                self._progress.finish(_headline(outcome))
                if current != names[-1]:
                    self._progress.start(names[names.index(current) + 1])
        except BaseException as error:
            self._left = getattr(error, "outcome", StageResult([])).summary
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            event(
                f"stage {status}", logging.ERROR, stage="+".join(names), why=str(error)
            )
            for name in names:
                if self._stages[name]["status"] == "running":
                    self._stages[name] |= {
                        "status": status,
                        "seconds": round(time.monotonic() - began, 1),
                    }
            raise

    def _tells(self) -> bool:
        """Whether the summary is this command's to write: of a run that it has not begun to change, it stays."""
        return self._touched or not self._store.exists(layout.SUMMARY)

    def _keep_recipe(self) -> None:
        self._touched = True
        tree = self._recipe.model_dump(mode="json")
        self._store.replace(layout.RECIPE, yaml.safe_dump(tree, sort_keys=False))

    def _not_done(self, stages: list[str]) -> Iterator[list[str]]:
        """What is left to do, one after the other; stages that flow into one another together."""
        left = list(stages)
        while left:
            names = [left.pop(0)]
            if is_done(self._store, names[0], fingerprint(self._recipe, names[0])):
                self._progress.start(names[0])
                self._progress.finish("already done")
                continue
            while left and (names[-1], left[0]) in TOGETHER:
                names.append(left.pop(0))
            self._progress.start(names[0])
            yield names

    def _context(self, recipe: Recipe, machinery: "Machinery") -> StageContext:
        return StageContext(
            recipe,
            self._store,
            self._session,
            self._progress,
            truth=machinery.truth,
        )

    def _wrapped(self, error: Exception) -> BezoarError:
        """A fault that no stage foresaw, in one line; its traceback goes to the log."""
        where, last = self._store.log(_LOG), str(error).strip().splitlines()[-1:]
        with open(where, "a") as log:
            traceback.print_exception(error, file=log)
        return BezoarError(
            f"{type(error).__name__}: {''.join(last)}. The traceback is in {where}"
        )

    def _end(self, status: str, machinery: "Machinery") -> None:
        """A run that fails still says what came out: its summary and, if it can be written, its report."""
        self._summarise(status)
        self._progress.start("report")
        try:
            recipe = machinery.recipe_for("report")
            _call("report", self._context(recipe, machinery))
        except Exception as error:  # the first fault is the one to tell
            self._wrapped(error)

    def _summarise(self, status: str) -> dict[str, Any]:
        summary: dict[str, Any] = {
            "run": {
                "recipe": self._recipe.name,
                "status": status,
                "error": self._error,
                "seconds": round(time.time() - self._began, 1),
                "versions": environment.versions(),
                "hardware": environment.hardware(),
                "git": environment.git_revision(),
            },
            "stages": self._stages,
            "data": {},
            "calls": accounts(self._store.root, self._session, self._counted),
            "train": {},
            "eval": {},
            "commercial_use": commercial_use(self._recipe),
        }
        for stage in STAGES:
            if manifest.exists(self._store, stage):
                _merge(summary, load(self._store, stage).summary)
        _merge(summary, self._left)
        self._store.replace_json(layout.SUMMARY, summary)
        return summary


class Machinery:
    """What stages run on, started when the first of them needs it: a run with nothing to do starts nothing."""

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        stages: list[str],
        stack: contextlib.ExitStack,
    ):
        self._recipe, self._store, self._stages, self._stack = (
            recipe,
            store,
            stages,
            stack,
        )
        self._ray = self._judge = False
        self.truth: Truth | None = None

    def recipe_for(self, stage: str) -> Recipe:
        """The recipe with the addresses of what runs for this stage."""
        if stage != "report" and not self._ray:
            self._ray = True
            self._stack.enter_context(ray_session())
            check_shared(self._store)
            check_stages(
                self._recipe, self._stages[self._stages.index(stage) :]
            )  # those before it are done
        if stage in _JUDGING and not self._judge:
            self._judge = True
            resolving = tiny.resolve(self._recipe, own_address())
            resolved = self._stack.enter_context(resolving)
            self._recipe = resolved.recipe
            self.truth = resolved.truth
        return self._recipe


def _check_means(recipe: Recipe, stages: list[str]) -> None:
    """Name a missing key, file, endpoint or price before any work starts."""
    from bezoar_ray.llm.endpoint import api_key
    from bezoar_ray.runs.doctor import missing_files, models

    for stage, part in models(recipe):
        if stage in stages:
            api_key(part)
            _check_price(recipe, stage, part)
    if "evaluate" in stages and recipe.evaluate.mt_bench:
        local = [
            judge
            for judge in recipe.mt_bench_judges
            if not (judge.base_url or tiny.is_embedded_judge(judge))
        ]
        if local:
            raise RecipeError(
                f"evaluate.mt_bench.judge: {local[0].model!r} needs a `base_url`: this judge is asked at an endpoint "
                "(`vllm serve` makes one of a local model)"
            )
    if missing := [line for stage, line in missing_files(recipe) if stage in stages]:
        raise RecipeError(missing[0])


def _is_done(recipe: Recipe, store: Store, stage: str) -> bool:
    return is_done(store, stage, fingerprint(recipe, stage))


def _check_ahead(recipe: Recipe, stages: list[str], progress: Progress) -> None:
    """Try what the stages will read, before one of them is paid for.

    Raises:
        RecipeError: one of them would fail.
    """
    from bezoar_ray.runs.preflight import check

    found = check(recipe, stages)
    for note in found.notes:
        progress.say(f"note: {note}")
    if found.problems:
        raise RecipeError("\n".join(found.problems))


def _check_price(recipe: Recipe, stage: str, part: ModelSection) -> None:
    own = {
        "budget_usd": recipe.budget_usd,
        f"{stage}.budget_usd": getattr(recipe, stage).budget_usd,
    }
    field = next((name for name, usd in own.items() if usd is not None), None)
    if field and part.base_url and not part.prices:
        raise RecipeError(
            f"{field} is set, but {part.model!r} has no `prices`, so nobody could say when it is reached. Give dollars "
            "per million tokens, prices: {input: …, output: …}; zeros where the endpoint is your own"
        )


def _check_order(recipe: Recipe, store: Store, stages: list[str]) -> None:
    """Whether each stage finds what it reads, before anything in the run directory changes."""
    for before, stage in itertools.pairwise(STAGES):
        if stage not in stages or stage == "report" or before in stages:
            continue
        if not is_done(store, before, fingerprint(recipe, before)):
            raise RecipeError(
                f"--stages: {stage} reads what {before} leaves, and {before} is not done with this recipe in "
                f"{store.root}. Add it: --stages {before},{stage}"
            )


def _call(stage: str, context: StageContext) -> StageResult:
    module = importlib.import_module(STAGES[stage].module)
    return module.run(replace(context, stage=stage))


def _outcomes(
    names: list[str], context: StageContext
) -> Iterator[tuple[str, StageResult]]:
    """What each of the stages leaves, as soon as it is done."""
    if len(names) == 1:
        yield names[0], _call(names[0], context)
    else:
        yield from importlib.import_module(TOGETHER[names[0], names[1]]).run(context)


def _done_before(store: Store, stage: str) -> dict[str, Any]:
    done = load(store, stage)
    return {
        "status": "done",
        "seconds": done.seconds,
        "fingerprint": done.fingerprint,
        "skipped": True,
    }


def parse_stages(text: str | None) -> list[str]:
    """The stages of `--stages a,b`, in the order of the recipe; all of them where there is no such option."""
    if not text:
        return list(STAGES)
    asked = current_names(name.strip() for name in text.split(","))
    unknown = [name for name in asked if name not in STAGES]
    if unknown:
        raise RecipeError(
            f"--stages: no stage {unknown[0]!r}; the stages are {', '.join(STAGES)}"
        )
    return [name for name in STAGES if name in asked]


def pilot(recipe: Recipe, seeds: int) -> Recipe:
    """The recipe with so many seeds per scheme."""
    generate = recipe.generate
    smaller: dict[str, Any] = {"own": {}}
    for name in recipe.schemes:
        section = generate.section(name).model_copy(
            update={recipe.scheme(name).pilot_field: seeds}
        )
        if name in generate.own:
            smaller["own"][name] = section
        else:
            smaller[name] = section
    return recipe.model_copy(update={"generate": generate.model_copy(update=smaller)})


def _headline(outcome: StageResult) -> str:
    """The numbers of a stage on one line."""
    data = outcome.summary.get("data")
    if data:
        return ", ".join(
            f"{scheme} "
            + " ".join(
                f"{n} {k}" for k, n in counts.items() if isinstance(n, int) and n
            )
            for scheme, counts in data.items()
        )
    numbers = outcome.summary.get("train", {})
    return (
        ", ".join(
            text for name, part in numbers.items() for text in _scores(name, part)
        )
        or "done"
    )


def _scores(checkpoint: str, part: dict[str, Any]) -> Iterator[str]:
    """What training says of a checkpoint; either is None where there was nothing to measure."""
    if part.get("loss_last") is not None:
        yield f"{checkpoint} loss_last {part['loss_last']:.3g}"
    if part.get("heldout_accuracy") is not None:
        yield f"{checkpoint} heldout_accuracy {as_percent(part['heldout_accuracy'], part.get('heldout_ci95'))}"


def _merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
