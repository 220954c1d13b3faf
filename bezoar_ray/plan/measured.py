"""A plan again, from what a run measured."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from bezoar_ray import layout
from bezoar_ray.errors import RecipeError
from bezoar_ray.plan.assumed import Assumed, Tokens
from bezoar_ray.plan.steps import Plan, Step, generation, plan, verdicts
from bezoar_ray.recipe import Recipe
from bezoar_ray.schemes import SCHEMES


def plan_from(recipe: Recipe, folder: str | Path) -> Plan:
    """The plan of a recipe with what a run measured in place of the assumptions. Raises as `assumed_from` does."""
    return plan(recipe, assumed_from(recipe, folder))


def assumed_from(recipe: Recipe, folder: str | Path) -> Assumed:
    """What a run, most often a pilot, measured in place of the assumptions.

    Raises:
        RecipeError: the folder holds no run.
    """
    from bezoar_ray.store import Store

    summary = Store(folder).read_json(layout.SUMMARY)
    if not summary or not summary.get("data"):
        raise RecipeError(
            f"--from {folder}: no summary.json with rows in it. Name the run directory, or bucket, of a run or pilot "
            "that has generated some"
        )
    return measured(recipe, summary, str(folder))


class Calls(TypedDict):
    """What is used of a role's calls in summary.json."""

    sent: int
    tokens_in: int
    tokens_out: int


def measured(recipe: Recipe, summary: dict[str, Any], name: str) -> Assumed:
    """The assumptions, corrected by a run's summary: yields, judge calls per row, tokens per call by role."""
    counts = {
        scheme: part
        for scheme, part in summary.get("data", {}).items()
        if part.get("generated")
    }
    candidates = (
        recipe.generate.candidates
    )  # all of which are counted as generated, and one at most as accepted
    rows = {scheme: part["generated"] / candidates for scheme, part in counts.items()}
    assumed = Assumed(measured=name)
    accepted = {
        scheme: part.get("accepted", 0) / rows[scheme]
        for scheme, part in counts.items()
    }
    assumed = replace(assumed, accepted=assumed.accepted | accepted)
    calls, total = summary.get("calls", {}), sum(rows.values()) * candidates
    if total and recipe.judges and _sent(calls.get("judge")):
        assumed = replace(
            assumed, judged=_sent(calls["judge"]) / (total * len(recipe.judges))
        )
    expected = list(generation(recipe, rows, assumed))
    scaled = _scaled(
        assumed.call,
        calls.get("teacher"),
        expected,
        (*SCHEMES, *recipe.generate.own, "own"),
    )
    scaled |= _own(scaled, calls.get("judge"), "judge") | _own(
        scaled, calls.get("candidate"), "mt_bench answer"
    )
    if recipe.evaluate.mt_bench and _sent(found := calls.get("mt_bench_judge")):
        turns = found["sent"] / sum(step.calls for step in verdicts(recipe, 1, assumed))
        expected = list(verdicts(recipe, turns, assumed))
        scaled = _scaled(
            scaled, found, expected, ("mt_bench judge", "mt_bench comparison")
        )
    return replace(assumed, call=scaled)


def _scaled(
    call: dict[str, Tokens],
    found: Calls | None,
    expected: list[Step],
    kinds: tuple[str, ...],
) -> dict[str, Tokens]:
    """Calls of several kinds, of which a run knows the sum: all by the factor that makes the sum come out."""
    if not found or not _sent(found) or not expected:
        return call
    into = found["tokens_in"] / sum(step.tokens_in for step in expected)
    out = found["tokens_out"] / sum(step.tokens_out for step in expected)
    return {
        kind: Tokens(tokens.into * into, tokens.out * out)
        if kind.startswith(kinds)
        else tokens
        for kind, tokens in call.items()
    }


def _own(call: dict[str, Tokens], found: Calls | None, kind: str) -> dict[str, Tokens]:
    """The mean tokens of a role that makes one kind of call."""
    sent = _sent(found)
    if not found or not sent:
        return {kind: call[kind]}
    return {kind: Tokens(found["tokens_in"] / sent, found["tokens_out"] / sent)}


def _sent(found: Calls | None) -> float:
    return found.get("sent", 0) if found else 0
