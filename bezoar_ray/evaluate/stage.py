"""The evaluate stage: one endpoint for all checkpoints, lm-eval and MT-Bench through it at the same time."""

import asyncio
import hashlib
import json
import urllib.request
from collections.abc import Callable
from typing import Any

import orjson

from bezoar_ray.errors import BezoarError
from bezoar_ray.evaluate import harness
from bezoar_ray.evaluate.harness import Endpoint
from bezoar_ray.evaluate.mt_bench.run import mt_bench
from bezoar_ray.recipe import CHECKPOINTS, Recipe
from bezoar_ray.serve.app import running
from bezoar_ray.sources.mt_bench import load_questions
from bezoar_ray.stage import Context, Outcome
from bezoar_ray.store import Store


def run(context: Context) -> Outcome:
    """Measure every checkpoint that the run directory holds.

    Raises:
        RecipeError: a task, metric or question file that is not there.
        BezoarError: the endpoint did not start, or there is no checkpoint.
    """
    marks = identities(context.recipe, context.store)
    part = context.recipe.evaluate
    if not (part.mt_bench or part.harness):
        return Outcome([], {"eval": {}})
    step = _counter(context, marks)
    scorer = part.harness and harness.scorer(part.harness, context.store.path(harness.LOG))  # imports as vLLM does
    with running(context.recipe, context.store) as base_url:
        endpoint = Endpoint(base_url, str(context.store.path("checkpoints/base")), _context_length(base_url))
        return asyncio.run(_measure(context, marks, endpoint, scorer, step))


def identities(recipe: Recipe, store: Store) -> dict[str, str]:
    """Who answers, for each checkpoint in the order of training: its weights, how they are served, and the template.

    Raises:
        BezoarError: there is no base checkpoint.
    """
    lineages = {name: store.read_json(f"checkpoints/{name}/lineage.json") for name in CHECKPOINTS}
    if lineages["base"] is None:
        raise BezoarError(f"{store.path('checkpoints/base/lineage.json')}: missing. Run the sft stage first.")
    how = hashlib.sha256(orjson.dumps([recipe.serve.what(), recipe.template])).hexdigest()[:8]
    return {name: f"{lineage['fingerprint']}:{how}" for name, lineage in lineages.items() if lineage}


async def _measure(
    context: Context, marks: dict[str, str], endpoint: Endpoint, scorer: Any, step: Callable[[], None]
) -> Outcome:
    part = context.recipe.evaluate
    jobs = {}
    if part.harness:
        jobs["harness"] = harness.score_all(part.harness, context.store, marks, endpoint, scorer, step)
    if part.mt_bench:
        jobs["mt_bench"] = mt_bench(context, endpoint, marks, step)
    results = dict(zip(jobs, await asyncio.gather(*jobs.values()), strict=True))
    files = [name for _, written in results.values() for name in written]
    return Outcome(files, {"eval": {kind: scores for kind, (scores, _) in results.items()}})


def _counter(context: Context, marks: dict[str, str]) -> Callable[[], None]:
    """Counts what is measured: a task, or a judged conversation, of one checkpoint."""
    part = context.recipe.evaluate
    tasks = len(part.harness.tasks) if part.harness else 0
    questions = len(load_questions(part.mt_bench)) if part.mt_bench else 0
    total, done = len(marks) * (tasks + questions), 0

    def step() -> None:
        nonlocal done
        done += 1
        context.progress.update(done, total, f"{len(marks)} checkpoints: {tasks} tasks, {questions} conversations each")

    return step


def _context_length(base_url: str) -> int:
    with urllib.request.urlopen(f"{base_url}/models", timeout=60) as answer:
        return json.load(answer)["data"][0]["max_model_len"]
