"""The evaluate stage: one endpoint for all checkpoints, lm-eval and MT-Bench through it at the same time."""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Mapping

import orjson

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError
from bezoar_ray.evaluate import harness
from bezoar_ray.evaluate.mt_bench.bench import Bench, mt_bench
from bezoar_ray.evaluate.served_endpoint import Endpoint
from bezoar_ray.llm.aio import to_the_end
from bezoar_ray.recipe import Recipe
from bezoar_ray.serve.app import running
from bezoar_ray.serve.arguments import modes
from bezoar_ray.stages import StageContext, StageResult, checkpoint_names
from bezoar_ray.store import Store


def run(context: StageContext) -> StageResult:
    """Measure every checkpoint that the run directory holds.

    Raises:
        RecipeError: a task, metric or question file that is not there.
        BezoarError: the endpoint did not start, or there is no checkpoint.
    """
    marks = identities(context.recipe, context.store)
    part = context.recipe.evaluate
    if not (part.mt_bench or part.harness):
        return StageResult([], {"eval": {}})
    bench = Bench(part.mt_bench, tuple(marks)) if part.mt_bench else None
    step = _counter(context, len(marks), bench)
    if part.harness:
        harness.warm_up(part.harness, context.store)
    with running(context.recipe, context.store) as base_url:
        return asyncio.run(
            _measure(context, marks, Endpoint.at(base_url, context.store), bench, step)
        )


def identities(recipe: Recipe, store: Store) -> dict[str, str]:
    """Who answers, for each checkpoint in the order of training: its weights, how they are served, and the template.

    Raises:
        BezoarError: there is no base checkpoint.
    """
    lineages = {
        name: store.read_json(layout.checkpoint(name).lineage)
        for name in checkpoint_names()
    }
    if lineages["base"] is None:
        raise BezoarError(
            f"{store.root}/checkpoints/base/lineage.json: missing. Run the sft stage first."
        )
    served = modes(recipe, store)
    how = {
        name: hashlib.sha256(
            orjson.dumps(
                [recipe.serve.fingerprint_fields() | {"mode": mode}, recipe.template]
            )
        ).hexdigest()[:8]
        for name, mode in served.items()
    }
    return {
        name: f"{lineages[name]['fingerprint']}:{how[name]}"
        for name in served
        if lineages[name]
    }


async def _measure(
    context: StageContext,
    marks: dict[str, str],
    endpoint: Endpoint,
    bench: Bench | None,
    step: Callable[[], None],
) -> StageResult:
    part = context.recipe.evaluate
    jobs: dict[str, Coroutine[None, None, tuple[Mapping[str, object], list[str]]]] = {}
    if part.harness:
        jobs["harness"] = harness.score_all(
            part.harness, context.store, marks, endpoint, step
        )
    if bench:
        jobs["mt_bench"] = mt_bench(context, bench, endpoint, marks, step)
    results = dict(zip(jobs, await to_the_end(jobs.values()), strict=True))
    files = [name for _, written in results.values() for name in written]
    served = {
        name: mode
        for name, mode in modes(context.recipe, context.store).items()
        if name in marks
    }
    return StageResult(
        files,
        {
            "eval": {"served": served}
            | {kind: scores for kind, (scores, _) in results.items()}
        },
    )


def _counter(
    context: StageContext, checkpoints: int, bench: Bench | None
) -> Callable[[], None]:
    """Counts what is measured: a task of one checkpoint, a judged conversation, a comparison of two.

    Raises:
        RecipeError: a question file that is not there, or a pair of models that nobody knows.
    """
    part = context.recipe.evaluate
    tasks = checkpoints * len(part.harness.all_tasks) if part.harness else 0
    judged, done = bench.total if bench else 0, 0

    def step() -> None:
        nonlocal done
        done += 1
        context.progress.update(
            done,
            tasks + judged,
            f"{checkpoints} checkpoints: {tasks} tasks, {judged} verdicts",
        )

    return step
