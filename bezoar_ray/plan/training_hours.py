"""The training stages of a recipe: what they train on, and the GPU hours that this takes."""

from collections.abc import Iterator
from dataclasses import dataclass

from bezoar_ray.plan.assumed import Assumed
from bezoar_ray.plan.memory import (
    MemoryNeed,
    training_need,
    training_pass,
    worker_memory,
)
from bezoar_ray.plan.speeds import training_speed
from bezoar_ray.recipe import Recipe, SourceSection, Training
from bezoar_ray.runtime.gpus import Gpu
from bezoar_ray.runtime.model_shapes import model_shape


@dataclass(frozen=True)
class TrainingWork:
    """What one stage trains on."""

    stage: str
    what: str
    """In words, with the number of rows."""
    rows: float
    row_tokens: float
    """Mean tokens of a row; of a pair, both sides'."""
    passes: float = 1.0
    """Times the work of a row in plain training: a reference model adds its forward pass."""

    def steps(self, part: Training) -> float:
        """Optimiser steps of all epochs."""
        return self.rows / part.batch * part.epochs

    def tokens(self, part: Training) -> float:
        """Tokens of all epochs."""
        return self.rows * self.row_tokens * part.epochs


def works(
    recipe: Recipe, rows: dict[str, float], assumed: Assumed
) -> Iterator[TrainingWork]:
    """The training stages of a recipe, given the rows that each scheme generates."""
    kept = {name: _kept(recipe, name, rows, assumed) for name in recipe.sft_order}
    accepted = sum(kept.values())
    tokens = sum(count * _row_tokens(name, assumed) for name, count in kept.items())
    yield TrainingWork(
        "sft",
        f"{accepted:,.0f} accepted rows",
        accepted,
        tokens / accepted if accepted else 0.0,
    )
    if not recipe.seeds.hh_rlhf:
        return
    heldout = recipe.evaluate.heldout_pairs
    pairs = (limit_of(recipe.seeds.hh_rlhf) or assumed.open_rows + heldout) - heldout
    chosen, both = _limited(recipe.hh_sft, pairs), _limited(recipe.align, pairs)
    yield TrainingWork("hh-sft", f"{chosen:,} conversations", chosen, assumed.hh_row)
    if recipe.align.method != "none":
        # Both sides, through the policy and (forward alone, a third of the work) through the reference.
        passes = 4 / 3 if recipe.align.method in ("dpo", "kto") else 1.0
        yield TrainingWork("align", f"{both:,} pairs", both, 2 * assumed.hh_row, passes)


def gpu_hours(recipe: Recipe, work: TrainingWork, gpu: Gpu) -> float:
    """Hours of all GPUs of a stage together; none without GPUs, or without rows.

    Speeds are those of flat passes in bfloat16, and a worker computes on one GPU, however many it has.
    """
    part = recipe.training(work.stage)
    if not (part.gpus_per_worker and work.rows):
        return 0.0
    compiled = part.compiles(work.steps(part))
    found = training_pass(
        recipe, work.stage, worker_memory(recipe, work.stage, gpu), compiled
    )
    tokens = (
        part.share * work.row_tokens
    )  # of a worker's step, which is one pass where it fits
    if found:
        size = found.size
        tokens = min(
            tokens, size.rows * work.row_tokens if size.rows else size.tokens or 0
        )
    recomputed = found is None or found.recomputed
    speed = training_speed(
        model_shape(recipe.base.model), gpu, tokens, compiled, recomputed
    )
    return (
        work.passes * work.tokens(part) / speed / 3600 * max(1.0, part.gpus_per_worker)
    )


def need(recipe: Recipe, work: TrainingWork, gpu: Gpu) -> MemoryNeed:
    """What a training stage takes of a GPU's memory."""
    part = recipe.training(work.stage)
    return training_need(recipe, work.stage, gpu, part.compiles(work.steps(part)))


def limit_of(sources: tuple[SourceSection, ...]) -> int | None:
    """The most rows that sources give; None where one of them has no limit."""
    limits = [source.limit for source in sources if source.limit]
    return sum(limits) if len(limits) == len(sources) > 0 else None


def _kept(recipe: Recipe, name: str, rows: dict[str, float], assumed: Assumed) -> float:
    """Rows of a data set that are trained on."""
    if source := recipe.sft.data.get(name):
        found = float(source.limit or assumed.open_rows)
    else:
        found = rows.get(name, 0.0) * assumed.accepted.get(name, assumed.own_accepted)
    return min(found, recipe.filter.cap.get(name, found), recipe.sft.limit or found)


def _row_tokens(scheme: str, assumed: Assumed) -> float:
    """Tokens of a training row: the call that wrote its answer holds both its sides."""
    tokens = assumed.tokens(f"{scheme} answer")
    return tokens.into + tokens.out


def _limited(part: Training, rows: int) -> int:
    return max(0, min(part.limit or rows, rows))
