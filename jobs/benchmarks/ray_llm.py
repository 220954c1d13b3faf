"""Our graph against `ray.data.llm.build_processor`, both on the tiny teacher, one after the other.

`generate.vs_ray_llm_steady`: output tokens a second in one pass over the same prompts; engine starts and the first and
last tenth of the rows are left out of both. `generate.vs_ray_llm`: Evol-Instruct with three epochs, engine starts in
it: the time of a chain of their passes, one for each call of the scheme, over the time of ours.
"""

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from bezoar_ray import sources
from bezoar_ray.generate import stage
from bezoar_ray.generate.elimination import instruction_fault
from bezoar_ray.generate.prompts import (
    comparison_prompt,
    evolution_prompt,
    evolved_answer_prompt,
)
from bezoar_ray.llm.chat import Messages
from bezoar_ray.llm.engine import complete_engine_arguments
from bezoar_ray.llm.model_identity import model_path
from bezoar_ray.recipe import load_recipe
from jobs.benchmarks import generate
from jobs.benchmarks.context import context

SEEDS, EPOCHS = 60, 3
CPUS = 8  # logical: their stages are actors, and wait for one another for ever where there are fewer
PARTS = {"chat_template_stage", "tokenize_stage", "detokenize_stage"}


def figures() -> Iterator[tuple[str, list[float]]]:
    """Ours over theirs for the rates, theirs over ours for the times."""
    import ray

    defaults = complete_engine_arguments(
        {}
    )  # sets the environment that Ray's workers inherit
    ray.init(
        address="local",
        num_cpus=CPUS,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=2**29,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield (
        "generate.vs_ray_llm_steady",
        [round(_our_rate() / _their_rate(defaults), 4) for _ in range(3)],
    )
    yield (
        "generate.vs_ray_llm",
        [round(_their_chain(defaults) / _our_chain(), 4) for _ in range(3)],
    )
    ray.shutdown()


def _our_rate() -> float:
    calls = generate.ours(generate.tiny_load())
    return generate.steady([(call.ended, call.tokens) for call in calls])


def _their_rate(defaults: dict[str, Any]) -> float:
    def ask(row: dict[str, Any]) -> Messages:
        return [{"role": "user", "content": row["prompt"]}]

    def keep(row: dict[str, Any]) -> dict[str, Any]:
        return {"at": time.monotonic(), "tokens": row["num_generated_tokens"]}

    sampling = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 128}
    rows = _passed(
        [{"prompt": prompt} for prompt in generate.prompts()],
        defaults,
        ask,
        keep,
        sampling,
    )
    return generate.steady([(row["at"], row["tokens"]) for row in rows])


def _their_chain(defaults: dict[str, Any]) -> float:
    """A pass for each call of an epoch: all rows wait for the slowest of them, and a new engine."""
    recipe = load_recipe("tiny")
    sampling = {
        "temperature": 1.0,
        "top_p": 0.95,
        "max_tokens": recipe.teachers[0].max_tokens,
    }
    operations = list(recipe.generate.evol_instruct.operations)
    seeds = [seed.task for seed in sources.read(recipe.seeds.dolly, "dolly").rows][
        :SEEDS
    ]
    rng, rows = random.Random(0), [{"parent": seed} for seed in seeds]
    began = time.monotonic()
    for _ in range(EPOCHS):
        rows = [row | {"operation": rng.choice(operations)} for row in rows]
        rows = _passed(
            rows,
            defaults,
            lambda row: evolution_prompt(row["operation"], row["parent"]),
            _kept("child"),
            sampling,
        )
        compared = [row for row in rows if not instruction_fault(row["child"])]
        compared = _passed(
            compared,
            defaults,
            lambda row: comparison_prompt(row["parent"], row["child"]),
            _kept("equal"),
            {"temperature": 0.0, "max_tokens": 16},
        )
        better = [
            row for row in compared if not row["equal"].lower().startswith("equal")
        ]
        _passed(
            better,
            defaults,
            lambda row: evolved_answer_prompt(row["child"]),
            _kept("answer"),
            sampling,
        )
        evolved = {row["parent"]: row["child"] for row in better}
        rows = [{"parent": evolved.get(row["parent"], row["parent"])} for row in rows]
    return time.monotonic() - began


def _kept(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def keep(row: dict[str, Any]) -> dict[str, Any]:
        return {
            key: row[key] for key in ("parent", "operation", "child") if key in row
        } | {name: row["generated_text"]}

    return keep


def _passed(
    rows: list[dict[str, Any]],
    defaults: dict[str, Any],
    ask: Callable[[dict[str, Any]], Messages],
    keep: Callable[[dict[str, Any]], dict[str, Any]],
    sampling: dict[str, Any],
) -> list[dict[str, Any]]:
    """One of their passes, with the settings that it is fastest with here."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    config = vLLMEngineProcessorConfig(
        model_source=model_path("tiny-teacher"),
        engine_kwargs={
            "dtype": "float32",
            "disable_log_stats": True,
            "max_num_seqs": 256,
        }
        | defaults,
        placement_group_config={"bundles": [{"CPU": 1}]},
        batch_size=32,
        log_engine_metrics=False,
        **dict.fromkeys(PARTS, {"enabled": True, "num_cpus": 0.5}),
    )
    processor = build_processor(
        config,
        preprocess=lambda row: (
            row | {"messages": ask(row), "sampling_params": sampling}
        ),
        postprocess=keep,
        preprocess_map_kwargs={"num_cpus": 0.5},
        postprocess_map_kwargs={"num_cpus": 0.5},
    )
    return processor(ray.data.from_items(rows)).take_all()


def _our_chain() -> float:
    with tempfile.TemporaryDirectory() as folder:
        run = context(
            folder,
            generate={
                "lamini": None,
                "orca": None,
                "evol_instruct": {"seeds": SEEDS, "epochs": EPOCHS},
            },
        )
        began = time.monotonic()
        stage.run(run)
        return time.monotonic() - began
