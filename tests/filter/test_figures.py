from bezoar_ray.filter.figures import funnel, judging
from bezoar_ray.rows import Sample, Verdict


def sample(*statuses, right=None, status="generated", reason=""):
    verdicts = [Verdict(f"judge{n}", s) for n, s in enumerate(statuses)]
    return Sample(
        id="1", scheme="orca", operation="x", response=str(right), status=status, reason=reason, verdicts=verdicts
    )


def truth(instruction, response):
    return {"True": True, "False": False}.get(response)


def test_every_row_is_counted_where_it_ends():
    rows = [
        sample(status="accepted"),
        sample(status="rejected", reason="judge"),
        sample(status="failed", reason="missing"),
    ]
    rows += [sample(status="failed", reason=f"call: error {n}") for n in range(3)]
    found = funnel(rows)
    assert found == {"accepted": 1, "rejected": 1, "failed": 4, "reasons": {"call": 3, "judge": 1, "missing": 1}}


def test_precision_and_recall_count_rows_whose_truth_is_known():
    rows = [sample("accepted", right=True)] * 6 + [sample("accepted", right=False)] * 2
    rows += [sample("rejected", right=True)] * 3 + [sample("rejected", right=False)] + [sample("accepted", right=None)]
    rows += [sample("failed", right=True), sample()]
    assert judging(rows, truth) == {
        "judge0": {"rated": 13, "unrated": 1, "known": 12, "precision": 0.75, "recall": 0.6667}
    }


def test_further_judges_are_compared_with_the_first():
    rows = [sample("accepted", "accepted"), sample("accepted", "rejected"), sample("failed", "accepted")]
    rows += [sample("rejected", "failed")]
    found = judging(rows, None)
    assert found["judge0"] == {"rated": 3, "unrated": 1}
    assert found["judge1"] == {"rated": 3, "unrated": 1, "agreement": 0.5}


def test_without_a_judge_there_is_nothing_to_say():
    assert judging([sample()], truth) == {}
