"""The decision on a row from the verdicts of its judges."""

from statistics import mean

from bezoar_ray.data.schema import Sample, Verdict
from bezoar_ray.recipe import Filter


def combine_verdicts(sample: Sample, section: Filter) -> Sample:
    """Return the sample with the status that follows from its verdicts.

    `filter.combine` is the rule.

    A sample without verdicts is accepted: the recipe has no judge. If a deciding judge
    could not rate the row, the row fails, whatever the other judges say.
    """
    if not sample.verdicts:
        return sample.ended("accepted", "")
    deciding = sample.verdicts
    if section.combine == "first":
        deciding = sample.verdicts[:1]
    for verdict in deciding:
        if verdict.status == "failed":
            return sample.ended("failed", f"unrated: {verdict.reason}")
    if _is_accepted(deciding, section):
        return sample.ended("accepted", "")
    return sample.ended("rejected", "judge")


def _is_accepted(verdicts: list[Verdict], section: Filter) -> bool:
    if section.combine == "mean":
        ratings = [verdict.rating for verdict in verdicts if verdict.rating is not None]
        return mean(ratings) >= section.accept_rating
    votes = [verdict.status == "accepted" for verdict in verdicts]
    if section.combine == "majority":
        # A tie is no majority.
        return 2 * sum(votes) > len(votes)
    return all(votes)
