"""Evaluation through the real endpoint: real lm-eval, real conversations, the embedded judge over HTTP."""

import pytest

from bezoar_ray.errors import BezoarError
from bezoar_ray.evaluate import harness
from bezoar_ray.evaluate.evaluate_stage import identities
from bezoar_ray.llm.ledger import accounts
from bezoar_ray.recipe import load_recipe
from bezoar_ray.store import Store
from tests.evaluate.measure import measure
from tests.family import family_recipe, read_lines

NAMES = ["base", "sft", "dpo"]


@pytest.fixture(scope="module")
def measured(family, judge_url):
    """The stage's work on the family, twice: what it left, and what the second time sent."""
    recipe = family_recipe(f"judges.0.base_url={judge_url}")
    return [
        measure(recipe, family.store, family.base_url, session)
        for session in ("first", "second")
    ]


def test_scores_belong_to_how_each_checkpoint_was_served(tmp_path):
    """dpo could not be joined: it is served merged in either mode, and its scores are kept."""
    store = Store(tmp_path)
    for name, folder in (
        ("base", ""),
        ("sft", "joined/x"),
        ("sft", "merged/x"),
        ("dpo", "merged/x"),
    ):
        store.replace_json(f"checkpoints/{name}/lineage.json", {"fingerprint": name})
        if folder:
            store.replace(f"checkpoints/{name}/{folder}", "")
    joined, merged = (
        identities(load_recipe("tiny", [f"serve.mode={mode}"]), store)
        for mode in ("joined", "merged")
    )
    assert list(joined) == NAMES
    assert [joined[name] == merged[name] for name in NAMES] == [True, False, True]


@pytest.mark.slow
def test_every_checkpoint_has_every_tasks_metric_with_its_error(measured):
    tables = measured[0].summary["eval"]["harness"]
    assert measured[0].summary["eval"]["served"] == {
        "base": "base",
        "sft": "joined",
        "dpo": "joined",
    }
    assert list(tables) == NAMES
    for table in tables.values():
        assert (
            0 <= table["tiny_choice"]["acc"]["value"] <= 1
            and table["tiny_choice"]["acc"]["stderr"] > 0
        )
        assert 0 <= table["tiny_answer"]["exact_match"]["value"] <= 1


@pytest.mark.slow
def test_every_checkpoint_is_judged_on_both_turns_and_compared_with_base(
    measured, family
):
    scores = measured[0].summary["eval"]["mt_bench"]
    for name in NAMES:
        assert 1 <= scores[name]["score"] <= 10 and scores[name]["scored"] == 4
    assert "versus_base" not in scores["base"] and set(
        scores["dpo"]["versus_base"]
    ) == {"difference", "ci95"}
    assert len(read_lines(family.store, "eval/mt_bench/answers.jsonl")) == 2 * len(
        NAMES
    )
    assert len(read_lines(family.store, "eval/mt_bench/judgments.jsonl")) == 4 * len(
        NAMES
    )


@pytest.mark.slow
def test_a_second_time_nothing_is_asked_again_and_the_figures_are_the_same(
    measured, family
):
    first, second = measured
    assert first.summary == second.summary and first.files == second.files
    calls = accounts(family.store.root, "second")
    assert (
        calls["candidate"]["last_run"]["sent"]
        == calls["mt_bench_judge"]["last_run"]["sent"]
        == 0
    )
    assert calls["candidate"]["sent"] == 4 * len(NAMES)


@pytest.mark.slow
def test_an_unknown_task_is_named(family):
    recipe = family_recipe(
        "evaluate.harness.tasks.0.task=no_such_task", "evaluate.mt_bench=null"
    )
    with pytest.raises(BezoarError, match="no_such_task"):
        measure(recipe, family.store, family.base_url, "third")


@pytest.mark.slow
def test_processes_that_will_score_can_be_had_beforehand(family):
    import ray

    assert ray.get(harness.warm_up(family_recipe().evaluate.harness, family.store)) == [
        None,
        None,
    ]
