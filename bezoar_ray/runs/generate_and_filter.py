"""generate and filter in one go: rows go on to the judges while others are still being generated."""

from collections.abc import Iterator

from bezoar_ray.data.sample_io import ExternalSorter
from bezoar_ray.filter.decontamination import finish, start
from bezoar_ray.filter.stage import ended, judging
from bezoar_ray.generate.stage import prepare, written
from bezoar_ray.pipeline.actor_pool import run_context
from bezoar_ray.pipeline.runner import run_pipeline
from bezoar_ray.stages import StageContext, StageResult


def run(context: StageContext) -> Iterator[tuple[str, StageResult]]:
    """What each of the two stages leaves, as soon as it is whole. Raises as they do."""
    reading = start(context.recipe)
    with context.store.scratch() as scratch:
        planned = prepare(context, scratch)
        rows = run_pipeline(
            planned.heads, judging(context), run_context(context), scratch
        )
        with ExternalSorter(planned.rows) as spill:
            spill.fill(rows, context.progress)
            yield "generate", written(spill, planned, context)
            yield "filter", ended(spill, context, finish(reading))
