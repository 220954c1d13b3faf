"""The evaluate stage: the benchmarks run at once, through one endpoint.

Only the reward model is rated beforehand, by an engine of its own.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Coroutine, Iterator, Mapping

import orjson

from bezoar_ray import layout
from bezoar_ray.data.attribute_line import attribute_line
from bezoar_ray.errors import BezoarError
from bezoar_ray.evaluate import harness
from bezoar_ray.evaluate.mt_bench.bench import Bench, mt_bench
from bezoar_ray.evaluate.reward_bench.benchmark import (
    RewardBenchmark,
    rate_answers,
    reward_bench,
)
from bezoar_ray.evaluate.served_endpoint import Endpoint
from bezoar_ray.llm.aio import to_the_end
from bezoar_ray.recipe import Recipe
from bezoar_ray.serve.app import running
from bezoar_ray.serve.arguments import modes
from bezoar_ray.stages import (
    REWARD_MODEL,
    StageContext,
    StageResult,
    checkpoint_names,
)
from bezoar_ray.store import Store

Measured = tuple[Mapping[str, object], list[str]]
"""A benchmark's scores by checkpoint, and the files that it wrote."""


def run(context: StageContext) -> StageResult:
    """Evaluate every checkpoint in the run directory.

    Raises:
        RecipeError: a task, a metric or a file of a benchmark does not exist.
        BezoarError: the endpoint or the reward model did not start, or there is no
            checkpoint.
    """
    recipe = context.recipe
    section = recipe.evaluate
    fingerprints = identities(recipe, context.store)
    if not (section.harness or section.mt_bench or section.reward_bench):
        return StageResult([], {"eval": {}})
    bench = None
    if section.mt_bench:
        bench = Bench(section.mt_bench, tuple(fingerprints), system_messages(recipe))
    reward_benchmark = None
    if section.reward_bench:
        reward_benchmark = RewardBenchmark(
            section.reward_bench,
            context.store,
            fingerprints,
            reward_model_identity(recipe, context.store),
        )
    step = _progress_counter(context, len(fingerprints), bench, reward_benchmark)
    asks_checkpoints = bool(section.harness or section.mt_bench)
    if reward_benchmark:
        rate_answers(recipe, reward_benchmark, step)
        asks_checkpoints |= reward_benchmark.is_endpoint_needed
    if section.harness:
        # Before the endpoint: importing lm-eval takes seconds, in
        # which an engine starts.
        harness.warm_up(section.harness, context.store)
    with _running(context, asks_checkpoints) as endpoint:
        return asyncio.run(
            _evaluate(context, fingerprints, endpoint, bench, step, reward_benchmark)
        )


@contextlib.contextmanager
def _running(context: StageContext, is_needed: bool) -> Iterator[Endpoint | None]:
    """Serve the checkpoints for the block, if a benchmark asks them."""
    if not is_needed:
        yield None
        return
    with running(context.recipe, context.store) as base_url:
        yield Endpoint.at(base_url, context.store)


def identities(recipe: Recipe, store: Store) -> dict[str, str]:
    """Return the identity of each checkpoint, in the order of training.

    An identity is the fingerprint of the weights and a digest of how they are served
    and of the chat template. A result is valid for one identity.

    Raises:
        BezoarError: there is no base checkpoint.
    """
    lineages = {}
    for name in checkpoint_names():
        lineages[name] = store.read_json(layout.checkpoint(name).lineage)
    if lineages["base"] is None:
        raise BezoarError(
            f"{store.root}/checkpoints/base/lineage.json: missing. Run the sft stage first."
        )
    by_name = {}
    for name, mode in modes(recipe, store).items():
        lineage = lineages[name]
        if lineage:
            serving_digest = _serving_digest(recipe, mode)
            by_name[name] = f"{lineage['fingerprint']}:{serving_digest}"
    return by_name


def system_messages(recipe: Recipe) -> dict[str, str]:
    """Return the system messages under which checkpoints are measured, by name.

    A steered model is asked for the recipe's first goal.
    """
    goal = recipe.align.goal
    if goal is None:
        return {}
    return {recipe.checkpoint("align"): attribute_line(goal)}


def reward_model_identity(recipe: Recipe, store: Store) -> str | None:
    """Return the identity of the reward model; None if the run has none."""
    lineage = store.read_json(layout.checkpoint(REWARD_MODEL).lineage)
    if recipe.rm is None or not lineage:
        return None
    return f"{lineage['fingerprint']}:{_serving_digest(recipe, 'merged')}"


def _serving_digest(recipe: Recipe, mode: str) -> str:
    """Digest the settings that change an answer, besides the weights."""
    settings = recipe.serve.fingerprint_fields() | {"mode": mode}
    data = orjson.dumps([settings, recipe.template])
    return hashlib.sha256(data).hexdigest()[:8]


async def _evaluate(
    context: StageContext,
    fingerprints: dict[str, str],
    endpoint: Endpoint | None,
    bench: Bench | None,
    step: Callable[[], None],
    reward_benchmark: RewardBenchmark | None = None,
) -> StageResult:
    """Run the benchmarks. Without an endpoint, only known results are summarized."""
    section = context.recipe.evaluate
    jobs: dict[str, Coroutine[None, None, Measured]] = {}
    if section.harness and endpoint:
        jobs["harness"] = harness.score_all(
            section.harness, context.store, fingerprints, endpoint, step
        )
    if bench and endpoint:
        jobs["mt_bench"] = mt_bench(context, bench, endpoint, fingerprints, step)
    if reward_benchmark:
        jobs["reward_bench"] = reward_bench(
            context.recipe, reward_benchmark, endpoint, step
        )
    results = await to_the_end(jobs.values())

    served = {}
    for name, mode in modes(context.recipe, context.store).items():
        if name in fingerprints:
            served[name] = mode
    summary: dict[str, object] = {"served": served}
    files = []
    for benchmark, (scores, written) in zip(jobs, results, strict=True):
        summary[benchmark] = scores
        files += written
    return StageResult(files, {"eval": summary})


def _progress_counter(
    context: StageContext,
    checkpoints: int,
    bench: Bench | None,
    reward_benchmark: RewardBenchmark | None = None,
) -> Callable[[], None]:
    """Return a function that counts one more finished unit and shows the progress.

    A unit is one lm-eval task of one checkpoint, one judged conversation, one compared
    pair of conversations, or one pass of a model over a version of RewardBench.

    Raises:
        RecipeError: a file of a benchmark does not exist or is malformed, or a pair
            names an unknown model.
    """
    section = context.recipe.evaluate
    tasks = 0
    if section.harness:
        tasks = checkpoints * len(section.harness.all_tasks)
    verdicts = bench.total if bench else 0
    passes = reward_benchmark.passes if reward_benchmark else 0
    description = f"{checkpoints} checkpoints: {tasks} tasks, {verdicts} verdicts"
    if passes:
        description += f", {passes} passes over RewardBench"
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        context.progress.update(
            done,
            tasks + verdicts + passes,
            description,
        )

    return step
