"""A recipe on more GPUs: hours and dollars, and which stage stops gaining first."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from bezoar_ray.errors import RecipeError
from bezoar_ray.plan import training_hours
from bezoar_ray.plan.assumed import Assumed
from bezoar_ray.plan.memory import MemoryNeed
from bezoar_ray.plan.steps import Plan, plan
from bezoar_ray.plan.training_hours import TrainingWork
from bezoar_ray.recipe import ModelSection, Recipe, Serve
from bezoar_ray.recipe.section import gpus_of
from bezoar_ray.runtime.gpus import Gpu, find_gpu
from bezoar_ray.stages import STAGES

COUNTS = (1, 8, 64)
"""Numbers of GPUs for which hours are shown."""
GAIN = 0.9
"""A stage gains from twice the GPUs if it then takes less than this share of the
time."""
_MOST_GPUS = 2**14
_MATTERS = 0.02
"""Share of all hours above which a stage is worth speeding up."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage as a function of the number of GPUs."""

    name: str
    hours: Callable[[int], float]
    """Hours of the stage on a number of GPUs."""
    most: float
    """Number of GPUs that the stage can use."""
    bound: str
    """Why more GPUs do not help, in words."""

    def used(self, gpus: int) -> float:
        """Number of GPUs that the stage uses out of some."""
        return min(gpus, self.most)

    @property
    def full(self) -> int:
        """The number of GPUs, a power of two, from which twice as many hardly gain."""
        count = 1
        while count < _MOST_GPUS:
            if self.hours(2 * count) >= GAIN * self.hours(count):
                break
            count *= 2
        return count


@dataclass(frozen=True)
class Scaling:
    """A recipe's stages on one kind of GPU."""

    recipe: str
    gpu: Gpu
    stages: tuple[PlannedStage, ...]
    api_usd: float
    """Dollars for the calls to endpoints."""
    fewest: float
    """Number of GPUs without which the recipe cannot run."""
    assumed: Assumed
    needs: tuple[MemoryNeed, ...]
    """Memory that each stage needs of one GPU."""

    def hours(self, gpus: int) -> float:
        """Hours of the whole run. generate and filter run at the same time."""
        hours = {stage.name: stage.hours(gpus) for stage in self.stages}
        generate = hours.pop("generate", 0.0)
        judging = hours.pop("filter", 0.0)
        return max(generate, judging) + sum(hours.values())

    def usd(self, gpus: int) -> float:
        """Dollars for endpoints, and for GPUs while a stage uses them."""
        gpu_hours = sum(stage.hours(gpus) * stage.used(gpus) for stage in self.stages)
        return self.api_usd + self.gpu.usd * gpu_hours

    @property
    def first(self) -> PlannedStage:
        """The stage that stops gaining first.

        Only stages count that take long enough to matter on many GPUs.
        """
        gpus = COUNTS[-1]
        shortest = _MATTERS * self.hours(gpus)
        long_stages = [stage for stage in self.stages if stage.hours(gpus) > shortest]
        return min(long_stages, key=lambda stage: stage.full)


def scaling(recipe: Recipe, kind: str, assumed: Assumed | None = None) -> Scaling:
    """Plan a recipe on one kind of GPU.

    Args:
        recipe: what is planned.
        kind: "A100", or with a price in dollars an hour, "A100=1.1".
        assumed: the assumptions.

    Raises:
        RecipeError: the kind is unknown, or the recipe uses no GPU.
    """
    assumed = assumed or Assumed()
    gpu = _gpu_with_price(kind)
    planned = plan(recipe, assumed, gpu)
    if not planned.total("gpu_hours"):
        raise RecipeError(f"--cluster {kind}: {recipe.name} uses no GPU")
    stages = [
        _generate(recipe, planned, assumed),
        _filter(recipe, planned, assumed),
    ]
    for work in training_hours.training_work(recipe, planned.rows, assumed):
        stages.append(_train(recipe, work, gpu, assumed))
    stages.append(_evaluate(recipe, planned, assumed))
    return Scaling(
        recipe=recipe.name,
        gpu=gpu,
        stages=tuple(stage for stage in stages if stage),
        api_usd=planned.total("usd"),
        fewest=_fewest_gpus(recipe),
        assumed=assumed,
        needs=planned.needs,
    )


def _gpu_with_price(kind: str) -> Gpu:
    name, equals, price = kind.partition("=")
    gpu = find_gpu(name, "--cluster")
    if not equals:
        return gpu
    if not re.fullmatch(r"\d+(\.\d+)?", price):
        raise RecipeError(
            f"--cluster {kind}: not a price; give dollars an hour, as in {name}=1.5"
        )
    return replace(gpu, usd=float(price))


def _fewest_gpus(recipe: Recipe) -> float:
    """GPUs of the largest engine, and at least one."""
    engines: list[ModelSection | Serve] = [recipe.serve]
    for model in (*recipe.teachers, *recipe.judges):
        if not model.base_url:
            engines.append(model)
    counts = [gpus_of(section.engine, section.num_gpus) for section in engines]
    return max([1.0, *counts])


def _stage_gpu_hours(planned: Plan, stage: str) -> float:
    return sum(step.gpu_hours for step in planned.steps if step.stage == stage)


def _generate(recipe: Recipe, planned: Plan, assumed: Assumed) -> PlannedStage | None:
    # The calls of one chain need each other's answers, so GPUs cannot share them.
    evol = recipe.generate.evol_instruct
    if evol:
        kinds = ("rewrite", "comparison", "answer")
        calls = [assumed.call[f"evol_instruct {kind}"] for kind in kinds]
        chain_tokens = evol.epochs * sum(call.out for call in calls)
    else:
        chain_tokens = assumed.call["lamini instructions"].out
    chain_seconds = chain_tokens / assumed.one_sequence
    return _calling_stage("generate", recipe.teachers, planned, assumed, chain_seconds)


def _filter(recipe: Recipe, planned: Plan, assumed: Assumed) -> PlannedStage | None:
    judges = recipe.judges if recipe.filter.judge else ()
    return _calling_stage("filter", judges, planned, assumed)


def _calling_stage(
    stage: str,
    models: tuple[ModelSection, ...],
    planned: Plan,
    assumed: Assumed,
    chain_seconds: float = 0.0,
) -> PlannedStage | None:
    """A stage that calls models.

    Engines on our GPUs share the calls. An endpoint answers at its own rate, however
    many GPUs there are.

    Args:
        stage: its name.
        models: the models that it calls.
        planned: the plan, with its calls.
        assumed: how fast endpoints answer, and how long engines take to start.
        chain_seconds: time of the longest chain of calls.

    Returns:
        None if the stage makes no calls.
    """
    calls = {model.model: 0.0 for model in models}
    for step in planned.steps:
        if step.stage == stage:
            calls[step.model] += step.calls
    if not any(calls.values()):
        return None

    bounds = []
    has_engine = any(not model.base_url for model in models)
    start_hours = 0.0
    if has_engine:
        start_hours = assumed.start / 3600
        bounds.append(f"an engine starts in {assumed.start:.0f} s")
    endpoint_seconds = {}
    for model in models:
        if model.base_url:
            rate = _calls_per_second(model, assumed)
            endpoint_seconds[model.model] = calls[model.model] / rate
    endpoint_hours = 0.0
    if endpoint_seconds:
        slowest = max(endpoint_seconds, key=lambda name: endpoint_seconds[name])
        endpoint_hours = endpoint_seconds[slowest] / 3600
        rate = calls[slowest] / endpoint_seconds[slowest]
        bounds.append(f"{slowest} takes {rate:,.0f} calls a second")
    if chain_seconds:
        bounds.append(f"the longest chain of calls takes {chain_seconds:.0f} s")
    engine_hours = _stage_gpu_hours(planned, stage)

    def hours(gpus: int) -> float:
        calling = max(endpoint_hours, engine_hours / gpus + start_hours)
        return calling + chain_seconds / 3600

    # A stage that calls endpoints only uses no GPU, however many there are.
    most = math.inf if engine_hours else 0
    return PlannedStage(stage, hours, most, ", ".join(bounds))


def _calls_per_second(model: ModelSection, assumed: Assumed) -> float:
    """Calls that an endpoint answers in a second.

    They are bound by its rate limit, or by the number of concurrent calls.
    """
    rate = model.most_actors * model.max_in_flight / assumed.judge_latency
    if model.requests_per_minute:
        rate = min(rate, model.requests_per_minute / 60)
    return rate


def _train(
    recipe: Recipe, work: TrainingWork, gpu: Gpu, assumed: Assumed
) -> PlannedStage | None:
    """A training stage, whose workers share the rows of each step.

    Returns:
        None if it takes no GPU hours.
    """
    section = recipe.training(work.stage)
    if not training_hours.gpu_hours(recipe, work, gpu):
        return None
    steps = work.steps(section)
    fixed_hours = (assumed.start + steps * assumed.step) / 3600

    def hours(gpus: int) -> float:
        workers = _workers(section.batch, gpus)
        # With more workers each has fewer rows of a step, so passes
        # get smaller and slower.
        on_workers = _with_workers(recipe, work.stage, workers)
        gpu_hours = training_hours.gpu_hours(on_workers, work, gpu)
        return gpu_hours / workers + fixed_hours

    step_ms = assumed.step * 1000
    bound = (
        f"a batch has {section.batch} rows, a pass of fewer rows is no faster, and "
        f"{step_ms:.0f} ms of each of {steps:,.0f} steps are the same on any number of "
        "GPUs"
    )
    return PlannedStage(work.stage, hours, section.batch, bound)


def _workers(batch: int, gpus: int) -> int:
    """The largest number of workers that some GPUs allow and that divides the batch."""
    counts = range(1, min(batch, gpus) + 1)
    return max(count for count in counts if batch % count == 0)


def _with_workers(recipe: Recipe, stage: str, workers: int) -> Recipe:
    """The recipe with a number of workers in one training stage, each with one GPU."""
    section = recipe.training(stage).model_copy(
        update={"workers": workers, "gpus_per_worker": 1.0}
    )
    return recipe.model_copy(update={STAGES[stage].section: section})


def _evaluate(recipe: Recipe, planned: Plan, assumed: Assumed) -> PlannedStage | None:
    """The evaluate stage.

    Replicas share the requests. MT-Bench's judge answers at its own rate.

    Returns:
        None if nothing is evaluated.
    """
    steps = [step for step in planned.steps if step.stage == "evaluate"]
    if not steps:
        return None
    verdicts = 0.0
    for step in steps:
        if step.description in ("mt_bench judge", "mt_bench comparison"):
            verdicts += step.calls
    judge_hours = 0.0
    if recipe.evaluate.mt_bench:
        rate = _calls_per_second(recipe.mt_bench_judges[0], assumed)
        judge_hours = verdicts / rate / 3600
    engine_hours = _stage_gpu_hours(planned, "evaluate")
    start_hours = assumed.start / 3600

    def hours(gpus: int) -> float:
        return max(judge_hours, engine_hours / gpus) + start_hours

    bound = (
        f"an engine starts in {assumed.start:.0f} s, and the run waits for "
        f"{verdicts:,.0f} verdicts"
    )
    most = math.inf if engine_hours else 0
    return PlannedStage("evaluate", hours, most, bound)
