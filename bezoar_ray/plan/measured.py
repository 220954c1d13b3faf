"""A plan whose assumptions are replaced by the measurements of a run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from bezoar_ray import layout
from bezoar_ray.errors import RecipeError
from bezoar_ray.plan.assumed import Assumed, Tokens
from bezoar_ray.plan.steps import Plan, Step, generation, plan, verdicts
from bezoar_ray.recipe import Recipe
from bezoar_ray.schemes import SCHEMES


class Calls(TypedDict):
    """The fields of a role's calls in summary.json that are used here."""

    sent: int
    tokens_in: int
    tokens_out: int


def plan_from(recipe: Recipe, folder: str | Path) -> Plan:
    """Plan a recipe with the measurements of a run instead of the assumptions.

    Raises:
        RecipeError: as `assumed_from` does.
    """
    return plan(recipe, assumed_from(recipe, folder))


def assumed_from(recipe: Recipe, folder: str | Path) -> Assumed:
    """The assumptions, as far as possible replaced by a run's measurements.

    Args:
        recipe: what is planned.
        folder: the run directory, most often of a pilot, or its URL.

    Raises:
        RecipeError: the run has not generated any rows.
    """
    from bezoar_ray.store import Store

    summary = Store(folder).read_json(layout.SUMMARY)
    if not summary or not summary.get("data"):
        raise RecipeError(
            f"--from {folder}: no summary.json with rows in it. Name the run "
            "directory, or bucket, of a run or pilot that has generated some"
        )
    return measured(recipe, summary, str(folder))


def measured(recipe: Recipe, summary: dict[str, Any], name: str) -> Assumed:
    """The assumptions, corrected by a run's summary.

    Corrected are the share of accepted rows, the judge calls for each row, and the
    tokens of a call by role.

    Args:
        recipe: what is planned.
        summary: the run's summary.json.
        name: the run, for the text of the plan.
    """
    assumed = Assumed(measured=name)
    # All candidates of an instruction count as generated, and at most one as accepted.
    candidates = recipe.generate.candidates
    rows: dict[str, float] = {}
    accepted = dict(assumed.accepted)
    for scheme, counts in summary.get("data", {}).items():
        if counts.get("generated"):
            rows[scheme] = counts["generated"] / candidates
            accepted[scheme] = counts.get("accepted", 0) / rows[scheme]
    assumed = replace(assumed, accepted=accepted)

    calls_by_role = summary.get("calls", {})
    generated = sum(rows.values()) * candidates
    judge_calls = _sent_calls(calls_by_role, "judge")
    if generated and recipe.judges and judge_calls:
        pairs = summary.get("counterfactuals", {}).get("pairs", 0)
        of_rows = judge_calls["sent"] - pairs * len(recipe.judges)
        judged = of_rows / (generated * len(recipe.judges))
        assumed = replace(assumed, judged=judged)

    tokens = _scale_tokens(
        assumed.call,
        _sent_calls(calls_by_role, "teacher"),
        list(generation(recipe, rows, assumed)),
        (*SCHEMES, *recipe.generate.own, "own"),
    )
    if judge_calls:
        tokens["judge"] = _mean_tokens(judge_calls)
    candidate_calls = _sent_calls(calls_by_role, "candidate")
    if candidate_calls:
        tokens["mt_bench answer"] = _mean_tokens(candidate_calls)
    bench_calls = _sent_calls(calls_by_role, "mt_bench_judge")
    if recipe.evaluate.mt_bench and bench_calls:
        calls_per_turn = sum(step.calls for step in verdicts(recipe, 1, assumed))
        turns = bench_calls["sent"] / calls_per_turn
        tokens = _scale_tokens(
            tokens,
            bench_calls,
            list(verdicts(recipe, turns, assumed)),
            ("mt_bench judge", "mt_bench comparison"),
        )
    return replace(assumed, call=tokens)


def _sent_calls(calls_by_role: dict[str, Calls], role: str) -> Calls | None:
    """The calls of a role; None if it has sent none."""
    calls = calls_by_role.get(role)
    if calls and calls.get("sent"):
        return calls
    return None


def _scale_tokens(
    tokens: dict[str, Tokens],
    calls: Calls | None,
    expected: Sequence[Step],
    kinds: tuple[str, ...],
) -> dict[str, Tokens]:
    """Scale the tokens of several kinds of calls, of which a run counted only the sum.

    Args:
        tokens: of a call, by kind.
        calls: what the run counted.
        expected: the same calls by the assumptions.
        kinds: beginnings of the kinds that are scaled, all by the same factor.
    """
    if not calls or not expected:
        return dict(tokens)
    input_factor = calls["tokens_in"] / sum(step.tokens_in for step in expected)
    output_factor = calls["tokens_out"] / sum(step.tokens_out for step in expected)
    scaled = dict(tokens)
    for kind, assumed in tokens.items():
        if kind.startswith(kinds):
            scaled[kind] = Tokens(
                assumed.into * input_factor, assumed.out * output_factor
            )
    return scaled


def _mean_tokens(calls: Calls) -> Tokens:
    """The mean tokens of a call, for a role with only one kind of call."""
    sent = calls["sent"]
    return Tokens(calls["tokens_in"] / sent, calls["tokens_out"] / sent)
