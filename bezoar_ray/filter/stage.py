"""The filter stage: free gates, exact duplicates, the judges, near-duplicates; every row ends somewhere."""

from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import orjson

from bezoar_ray import sources
from bezoar_ray.errors import BezoarError
from bezoar_ray.fan_out import Line, fan_out
from bezoar_ray.filter.decision import decided
from bezoar_ray.filter.dedup import reject_exact, reject_near
from bezoar_ray.filter.figures import Truth, funnel, judging
from bezoar_ray.filter.gates import gate
from bezoar_ray.filter.judge import judge_sample
from bezoar_ray.recipe import SCHEMES, ModelPart
from bezoar_ray.rows import Sample, Verdict
from bezoar_ray.samples import read_samples, write_samples
from bezoar_ray.stage import Context, Outcome

_STATUSES = ("accepted", "rejected", "failed")


class NothingAccepted(BezoarError):
    """No scheme has an accepted row. `outcome` holds what was written and counted."""

    def __init__(self, message: str, outcome: Outcome):
        super().__init__(message)
        self.outcome = outcome


def run(context: Context) -> Outcome:
    """Move the rows of `generated` on to `accepted`, `rejected` and `failed`.

    Raises:
        NothingAccepted: naming the gate that took most rows; the files are written.
    """
    generated = [sample for scheme in SCHEMES for sample in read_samples(context.store, scheme, "generated")]
    samples = _filtered(generated, context)
    files, counts = [], {}
    for scheme in dict.fromkeys(sample.scheme for sample in generated):
        rows = [sample for sample in samples if sample.scheme == scheme]
        for status in _STATUSES:
            files += write_samples(context.store, scheme, status, [row for row in rows if row.status == status])
        counts[scheme] = funnel(rows)
    outcome = Outcome(files, {"data": counts, "judge": judging(samples, _truth(context))})
    if not any(sample.status == "accepted" for sample in samples):
        raise NothingAccepted(_nothing(samples), outcome)
    return outcome


def _filtered(samples: list[Sample], context: Context) -> list[Sample]:
    """All samples, each at its end; only what is still `generated` meets the next gate."""
    seeds = sources.read(context.recipe.seeds.dolly, "dolly").rows
    samples = [_gated(sample) for sample in samples]
    samples = _onward(samples, "generated", partial(reject_exact, seeds=seeds))
    samples = _onward(samples, "generated", partial(_judged, context=context))
    return _onward(samples, "accepted", partial(reject_near, seeds=seeds))


def _onward(samples: list[Sample], status: str, step: Any) -> list[Sample]:
    """A step over the rows of one status; the others stay as they are."""
    return [s for s in samples if s.status != status] + step([s for s in samples if s.status == status])


def _gated(sample: Sample) -> Sample:
    fault = gate(sample) if sample.status == "generated" else None
    return sample.ended("rejected", fault) if fault else sample


def _judged(samples: list[Sample], context: Context) -> list[Sample]:
    """The samples with the verdicts of all judges, and at their end."""
    if not context.recipe.filter.judge:
        return [sample.ended("accepted", "") for sample in samples]
    for part in context.recipe.judges:
        verdicts = _verdicts(samples, part, context)
        samples = [replace(sample, verdicts=[*sample.verdicts, verdicts[sample.id]]) for sample in samples]
    return [decided(sample, context.recipe.filter) for sample in samples]


def _verdicts(samples: list[Sample], part: ModelPart, context: Context) -> dict[str, Verdict]:
    """One judge's verdicts by sample id, in one Ray Data pass."""
    rubrics = {scheme: context.recipe.filter.rubric(scheme) for scheme in SCHEMES}
    ask = partial(_judge, part, rubrics, context.recipe.filter.accept_rating)
    line = Line(part, str(context.store.root), "judge", context.session)
    verdicts: dict[str, Verdict] = {}
    for row in fan_out([orjson.dumps(sample.to_row()) for sample in samples], ask, line):
        id, verdict = orjson.loads(row)
        verdicts[id] = Verdict(**verdict)
        context.progress.update(len(verdicts), len(samples), part.model)
    return verdicts


async def _judge(
    part: ModelPart, rubrics: dict[str, str], accept_rating: float, item: bytes, talker: Any
) -> AsyncIterator[bytes]:
    """The verdict on one sample, in an actor."""
    sample = Sample.from_row(orjson.loads(item))
    verdict = await judge_sample(sample, talker.for_row(sample.id), rubrics[sample.scheme], part, accept_rating)
    yield orjson.dumps([sample.id, asdict(verdict)])


def _truth(context: Context) -> Truth | None:
    """What the embedded world knows, where its own judge decides."""
    if context.recipe.judges[0].model != "tiny-judge":
        return None
    from bezoar_ray.tiny.truth import truth

    return truth


def _nothing(samples: list[Sample]) -> str:
    reasons = funnel(samples)["reasons"]
    if not reasons:
        return "no row was generated, so none could be accepted. See the generate stage's counts and its seeds."
    gate_name, taken = next(iter(reasons.items()))
    return (
        f"no row was accepted: the gate `{gate_name}` took {taken} of {len(samples)}. "
        "Read its rows in data/<scheme>/rejected and failed, then change teacher, rubric or filter.accept_rating."
    )
