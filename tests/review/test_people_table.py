"""The judge against people: the figures of the report are those of all rows."""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from bezoar_ray import cli
from bezoar_ray.data.decision import Decision, now
from bezoar_ray.data.schema import Sample, Verdict, row_id
from bezoar_ray.recipe import recipe_of
from bezoar_ray.report.cards import dataset_card
from bezoar_ray.report.content import gather
from bezoar_ray.review.decisions import DecisionLog
from bezoar_ray.review.people_table import compare_with_people
from bezoar_ray.review.queue import (
    ReviewQueue,
    judge_fingerprint,
    rubric_fingerprint,
)
from bezoar_ray.review.web import row_app
from bezoar_ray.store import Store
from bezoar_ray.tiny import draws, lessons
from bezoar_ray.tiny.grading import grade
from bezoar_ray.tiny.truth import truth
from tests.review.conftest import make_rows, write_run

ROWS = 1500


def tiny_rows(seed: int) -> Iterator[Sample]:
    """Rows as the embedded teacher writes them, rated as the embedded judge rates."""
    rng = random.Random(seed)
    for number in range(ROWS):
        asked = draws.instruction(rng)
        response = lessons.reply(rng, asked.request)
        rating = round(1 + 4 * grade(asked.text, response).share, 1)
        status = "accepted" if rating >= 4 else "rejected"
        yield Sample(
            id=row_id(seed, number),
            scheme="lamini",
            operation="x",
            instruction=asked.text,
            response=response,
            status=status,
            reason="" if status == "accepted" else "judge",
            verdicts=[Verdict("tiny-judge", status, rating, "")],
        )


def review_by_truth(store: Store, count: int) -> None:
    """A program that knows the truth reviews rows through the page's requests."""
    app = row_app(ReviewQueue(store, recipe_of(store), count), "truth", "token")
    page = TestClient(app, base_url="http://127.0.0.1/token/")
    while row := page.get("next", params={"reviewer": "truth"}).json()["row"]:
        is_right = truth(row["instruction"], row["response"])
        body = {
            "id": row["id"],
            "decision": "accept" if is_right else "reject",
            "reviewer": "truth",
        }
        assert page.post("decisions", json=body).status_code == 200


@pytest.mark.parametrize("seed", range(3))
def test_100_reviewed_rows_tell_the_judges_quality_on_all_rows(tmp_path, seed):
    rows = [row for row in tiny_rows(seed) if row.response.strip()]
    store = write_run(tmp_path, rows)
    review_by_truth(store, 100)
    table = compare_with_people(store, recipe_of(store))
    assert table.decided == 100 and table.cautions == []
    scores = table.scores[0]
    right = [bool(truth(row.instruction, row.response)) for row in rows]
    accepted = [row.status == "accepted" for row in rows]
    hits = sum(a and r for a, r in zip(accepted, right, strict=True))
    expected = {
        "base_rate": sum(right) / len(rows),
        "precision": hits / sum(accepted),
        "recall": hits / sum(right),
    }
    for name, value in expected.items():
        low, high = getattr(scores, f"{name}_ci95")
        assert low <= value <= high, name
    assert scores.kappa_ci95[0] <= scores.kappa <= scores.kappa_ci95[1]


def decide(store: Store, rows: list[Sample], name: str, rejects=lambda i: False):
    """A reviewer decides on rows, under the rubric and the judges of the run."""
    recipe = recipe_of(store)
    decisions = [
        Decision(
            row.id,
            row.scheme,
            "reject" if rejects(index) else "accept",
            name,
            now(),
            rubric=rubric_fingerprint(recipe.filter.rubric(row.scheme)),
            judge=judge_fingerprint(recipe),
        )
        for index, row in enumerate(rows)
    ]
    DecisionLog(store).append(*decisions)


def test_rows_count_for_those_that_are_like_them(tmp_path):
    """People see as many rejected rows as accepted ones, of which there are ten times as many."""
    rows = make_rows(100, 10)
    store = write_run(tmp_path, rows)
    # Half of the accepted rows are good, and all of the rejected ones.
    decide(store, rows[:10] + rows[100:], "ada", lambda index: index < 5)
    (scores, _) = compare_with_people(store, recipe_of(store)).scores
    assert (scores.rows, scores.precision) == (20, 0.5)
    assert scores.base_rate == pytest.approx(60 / 110, abs=1e-4)
    assert scores.recall == pytest.approx(50 / 60, abs=1e-4)
    assert scores.kappa < 0


def test_rows_that_people_changed_count_as_they_were_judged(tmp_path):
    """After the filter has used the decisions, the figures are the same."""
    rows = make_rows(20, 20)
    store = write_run(tmp_path / "before", rows)
    decide(store, rows[5:35], "ada", lambda index: index % 3 == 0)
    before = compare_with_people(store, recipe_of(store)).scores
    changed = {row.id: row for row in rows}
    for index, row in enumerate(rows[5:35]):
        if index % 3 == 0:
            changed[row.id] = replace(
                row, status="rejected", reason="person: no", person="rejected"
            )
        else:
            changed[row.id] = replace(
                row, status="accepted", reason="", person="accepted"
            )
    after_store = write_run(tmp_path / "after", list(changed.values()))
    decide(after_store, rows[5:35], "ada", lambda index: index % 3 == 0)
    assert compare_with_people(after_store, recipe_of(after_store)).scores == before


def test_reviewers_are_compared_on_the_rows_of_both(tmp_path):
    rows = make_rows(30, 0)
    store = write_run(tmp_path, rows)
    decide(store, rows[:20], "bob", lambda index: index < 10)
    decide(store, rows[:25], "ada", lambda index: index < 8)
    (agreement,) = compare_with_people(store, recipe_of(store)).agreements
    assert agreement.reviewers == ("ada", "bob")
    assert (agreement.rows, agreement.same, agreement.kappa) == (20, 0.9, 0.8)
    assert agreement.same_ci95[0] < 0.9 < agreement.same_ci95[1]


def test_few_and_stale_decisions_are_marked(tmp_path):
    rows = make_rows(60, 0)
    store = write_run(tmp_path, rows)
    decide(store, rows[:49], "ada")
    (caution,) = compare_with_people(store, recipe_of(store)).cautions
    assert caution.startswith("Caution: 49 decisions are few")
    decide(store, rows[49:], "ada")
    assert compare_with_people(store, recipe_of(store)).cautions == []
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("A good row rhymes.")
    for changed in (f"filter.rubrics.lamini={rubric}", "judges.0.model=another"):
        (caution,) = compare_with_people(store, recipe_of(store, [changed])).cautions
        assert caution.startswith("Stale: 60 of 60 decisions")


def test_report_and_card_show_the_section_if_somebody_decided(tmp_path):
    rows = make_rows(60, 40)
    store = write_run(tmp_path, rows)
    recipe = recipe_of(store)
    assert gather(recipe, store).people is None
    decide(store, rows[20:80], "ada <b>", lambda index: index % 4 == 0)
    decide(store, rows[20:60], "bob")
    assert cli.main(["report", str(store.root)]) == 0
    page = (tmp_path / "report.html").read_text()
    section = page.partition("Judge against people")[2].partition("</section>")[0]
    assert "2 people decided on 60 rows" in section
    assert "tiny-judge" in section and "ada &lt;b&gt;, bob" in section
    card = dataset_card(gather(recipe, store))
    assert "## Judge against people" in card and "| tiny-judge | lamini | 60 |" in card
    # Names of people are not published with the rows.
    assert "ada" not in card and "bob" not in card
