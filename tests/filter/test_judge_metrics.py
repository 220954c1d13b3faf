from bezoar_ray.data.schema import Sample, Verdict
from bezoar_ray.filter.judge_metrics import FilterMetrics


def sample(*statuses, right=None, status="generated", reason=""):
    ratings = {"accepted": 5.0, "rejected": 2.0, "failed": None}
    verdicts = [Verdict(f"judge{n}", s, ratings[s]) for n, s in enumerate(statuses)]
    return Sample(
        id="1",
        scheme="orca",
        operation="x",
        response=str(right),
        status=status,
        reason=reason,
        verdicts=verdicts,
    )


def counted(rows, truth=None) -> FilterMetrics:
    figures = FilterMetrics(["orca"], truth)
    for row in rows:
        figures.add(row)
    return figures


def judging(rows, truth):
    return counted(rows, truth).judges()


def truth(instruction, response):
    return {"True": True, "False": False}.get(response)


def test_every_row_is_counted_where_it_ends():
    rows = [
        sample(status="accepted"),
        sample(status="rejected", reason="judge"),
        sample(status="failed", reason="missing"),
    ]
    rows += [sample(status="failed", reason=f"call: error {n}") for n in range(3)]
    found = counted(rows)
    assert found.data()["orca"] == {
        "accepted": 1,
        "rejected": 1,
        "failed": 4,
        "reasons": {"call": 3, "judge": 1, "missing": 1},
    }
    assert found.accepted == 1 and found.reasons().total() == 5


def test_precision_and_recall_count_rows_whose_truth_is_known():
    rows = [sample("accepted", right=True)] * 6 + [sample("accepted", right=False)] * 2
    rows += (
        [sample("rejected", right=True)] * 3
        + [sample("rejected", right=False)]
        + [sample("accepted", right=None)]
    )
    rows += [sample("failed", right=True), sample()]
    assert judging(rows, truth) == {
        "judge0": {
            "rated": 13,
            "unrated": 1,
            "known": 12,
            "precision": 0.75,
            "recall": 0.6667,
        }
    }


def test_further_judges_are_compared_with_the_first():
    rows = [
        sample("accepted", "accepted"),
        sample("accepted", "rejected"),
        sample("failed", "accepted"),
    ]
    rows += [sample("rejected", "failed")]
    found = judging(rows, None)
    assert found["judge0"] == {"rated": 3, "unrated": 1}
    assert found["judge1"] == {
        "rated": 3,
        "unrated": 1,
        "agreement": 0.5,
        "kappa": 0.0,
        "rating_kappa": 0.0,
    }


def test_kappa_is_agreement_beyond_chance():
    """By hand: both accept 20, both reject 15, 5 and 10 differ: 0.7 observed, 0.5 by chance."""
    rows = [sample("accepted", "accepted")] * 20 + [sample("rejected", "rejected")] * 15
    rows += [sample("accepted", "rejected")] * 5 + [sample("rejected", "accepted")] * 10
    assert judging(rows, None)["judge1"]["kappa"] == 0.4


def test_ratings_that_differ_by_little_agree_more_than_decisions_do():
    rows = [
        Sample(
            id="1",
            scheme="orca",
            operation="x",
            verdicts=[Verdict("a", *a), Verdict("b", *b)],
        )
        for a, b in [
            (("accepted", 4.0), ("rejected", 3.0)),
            (("rejected", 1.0), ("rejected", 1.0)),
            (("accepted", 5.0), ("accepted", 5.0)),
            (("rejected", 3.0), ("accepted", 4.0)),
        ]
    ]
    found = judging(rows, None)["b"]
    assert found["kappa"] == 0.0 and found["rating_kappa"] > 0.8


def test_without_a_judge_there_is_nothing_to_say():
    assert judging([sample()], truth) == {}
