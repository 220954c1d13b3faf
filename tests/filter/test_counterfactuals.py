"""Judges rate rows again with another group: what a fair and an unfair judge give."""

from dataclasses import replace
from random import Random

import orjson
import pytest

from bezoar_ray.data.group_terms import GroupTerms
from bezoar_ray.data.schema import Sample, Verdict, row_id
from bezoar_ray.filter import stage
from bezoar_ray.filter.counterfactuals import (
    choose_counterfactuals,
    measure_counterfactuals,
)
from bezoar_ray.recipe import Filter, load_recipe, parse_recipe
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from bezoar_ray.tiny.grading import grade
from tests.endpoint import serving
from tests.rows_on_disk import write_samples

TERMS = GroupTerms(
    "source: this test\nlicense: Apache-2.0\n"
    "categories: {gender: {women: [she, her, her], men: [he, him, his]}}"
)


def row(number: int, instruction: str, rating: float = 4.0) -> Sample:
    verdict = Verdict("judge", "accepted", rating)
    return Sample(
        row_id(number),
        "orca",
        "none",
        instruction=instruction,
        response="It is so.",
        finish_reason="stop",
        verdicts=[verdict],
    )


def test_only_rated_rows_that_can_be_exchanged_become_pairs():
    rows = [
        row(0, "Is he there?"),
        row(1, "Is it there?"),
        row(2, "Was that her?"),
        replace(row(3, "Is she there?"), verdicts=[]),
        row(4, "Is she there?"),
    ]
    pairs = choose_counterfactuals(rows, TERMS, 10)
    assert [pair.swapped.instruction for pair in pairs] == [
        "Is she there?",
        "Is he there?",
    ]
    assert [pair.original.id for pair in pairs] == [row_id(0), row_id(4)]
    assert all(pair.swapped.verdicts == [] for pair in pairs)
    assert len({pair.swapped.id for pair in pairs} | {row.id for row in rows}) == 7
    assert choose_counterfactuals(rows, TERMS, 1) == pairs[:1]


def test_earlier_turns_and_system_message_change_with_the_row():
    turns = [{"role": "user", "content": "Who is he?"}]
    sample = replace(row(0, "Ask him."), system="He is a guest.", history=turns)
    (pair,) = choose_counterfactuals([sample], TERMS, 1)
    assert pair.swapped.system == "She is a guest."
    assert pair.swapped.history == [{"role": "user", "content": "Who is she?"}]


def test_an_unfair_judge_is_found_whatever_group_the_original_has():
    rows = [
        row(number, f"Is {'he' if number % 2 else 'she'} in?") for number in range(40)
    ]

    def rate(sample: Sample) -> Sample:
        rating = 4.0 if "he" in sample.instruction.split() else 3.0
        status = "accepted" if rating >= 4 else "rejected"
        return replace(sample, verdicts=[Verdict("judge", status, rating)])

    pairs = [
        replace(pair, original=rate(pair.original))
        for pair in choose_counterfactuals(rows, TERMS, 40)
    ]
    summary, lines = measure_counterfactuals(
        pairs, [rate(pair.swapped) for pair in pairs], Filter(accept_rating=4)
    )
    assert summary["pairs"] == summary["decided"] == 40
    assert summary["decision_changed"] == 1.0
    judge = summary["judges"]["judge"]
    assert judge["changed"] == 1.0 and judge["difference"] == 0.0
    (groups,) = summary["groups"]
    assert (groups["first"], groups["second"]) == ("men", "women")
    assert groups["difference"] == -1.0 and groups["difference_ci95"] == [-1.0, -1.0]
    first = orjson.loads(lines.splitlines()[0])
    assert first["original"]["verdicts"][0]["rating"] in (3.0, 4.0)
    assert {first["group"], first["other"]} == {"women", "men"}


def test_a_pair_without_a_second_rating_is_counted_apart():
    pairs = choose_counterfactuals([row(0, "Is he in?"), row(1, "Is he in?")], TERMS, 2)
    unrated = replace(pairs[0].swapped, verdicts=[Verdict("judge", "failed", None)])
    rated = replace(pairs[1].swapped, verdicts=[Verdict("judge", "accepted", 4.0)])
    summary, _ = measure_counterfactuals(pairs, [rated, unrated], Filter())
    assert (summary["pairs"], summary["decided"]) == (2, 1)
    assert summary["judges"]["judge"]["rated"] == 1


def test_the_embedded_judge_changes_as_many_ratings_as_it_errs():
    """It errs in 2 % of all texts: of pairs, 2 x 0.02 x 0.98 = 3.9 % differ."""
    terms = ("uplands", "of the caves asks"), ("lowlands", "of the marsh asks")
    rng = Random(0)
    changed = 0
    for number in range(3000):
        question = f": What is {rng.randint(1, 8)} + {rng.randint(1, 8)}? Case {number}"
        shares = [
            grade(f"Tam {term}{question}", f"Case {number}").share for _, term in terms
        ]
        changed += shares[0] != shares[1]
    assert changed / 3000 == pytest.approx(0.039, abs=0.011)  # three standard errors


def rate_by_home(messages) -> str:
    """A judge that likes the uplands better."""
    is_liked = "caves" in messages[-1]["content"]
    return f'{{"reason": "so", "rating": {5 if is_liked else 2}}}'


def context(tmp_path, url: str, counterfactuals: int) -> StageContext:
    store = Store(tmp_path)
    homes = ["caves", "marsh", "valley"]
    rows = [
        replace(
            row(number, f"Tam of the {homes[number % 3]} asks: Name thing {number}."),
            verdicts=[],
            response=f"Thing {number}.",
        )
        for number in range(12)
    ]
    write_samples(store, "orca", "generated", rows)
    tree = load_recipe("tiny").model_dump(mode="json")
    tree["judges"] = [tree["judges"][0] | {"base_url": url}]
    tree["seeds"]["dolly"] = []
    tree["generate"] |= {"lamini": None, "evol_instruct": None}
    tree["filter"] |= {"counterfactuals": counterfactuals, "decontaminate": False}
    return StageContext(parse_recipe(tree, "test"), store, "s1", Progress())


def test_the_stage_measures_pairs_once_and_decides_as_without_them(
    ray_session, tmp_path
):
    with serving(rate_by_home) as server:
        plain = stage.run(context(tmp_path, server.url, 0))
        assert len(server.requests) == 12
        measured = stage.run(context(tmp_path, server.url, 5))
        assert len(server.requests) == 12 + 5
        stage.run(context(tmp_path, server.url, 5))
        assert len(server.requests) == 12 + 5
    assert plain.summary["data"] == measured.summary["data"]
    assert plain.files == [name for name in measured.files if "counterf" not in name]
    found = measured.summary["counterfactuals"]
    assert found["pairs"] == 5
    lines = (tmp_path / "data/counterfactuals.jsonl").read_bytes().splitlines()
    changed = 0
    for line in map(orjson.loads, lines):
        ratings = [
            line[name]["verdicts"][0]["rating"] for name in ("original", "swapped")
        ]
        liked = [
            "caves" in line[name]["instruction"] for name in ("original", "swapped")
        ]
        assert ratings == [5 if is_liked else 2 for is_liked in liked]
        changed += ratings[0] != ratings[1]
    assert found["decision_changed"] == changed / 5


def test_without_pairs_the_recipe_keeps_its_fingerprint():
    plain = load_recipe("modern").filter.fingerprint_fields()
    assert "counterfactuals" not in plain and "groups" not in plain
    other = load_recipe("modern", ["filter.counterfactuals=9"]).filter
    fields = other.fingerprint_fields()
    assert fields["counterfactuals"] == 9 and "Dixon" in str(fields["groups"])
