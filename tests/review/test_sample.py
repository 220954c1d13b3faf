"""People see rows of every kind, the same ones each time."""

from collections import Counter

from bezoar_ray.data.schema import Sample, Verdict, row_id
from bezoar_ray.recipe import load_recipe
from bezoar_ray.review.sample import draw_rows, iter_reviewable, stratum_of
from bezoar_ray.store import Store
from tests.rows_on_disk import write_samples


def row(number: int, scheme="lamini", ratings=(5,), reason="", **fields) -> Sample:
    verdicts = [
        Verdict(f"j{index}", "accepted" if rating >= 4 else "rejected", float(rating))
        for index, rating in enumerate(ratings)
    ]
    fields = {"instruction": f"Task {number}", "response": "Done."} | fields
    return Sample(
        id=row_id(scheme, ratings, reason, number),
        scheme=scheme,
        operation="x",
        reason=reason,
        status="rejected" if reason else "accepted",
        verdicts=verdicts,
        **fields,
    )


KINDS = {
    "accepted": {"ratings": (5,)},
    "other scheme": {"ratings": (5,), "scheme": "orca"},
    "at the threshold": {"ratings": (4,)},
    "below the threshold": {"ratings": (3,), "reason": "judge"},
    "far below": {"ratings": (1,), "reason": "judge"},
    "judges disagree": {"ratings": (5, 1)},
    "a gate": {"ratings": (), "reason": "refusal"},
    "another gate": {"ratings": (), "reason": "truncated: 160 tokens"},
}


def rows(many=300) -> list[Sample]:
    found = [row(number) for number in range(many)]
    for kind in KINDS.values():
        found += [row(1000 + number, **kind) for number in range(4)]
    return found


def test_every_kind_of_row_is_drawn_although_one_is_common():
    drawn = draw_rows(rows(), 0, 4.0, 40)
    found = Counter(stratum_of(sample, 4.0) for sample in drawn)
    assert set(found) == {stratum_of(row(0, **kind), 4.0) for kind in KINDS.values()}
    assert len(found) == len(KINDS) and len(drawn) == 40
    assert min(found.values()) >= 3


def test_the_draw_depends_on_the_seed_and_on_nothing_else():
    drawn = draw_rows(rows(), 0, 4.0, 40)
    assert draw_rows(reversed(rows()), 0, 4.0, 40) == drawn
    assert draw_rows(rows(), 1, 4.0, 40) != drawn


def test_more_rows_begin_with_the_same_ones():
    """A second look with --rows goes on where the first one ended."""
    assert draw_rows(rows(), 0, 4.0, 60)[:40] == draw_rows(rows(), 0, 4.0, 40)


def test_a_few_rows_of_each_kind_are_in_memory():
    alive = []

    def stream():
        for number in range(5000):
            sample = row(number)
            yield sample
            alive.append(sample.id)

    drawn = draw_rows(stream(), 0, 4.0, 10)
    by_hash = sorted(alive, key=lambda id: row_id(0, "review", id))
    assert [sample.id for sample in drawn] == by_hash[:10]


def test_rows_without_a_response_are_not_shown(tmp_path):
    store = Store(tmp_path)
    write_samples(store, "lamini", "accepted", [row(1)])
    failed = row(2, ratings=(), reason="call: refused", response="")
    write_samples(store, "lamini", "failed", [failed])
    shown = iter_reviewable(store, load_recipe("tiny"))
    assert [sample.id for sample in shown] == [row(1).id]
