"""The filter stage: free gates, then judges, then duplicates over all rows.

Every generated row ends as accepted, rejected or failed.
"""

import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain

from bezoar_ray import layout, sources
from bezoar_ray.data.decision import Decision
from bezoar_ray.data.group_terms import group_terms
from bezoar_ray.data.sample_io import (
    ExternalSorter,
    SampleFiles,
    count_samples,
    iter_samples,
)
from bezoar_ray.data.schema import Sample
from bezoar_ray.data.spool import spool_rows
from bezoar_ray.errors import BezoarError
from bezoar_ray.filter.aggregate import combine_verdicts
from bezoar_ray.filter.counterfactuals import (
    choose_counterfactuals,
    measure_counterfactuals,
)
from bezoar_ray.filter.decontamination import (
    Benchmarks,
    finish_reading,
    start_reading,
)
from bezoar_ray.filter.dedup import Duplicates
from bezoar_ray.filter.gates import find_gate
from bezoar_ray.filter.judge_metrics import FilterMetrics
from bezoar_ray.filter.people import (
    apply_decision,
    end_by_person,
    load_decisions,
)
from bezoar_ray.filter.rate import judge_sample
from bezoar_ray.filter.selection import choose_rows
from bezoar_ray.filter.semantic_dedup import same_meaning
from bezoar_ray.llm.chat import Chat
from bezoar_ray.pipeline.actor_pool import ModelStage, run_context
from bezoar_ray.pipeline.runner import run_pipeline
from bezoar_ray.recipe import Filter, Meaning, RowJudge
from bezoar_ray.stages import StageContext, StageResult

_STATUSES = ("accepted", "rejected", "failed")

JudgeStage = ModelStage[Sample, Sample]


class NothingAccepted(BezoarError):
    """No scheme has an accepted row."""

    def __init__(self, message: str, outcome: StageResult):
        super().__init__(message)
        self.outcome = outcome
        """The files and counts of the stage, which are complete."""


def run(context: StageContext) -> StageResult:
    """Divide the generated rows into `accepted`, `rejected` and `failed`.

    Raises:
        NothingAccepted: No row is accepted. It names the gate that took most rows; the
            files are written.
    """
    # Reading the benchmarks takes a while, so it begins before the model calls.
    reading = start_reading(context.recipe)
    total = sum(
        count_samples(context.store, scheme, "generated")
        for scheme in context.recipe.schemes
    )
    with ExternalSorter(total) as sorter:
        sorter.fill(_judge_generated(context), context.progress)
        return write_filtered(sorter, context, finish_reading(reading))


def judge_stages(context: StageContext) -> list[JudgeStage]:
    """Return the model stages in which judges rate each row, one for each judge.

    There is none where the recipe sets `filter.judge` to false.
    """
    section = context.recipe.filter
    if not section.judge:
        return []
    rubrics = {scheme: section.rubric(scheme) for scheme in context.recipe.schemes}
    stages = []
    for judge in context.recipe.judges:
        process = partial(_judge, judge=judge, rubrics=rubrics, section=section)
        stages.append(ModelStage(process, judge, "judge", Sample, Sample))
    return stages


def write_filtered(
    sorter: ExternalSorter, context: StageContext, benchmarks: Benchmarks | None
) -> StageResult:
    """Decide on all judged rows, and return their files and counts.

    Raises:
        NothingAccepted: No row is accepted; the files are written.
    """
    section = context.recipe.filter
    decisions = load_decisions(context)
    # Malformed seeds are passed over: generate has counted and reported them.
    duplicates = Duplicates(
        sources.stream(context.recipe.seeds.dolly, "dolly", lambda _: None)
    )
    # Status and reason of each row. They are kept, since gates and benchmarks are slow
    # and several passes over the rows follow.
    outcomes: list[tuple[str, str]] = []

    def iter_rows() -> Iterator[Sample]:
        for sample in chain.from_iterable(sorter):
            yield apply_decision(sample, decisions.get(sample.id))

    for sample in _decide(iter_rows(), section, decisions, benchmarks):
        # Few reasons for many rows: interned, each text is in memory once.
        outcomes.append((sample.status, sys.intern(sample.reason)))
        if sample.status == "accepted":
            duplicates.add(sample)

    def iter_accepted() -> Iterator[Sample]:
        for sample, outcome in zip(iter_rows(), outcomes, strict=True):
            if outcome[0] == "accepted":
                yield sample.ended(*outcome)

    # Why each accepted row is rejected after all; empty where it stays.
    reasons = duplicates.find()
    # After the duplicates by wording, which need no model. The cap comes last: it
    # counts only rows that stay.
    if section.meaning:
        _mark_same_meaning(section.meaning, iter_accepted, reasons)
    for scheme, cap in section.cap.items():
        _cap(scheme, cap, iter_accepted, reasons)

    # Before the rows are written: these calls may fail, or reach the budget.
    counterfactuals = _rate_counterfactuals(sorter, context)

    metrics = FilterMetrics(context.recipe.schemes, context.truth)
    files = SampleFiles(context.store, context.recipe.schemes, _STATUSES)
    # In the order of ids, in which the sorter yields rows in every pass.
    remaining_outcomes = iter(outcomes)
    remaining_reasons = iter(reasons)
    for samples in sorter:
        finished = []
        for sample in samples:
            status, reason = next(remaining_outcomes)
            if status == "accepted":
                reason = next(remaining_reasons)
                status = "rejected" if reason else "accepted"
            sample = apply_decision(sample, decisions.get(sample.id))
            finished.append(sample.ended(status, reason))
            metrics.add(finished[-1])
        files.write(finished)

    result = StageResult(
        [*files.names, *counterfactuals.files],
        {
            **counterfactuals.summary,
            "data": metrics.data(),
            "judge": metrics.judges(),
            "decontaminated": benchmarks.names if benchmarks else [],
        },
    )
    if not metrics.accepted:
        raise NothingAccepted(_explain_nothing_accepted(metrics), result)
    return result


def _judge_generated(context: StageContext) -> Iterator[Sample]:
    """Yield the generated rows, as they arrive from the judges."""
    samples = chain.from_iterable(
        iter_samples(context.store, scheme, "generated")
        for scheme in context.recipe.schemes
    )
    if context.recipe.filter.judge:
        yield from _rate(samples, context)
    else:
        yield from samples


def _rate(samples: Iterable[Sample], context: StageContext) -> Iterator[Sample]:
    """Yield samples with the verdicts of all judges, as they arrive."""
    stages = judge_stages(context)
    with context.store.scratch() as scratch:
        spool = spool_rows(samples, f"{scratch}/unrated.arrow", Sample)
        yield from run_pipeline(
            [(spool, stages[0])], stages[1:], run_context(context), scratch
        )


def _rate_counterfactuals(sorter: ExternalSorter, context: StageContext) -> StageResult:
    """Have the judges rate some rows with another group; see `filter.counterfactuals`."""
    section = context.recipe.filter
    if not (section.judge and section.counterfactuals):
        return StageResult([])
    pairs = choose_counterfactuals(
        chain.from_iterable(sorter), group_terms(section), section.counterfactuals
    )
    if not pairs:
        return StageResult([], {"counterfactuals": {"pairs": 0}})
    rated = _rate([pair.swapped for pair in pairs], context)
    summary, lines = measure_counterfactuals(pairs, rated, section)
    context.store.replace(layout.COUNTERFACTUALS, lines)
    return StageResult([layout.COUNTERFACTUALS], {"counterfactuals": summary})


async def _judge(
    sample: Sample,
    chat: Chat,
    *,
    judge: RowJudge,
    rubrics: dict[str, str],
    section: Filter,
) -> AsyncIterator[Sample]:
    """Yield a row with the verdict of one more judge.

    A row that its scheme or a gate has rejected is not judged.
    """
    if sample.status == "generated" and not find_gate(sample, section.gates):
        verdict = await judge_sample(
            sample, chat, rubrics[sample.scheme], judge, section.accept_rating
        )
        sample = replace(sample, verdicts=[*sample.verdicts, verdict])
    yield sample


def _decide(
    samples: Iterable[Sample],
    section: Filter,
    decisions: Mapping[str, Decision],
    benchmarks: Benchmarks | None,
) -> Iterator[Sample]:
    """Yield the samples with the status that people, gates, judges and benchmarks give.

    A person decides in place of gates and judges.
    """
    for sample in samples:
        if sample.person:
            sample = end_by_person(sample, decisions[sample.id])
        elif sample.status == "generated":
            sample = _end_by_gates_and_judges(sample, section)
        # Looking up all n-grams of a row is slow, and a rejected row needs none.
        if sample.status == "accepted" and benchmarks:
            benchmark = benchmarks.find(sample)
            if benchmark:
                sample = sample.ended("rejected", f"contaminated: {benchmark}")
        yield sample


def _end_by_gates_and_judges(sample: Sample, section: Filter) -> Sample:
    # The judges' actors found it, too, but pass rows on unmarked.
    rejecting_gate = find_gate(sample, section.gates)
    if rejecting_gate:
        return sample.ended("rejected", rejecting_gate)
    return combine_verdicts(sample, section)


def _mark_same_meaning(
    section: Meaning, iter_accepted: Callable[[], Iterator[Sample]], reasons: list[str]
) -> None:
    """Reject rows whose instruction says in other words what an earlier one says."""
    indexes = []
    instructions = []
    for index, sample in _iter_remaining(iter_accepted, reasons):
        indexes.append(index)
        instructions.append(sample.task)
    repeats = same_meaning(instructions, section)
    for index, is_repeat in zip(indexes, repeats, strict=True):
        if is_repeat:
            reasons[index] = "same_meaning"


def _cap(
    scheme: str,
    cap: int,
    iter_accepted: Callable[[], Iterator[Sample]],
    reasons: list[str],
) -> None:
    """Reject the rows of a scheme beyond its cap."""

    def iter_scheme() -> Iterator[tuple[int, Sample]]:
        for index, sample in _iter_remaining(iter_accepted, reasons):
            if sample.scheme == scheme:
                yield index, sample

    indexes = []
    ratings = []
    for index, sample in iter_scheme():
        indexes.append(index)
        ratings.append(sample.rank)
    # A second pass: instructions are vectorized one by one and never all in memory.
    instructions = (sample.task for _, sample in iter_scheme())
    kept = choose_rows(instructions, ratings, cap)
    for index, keep in zip(indexes, kept, strict=True):
        if not keep:
            reasons[index] = "capped"


def _iter_remaining(
    iter_accepted: Callable[[], Iterator[Sample]], reasons: list[str]
) -> Iterator[tuple[int, Sample]]:
    """Yield the accepted rows that are not rejected after all, each with its index."""
    for index, sample in enumerate(iter_accepted()):
        if not reasons[index]:
            yield index, sample


def _explain_nothing_accepted(metrics: FilterMetrics) -> str:
    reasons = metrics.reasons()
    if not reasons:
        return (
            "no row was generated, so none could be accepted. "
            "See the generate stage's counts and its seeds."
        )
    gate_name, taken = reasons.most_common(1)[0]
    return (
        f"no row was accepted: the gate `{gate_name}` took {taken} of "
        f"{reasons.total()}. Read its rows in data/<scheme>/rejected and failed, "
        "then change teacher, rubric or filter.accept_rating."
    )
