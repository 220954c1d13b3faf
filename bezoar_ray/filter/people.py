"""People's decisions on rows, which override gates and judges."""

from dataclasses import replace
from typing import Any

from bezoar_ray.data.decision import (
    Decision,
    by_row,
    read_decision_files,
    read_own_decisions,
)
from bezoar_ray.data.schema import Sample
from bezoar_ray.recipe import OWN_DECISIONS
from bezoar_ray.stages import StageContext


def load_decisions(context: StageContext) -> dict[str, Decision]:
    """Load the decisions that `filter.decisions` names, by row id.

    Raises:
        RecipeError: There is no such file, or a line is not a decision.
    """
    source = context.recipe.filter.decisions
    if not source:
        return {}
    if source == OWN_DECISIONS:
        return by_row(read_own_decisions(context.store))
    return by_row(read_decision_files(source, "filter.decisions"))


def apply_decision(sample: Sample, decision: Decision | None) -> Sample:
    """Return the row with a person's texts, marked with what the person decided.

    A row without a response failed before anybody could judge it, and stays as it is.
    """
    if decision is None or not sample.response.strip():
        return sample
    if decision.decision == "reject":
        return replace(sample, person="rejected")
    texts: dict[str, Any] = dict(decision.edits)
    return replace(sample, **texts, person="edited" if texts else "accepted")


def end_by_person(sample: Sample, decision: Decision) -> Sample:
    """Return the row with the status that a person gave it."""
    if decision.decision == "accept":
        return sample.ended("accepted", "")
    reason = f"person: {decision.reason}" if decision.reason else "person"
    return sample.ended("rejected", reason)
