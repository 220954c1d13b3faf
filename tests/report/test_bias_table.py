"""Metrics of social bias stand apart: against base, with intervals, in no mean."""

import pytest

from bezoar_ray.recipe import load_recipe
from bezoar_ray.report.harness_table import HarnessTable, harness

TASKS = """evaluate.harness.tasks=[{task: exam, metric: acc}, {task: pairs, metric: acc,
bias: [{metric: acc, ideal: 0.5, meaning: likelier}, {metric: score, ideal: 0}]}]"""


def metric(value: float | None, stderr: float | None = 0.03) -> dict:
    return {"value": value, "stderr": stderr, "higher_is_better": False}


@pytest.fixture
def table() -> HarnessTable:
    results = {}
    for name, value in (("base", 0.6), ("sft", 0.5), ("dpo", 0.58)):
        results[name] = {
            "exam": {"acc": {"value": value, "stderr": 0.01, "higher_is_better": True}},
            "pairs": {
                "more": metric(value),
                "score": metric(value - 0.5, None),
                "acc": metric(value),
            },
        }
    return harness(load_recipe("tiny", [TASKS]), results)


def test_a_task_on_bias_enters_neither_the_mean_nor_the_other_tables(table):
    assert [row.task for row in table.rows] == ["exam"]
    assert table.others == []
    assert table.mean["base"].value == 0.6
    assert [row.scores.metric for row in table.bias] == ["acc", "score", "more"]


def test_each_metric_has_its_ideal_and_what_it_means(table):
    acc, score, more = table.bias
    assert (acc.ideal, acc.meaning) == (0.5, "likelier")
    assert (score.ideal, score.meaning) == (0.0, "")
    assert (more.ideal, more.meaning) == (None, "lower is better")


def test_each_checkpoint_is_held_against_base_with_an_interval(table):
    acc, score, _ = table.bias
    assert set(acc.differences) == {"sft", "dpo"}
    half_width = 1.96 * (2 * 0.03**2) ** 0.5
    sft = acc.differences["sft"]
    assert sft.value == pytest.approx(-0.1)
    assert sft.ci95 == pytest.approx([-0.1 - half_width, -0.1 + half_width])
    # lm-eval gives no standard error of BBQ's scores.
    assert score.differences["sft"].ci95 is None
