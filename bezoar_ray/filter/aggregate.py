"""What the judges' verdicts make of a row."""

from statistics import mean

from bezoar_ray.data.schema import Sample, Verdict
from bezoar_ray.recipe import Filter


def combine_verdicts(sample: Sample, part: Filter) -> Sample:
    """The sample at its end, by the rule of `filter.combine`; accepted where no judge was asked.

    A row that a deciding judge could not rate is failed: what the others say of it is no consent of that judge.
    """
    if not sample.verdicts:
        return sample.ended("accepted", "")
    deciding = sample.verdicts[:1] if part.combine == "first" else sample.verdicts
    if unrated := next(
        (verdict for verdict in deciding if verdict.status == "failed"), None
    ):
        return sample.ended("failed", f"unrated: {unrated.reason}")
    return (
        sample.ended("accepted", "")
        if _accepted(deciding, part)
        else sample.ended("rejected", "judge")
    )


def _accepted(verdicts: list[Verdict], part: Filter) -> bool:
    if part.combine == "mean":
        return (
            mean(verdict.rating for verdict in verdicts if verdict.rating is not None)
            >= part.accept_rating
        )
    votes = [verdict.status == "accepted" for verdict in verdicts]
    return 2 * sum(votes) > len(votes) if part.combine == "majority" else all(votes)
