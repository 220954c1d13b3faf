"""What a recipe takes on more GPUs: hours and dollars of each stage, and which one stops gaining first."""

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
GAIN = 0.9  # twice the GPUs have to take less than this share of the time


@dataclass(frozen=True)
class PlannedStage:
    """One stage as a function of GPUs: hours with so many, how many of them it can use, and what bounds it then."""

    name: str
    hours: Callable[[int], float]
    most: float  # GPUs that it can use
    bound: str

    def used(self, gpus: int) -> float:
        """GPUs that it takes."""
        return min(gpus, self.most)

    @property
    def full(self) -> int:
        """The number of GPUs, a power of two, from which on twice as many hardly gain."""
        count = 1
        while count < 2**14 and self.hours(2 * count) < GAIN * self.hours(count):
            count *= 2
        return count


@dataclass(frozen=True)
class Scaling:
    """A recipe's stages on a kind of GPU."""

    recipe: str
    gpu: Gpu
    stages: tuple[PlannedStage, ...]
    api_usd: float
    fewest: float  # GPUs without which it cannot run
    assumed: Assumed
    needs: tuple[MemoryNeed, ...]  # of the memory of one GPU, by stage

    def hours(self, gpus: int) -> float:
        """Of all stages, one after the other; generate and filter run at the same time."""
        found = {stage.name: stage.hours(gpus) for stage in self.stages}
        together = max(found.pop("generate", 0.0), found.pop("filter", 0.0))
        return together + sum(found.values())

    def usd(self, gpus: int) -> float:
        """GPUs while a stage uses them, and the endpoints' bills."""
        return self.api_usd + self.gpu.usd * sum(
            stage.hours(gpus) * stage.used(gpus) for stage in self.stages
        )

    @property
    def first(self) -> PlannedStage:
        """The stage that stops gaining first, of those that take long enough to matter on many GPUs."""
        most = COUNTS[-1]
        long = (
            stage
            for stage in self.stages
            if stage.hours(most) > 0.02 * self.hours(most)
        )
        return min(long, key=lambda stage: stage.full)


def scaling(recipe: Recipe, kind: str, assumed: Assumed | None = None) -> Scaling:
    """A recipe on GPUs of a kind: "A100", or, at a price of one's own in dollars an hour, "A100=1.1".

    Raises:
        RecipeError: no such kind, or a recipe that uses no GPU.
    """
    name, given, price = kind.partition("=")
    gpu, assumed = find_gpu(name, "--cluster"), assumed or Assumed()
    if given:
        if not re.fullmatch(r"\d+(\.\d+)?", price):
            raise RecipeError(
                f"--cluster {kind}: not a price; give dollars an hour, as in {name}=1.5"
            )
        gpu = replace(gpu, usd=float(price))
    found = plan(recipe, assumed, gpu)
    if not found.total("gpu_hours"):
        raise RecipeError(f"--cluster {kind}: {recipe.name} uses no GPU")
    local: list[ModelSection | Serve] = [
        model for model in (*recipe.teachers, *recipe.judges) if not model.base_url
    ]
    fewest = max(
        [gpus_of(model.engine, model.num_gpus) for model in [*local, recipe.serve]]
        + [1.0]
    )
    works = training_hours.works(recipe, found.rows, assumed)
    stages = (
        _generate(recipe, found, assumed),
        _filter(recipe, found, assumed),
        *(_train(recipe, work, gpu, assumed) for work in works),
        _evaluate(recipe, found, assumed),
    )
    return Scaling(
        recipe.name,
        gpu,
        tuple(filter(None, stages)),
        found.total("usd"),
        fewest,
        assumed,
        found.needs,
    )


def _gpu_hours(found: Plan, stage: str) -> float:
    return sum(step.gpu_hours for step in found.steps if step.stage == stage)


def _generate(recipe: Recipe, found: Plan, assumed: Assumed) -> PlannedStage | None:
    """The longest chain of calls cannot be shared."""
    evol = recipe.generate.evol_instruct
    tokens = sum(
        assumed.call[f"evol_instruct {kind}"].out
        for kind in ("rewrite", "comparison", "answer")
    )
    chain = (
        evol.epochs * tokens if evol else assumed.call["lamini instructions"].out
    ) / assumed.one_sequence
    return _talking("generate", recipe.teachers, found, assumed, chain)


def _filter(recipe: Recipe, found: Plan, assumed: Assumed) -> PlannedStage | None:
    return _talking(
        "filter", recipe.judges if recipe.filter.judge else (), found, assumed
    )


def _talking(
    stage: str,
    models: tuple[ModelSection, ...],
    found: Plan,
    assumed: Assumed,
    chain: float = 0.0,
) -> PlannedStage | None:
    """Our own engines share out the calls; endpoints answer as fast as they let us, whatever the GPUs.

    Args:
        stage: whose calls they are.
        models: that the stage talks to.
        found: the plan.
        assumed: how fast endpoints answer, and how long engines start.
        chain: seconds of the longest chain of calls.
    """
    calls = {model.model: 0.0 for model in models}
    for step in found.steps:
        if step.stage == stage:
            calls[step.model] += step.calls
    if not any(calls.values()):
        return None
    seconds = {
        model.model: calls[model.model] / _rate(model, assumed)
        for model in models
        if model.base_url
    }
    slowest = max(seconds, key=lambda model: seconds[model], default=None)
    remote = seconds[slowest] / 3600 if slowest else 0.0
    local = len(seconds) < len(models)
    work, start = _gpu_hours(found, stage), assumed.start / 3600 if local else 0.0
    bounds = [f"an engine starts in {assumed.start:.0f} s"] if local else []
    bounds += (
        [f"{slowest} takes {calls[slowest] / seconds[slowest]:,.0f} calls a second"]
        if slowest
        else []
    )
    bounds += [f"the longest chain of calls takes {chain:.0f} s"] if chain else []

    def hours(gpus: int) -> float:
        return max(remote, work / gpus + start) + chain / 3600

    return PlannedStage(stage, hours, float("inf") if work else 0, ", ".join(bounds))


def _rate(judge: ModelSection, assumed: Assumed) -> float:
    """Calls a second: by its own limit, or by how many may be under way."""
    limit = (
        judge.requests_per_minute / 60 if judge.requests_per_minute else float("inf")
    )
    return min(limit, judge.most_actors * judge.max_in_flight / assumed.judge_latency)


def _train(
    recipe: Recipe, work: TrainingWork, gpu: Gpu, assumed: Assumed
) -> PlannedStage | None:
    """Workers share out a batch, row by row at most, and passes of few rows are slow; steps come one after another."""
    part = recipe.training(work.stage)
    if not training_hours.gpu_hours(recipe, work, gpu):
        return None
    steps = work.steps(part)
    idle = (assumed.start + steps * assumed.step) / 3600

    def hours(gpus: int) -> float:
        workers = _workers(part.batch, gpus)
        return (
            training_hours.gpu_hours(
                _on_workers(recipe, work.stage, workers), work, gpu
            )
            / workers
            + idle
        )

    bound = (
        f"a batch has {part.batch} rows, a pass of few is no faster, and no GPU shares {assumed.step * 1000:.0f} ms of "
        f"each of {steps:,.0f} steps"
    )
    return PlannedStage(work.stage, hours, part.batch, bound)


def _workers(batch: int, gpus: int) -> int:
    """The most workers on so many GPUs that share a batch evenly."""
    return max(count for count in range(1, min(batch, gpus) + 1) if batch % count == 0)


def _on_workers(recipe: Recipe, stage: str, workers: int) -> Recipe:
    """The recipe with so many workers in a training stage, each on a GPU of its own."""
    part = recipe.training(stage).model_copy(
        update={"workers": workers, "gpus_per_worker": 1.0}
    )
    return recipe.model_copy(update={STAGES[stage].section: part})


def _evaluate(recipe: Recipe, found: Plan, assumed: Assumed) -> PlannedStage | None:
    """Replicas share out the requests; the judge of MT-Bench answers as fast as it lets us."""
    if not any(step.stage == "evaluate" for step in found.steps):
        return None
    judge = recipe.mt_bench_judges[0] if recipe.evaluate.mt_bench else None
    calls = sum(
        step.calls
        for step in found.steps
        if step.what.startswith("mt_bench") and step.what[9:] != "answer"
    )
    judged = calls / _rate(judge, assumed) / 3600 if judge else 0.0
    work, start = _gpu_hours(found, "evaluate"), assumed.start / 3600
    bound = f"an engine starts in {assumed.start:.0f} s, and {calls:,.0f} verdicts are waited for"
    return PlannedStage(
        "evaluate",
        lambda gpus: max(judged, work / gpus) + start,
        float("inf") if work else 0,
        bound,
    )
