"""The evaluate stage's work against an endpoint that is there already.

`python -m tests.evaluate.measure RUN_DIR CANDIDATES JUDGE` leaves what it found in RUN_DIR/outcome.json.
"""

import asyncio
import sys
import uuid

from bezoar_ray.evaluate.evaluate_stage import (
    _evaluate,
    _progress_counter,
    identities,
    reward_model_identity,
)
from bezoar_ray.evaluate.mt_bench.bench import Bench
from bezoar_ray.evaluate.reward_bench.benchmark import RewardBenchmark
from bezoar_ray.evaluate.served_endpoint import Endpoint
from bezoar_ray.recipe import Recipe, load_recipe
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.runtime.session import ray_session
from bezoar_ray.stages import StageContext, StageResult
from bezoar_ray.store import Store


def measure(recipe: Recipe, store: Store, base_url: str, session: str) -> StageResult:
    """What the stage leaves, once its endpoint stands."""
    context = StageContext(recipe, store, session, Progress())
    fingerprints = identities(recipe, store)
    bench = recipe.evaluate.mt_bench and Bench(
        recipe.evaluate.mt_bench, tuple(fingerprints)
    )
    reward_benchmark = recipe.evaluate.reward_bench and RewardBenchmark(
        recipe.evaluate.reward_bench,
        store,
        fingerprints,
        reward_model_identity(recipe, store),
    )
    step = _progress_counter(context, len(fingerprints), bench, reward_benchmark)
    endpoint = Endpoint.at(base_url, store)
    return asyncio.run(
        _evaluate(context, fingerprints, endpoint, bench, step, reward_benchmark)
    )


if __name__ == "__main__":
    folder, candidates, judge = sys.argv[1:]
    # One task that is scored and one that is generated: requests tell them apart.
    tasks = (
        "evaluate.harness.tasks=[{task: tiny_choice, limit: 40}, "
        "{task: tiny_answer, metric: exact_match, limit: 40}]"
    )
    found, place = (
        load_recipe("tiny", [f"judges.0.base_url={judge}", tasks]),
        Store(folder),
    )
    with place.lock(), ray_session():
        place.replace_json(
            "outcome.json", measure(found, place, candidates, uuid.uuid4().hex).summary
        )
