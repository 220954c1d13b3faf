"""generate and filter as one graph: rows reach the judges while others are generated."""

from collections.abc import Iterator

from bezoar_ray.data.sample_io import ExternalSorter
from bezoar_ray.filter.decontamination import finish_reading, start_reading
from bezoar_ray.filter.stage import judge_stages, write_filtered
from bezoar_ray.generate.stage import plan_tasks, write_generated
from bezoar_ray.pipeline.actor_pool import run_context
from bezoar_ray.pipeline.runner import run_pipeline
from bezoar_ray.stages import StageContext, StageResult


def run(context: StageContext) -> Iterator[tuple[str, StageResult]]:
    """Yield the name and the result of each of the two stages, as each is complete.

    Raises:
        BezoarError: As the two stages raise it.
    """
    # Reading the benchmarks takes a while, so it begins before the model calls.
    reading = start_reading(context.recipe)
    with context.store.scratch() as scratch:
        planned = plan_tasks(context, scratch)
        samples = run_pipeline(
            planned.inputs, judge_stages(context), run_context(context), scratch
        )
        with ExternalSorter(planned.rows) as sorter:
            sorter.fill(samples, context.progress)
            # The caller writes generate's manifest here: a filter that
            # fails redoes nothing of it.
            yield "generate", write_generated(sorter, planned, context)
            yield "filter", write_filtered(sorter, context, finish_reading(reading))
