"""The filter stage: free gates, the judges, then duplicates over all rows; every row ends somewhere."""

import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import orjson

from bezoar_ray import sources
from bezoar_ray.data.sample_io import (
    ExternalSorter,
    SampleFiles,
    count_samples,
    iter_samples,
)
from bezoar_ray.data.schema import Sample
from bezoar_ray.data.spool import spool
from bezoar_ray.errors import BezoarError
from bezoar_ray.filter.aggregate import decided
from bezoar_ray.filter.decontamination import Benchmarks, finish, start
from bezoar_ray.filter.dedup import Duplicates
from bezoar_ray.filter.gates import gate
from bezoar_ray.filter.judge_metrics import FilterMetrics, Truth
from bezoar_ray.filter.rate import judge_sample
from bezoar_ray.filter.selection import choose
from bezoar_ray.filter.semantic_dedup import same_meaning
from bezoar_ray.pipeline.actor_pool import ModelStage, run_context
from bezoar_ray.pipeline.runner import run_pipeline
from bezoar_ray.recipe import Filter, Meaning, ModelSection
from bezoar_ray.stages import StageContext, StageResult

if TYPE_CHECKING:
    from bezoar_ray.llm.client import ModelClient

_STATUSES = ("accepted", "rejected", "failed")


class NothingAccepted(BezoarError):
    """No scheme has an accepted row. `outcome` holds what was written and counted."""

    def __init__(self, message: str, outcome: StageResult):
        super().__init__(message)
        self.outcome = outcome


def run(context: StageContext) -> StageResult:
    """Move the rows of `generated` on to `accepted`, `rejected` and `failed`.

    Raises:
        NothingAccepted: naming the gate that took most rows; the files are written.
    """
    reading = start(context.recipe)
    total = sum(
        count_samples(context.store, scheme, "generated")
        for scheme in context.recipe.schemes
    )
    with ExternalSorter(total) as spill:
        spill.fill(_judged(context), context.progress)
        return ended(spill, context, finish(reading))


def judging(context: StageContext) -> list[ModelStage]:
    """The passes in which the judges say what they think of each row; none where the recipe asks no judge."""
    part = context.recipe.filter
    rubrics = {scheme: part.rubric(scheme) for scheme in context.recipe.schemes}
    judges = context.recipe.judges if part.judge else ()
    return [
        ModelStage(partial(_judge, judge, rubrics, part), judge, "judge")
        for judge in judges
    ]


def ended(
    spill: ExternalSorter, context: StageContext, benchmarks: Benchmarks | None
) -> StageResult:
    """The files of judged rows, each at its end, and their counts. Raises as `run` does."""
    part = context.recipe.filter
    duplicates = Duplicates(
        sources.stream(context.recipe.seeds.dolly, "dolly", lambda _: None)
    )
    ends: list[
        tuple[str, str]
    ] = []  # by row: gates and benchmarks are dear, and there are several passes
    for sample in _decided(spill, part, benchmarks):
        ends.append((sample.status, sys.intern(sample.reason)))
        if sample.status == "accepted":
            duplicates.add(sample)

    def accepted() -> Iterator[Sample]:
        return (
            sample
            for sample in _ended(chain.from_iterable(spill), ends)
            if sample.status == "accepted"
        )

    reasons = duplicates.found()
    if part.meaning:
        _mark_same_meaning(part.meaning, accepted, reasons)
    for scheme, cap in part.cap.items():
        _cap(scheme, cap, accepted, reasons)
    again, rest = iter(reasons), iter(ends)
    figures = FilterMetrics(context.recipe.schemes, _truth(context))
    files = SampleFiles(context.store, context.recipe.schemes, _STATUSES)
    for rows in spill:
        samples = []
        for sample in _ended(rows, rest):
            reason = next(again) if sample.status == "accepted" else ""
            samples.append(sample.ended("rejected", reason) if reason else sample)
            figures.add(samples[-1])
        files.write(samples)
    kept_out = benchmarks.names if benchmarks else []
    outcome = StageResult(
        files.names,
        {"data": figures.data(), "judge": figures.judges(), "decontaminated": kept_out},
    )
    if not figures.accepted:
        raise NothingAccepted(_nothing(figures), outcome)
    return outcome


def _judged(context: StageContext) -> Iterator[bytes]:
    """The generated rows, as they come from the judges."""
    schemes = context.recipe.schemes
    samples = (
        sample
        for scheme in schemes
        for sample in iter_samples(context.store, scheme, "generated")
    )
    rows = (orjson.dumps(sample.to_row()) for sample in samples)
    passes = judging(context)
    if not passes:
        yield from rows
        return
    with context.store.scratch() as scratch:
        heads = [(spool(rows, f"{scratch}/generated.arrow"), passes[0])]
        yield from run_pipeline(heads, passes[1:], run_context(context), scratch)


async def _judge(
    judge: ModelSection,
    rubrics: dict[str, str],
    part: Filter,
    row: bytes,
    talker: "ModelClient",
) -> AsyncIterator[bytes]:
    """A row with the verdict of one more judge, in an actor; what a gate takes, or the scheme took, is not judged."""
    fields = orjson.loads(row)
    sample = Sample.from_row(fields)
    if sample.status == "generated" and not gate(sample, part.gates):
        chat = talker.for_row(sample.id)
        verdict = await judge_sample(
            sample, chat, rubrics[sample.scheme], judge, part.accept_rating
        )
        fields["verdicts"].append(asdict(verdict))
    yield orjson.dumps(fields)


def _decided(
    rows: Iterable[list[dict[str, Any]]], part: Filter, benchmarks: Benchmarks | None
) -> Iterator[Sample]:
    """The samples, each where gates and judges send it."""
    for row in (row for some in rows for row in some):
        sample = Sample.from_row(row)
        if sample.status != "generated":
            yield sample
        elif fault := gate(sample, part.gates):
            yield sample.ended("rejected", fault)
        else:
            sample = decided(sample, part)
            name = (
                benchmarks.found(sample)
                if benchmarks and sample.status == "accepted"
                else None
            )
            yield sample.ended("rejected", f"contaminated: {name}") if name else sample


def _ended(
    rows: Iterable[dict[str, Any]], ends: Iterable[tuple[str, str]]
) -> Iterator[Sample]:
    """The samples, each with the status and reason that `_decided` has found for it."""
    return (
        Sample.from_row(row).ended(*end) for row, end in zip(rows, ends, strict=False)
    )


def _mark_same_meaning(
    part: Meaning, accepted: Callable[[], Iterator[Sample]], reasons: list[str]
) -> None:
    """Mark the rows that ask what an earlier one asks in other words."""
    left = [(row, sample.task) for row, sample in _left(accepted, reasons)]
    for (row, _), same in zip(
        left, same_meaning([task for _, task in left], part), strict=True
    ):
        reasons[row] = "same_meaning" if same else ""


def _cap(
    scheme: str, cap: int, accepted: Callable[[], Iterator[Sample]], reasons: list[str]
) -> None:
    """Mark the rows of a scheme that are too many. `reasons` are those against the accepted rows so far, in order."""

    def left() -> Iterator[tuple[int, Sample]]:
        return (
            (row, sample)
            for row, sample in _left(accepted, reasons)
            if sample.scheme == scheme
        )

    rated = [(row, sample.rating) for row, sample in left()]
    kept = choose(
        (sample.task for _, sample in left()), [rating for _, rating in rated], cap
    )
    for (row, _), keep in zip(rated, kept, strict=True):
        reasons[row] = "" if keep else "capped"


def _left(
    accepted: Callable[[], Iterator[Sample]], reasons: list[str]
) -> Iterator[tuple[int, Sample]]:
    """The accepted rows that nothing has been found against, each with its place."""
    return ((row, sample) for row, sample in enumerate(accepted()) if not reasons[row])


def _truth(context: StageContext) -> Truth | None:
    """What the embedded world knows, where its own judge decides."""
    if context.recipe.judges[0].model != "tiny-judge":
        return None
    from bezoar_ray.tiny.truth import truth

    return truth


def _nothing(figures: FilterMetrics) -> str:
    reasons = figures.reasons()
    if not reasons:
        return "no row was generated, so none could be accepted. See the generate stage's counts and its seeds."
    (gate_name, taken), *_ = reasons.most_common()
    return (
        f"no row was accepted: the gate `{gate_name}` took {taken} of {reasons.total()}. "
        "Read its rows in data/<scheme>/rejected and failed, then change teacher, rubric or filter.accept_rating."
    )
