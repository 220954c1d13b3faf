"""Training waits for people where the recipe says so. Stages are scripted."""

import pytest

from bezoar_ray import cli
from bezoar_ray.data.decision import Decision, now
from bezoar_ray.errors import BezoarError, ReviewNeeded
from bezoar_ray.recipe import load_recipe
from bezoar_ray.review.decisions import DecisionLog
from bezoar_ray.runs.manifest import fingerprint
from bezoar_ray.runs.orchestrator import run
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import STAGES
from bezoar_ray.store import Store
from tests import stages

ASKED = ["generate", "filter", "sft", "report"]
REVIEW = "review={required: 3, approve: true}"
OWN = "filter.decisions=review"


@pytest.fixture(autouse=True)
def scripted_stages(monkeypatch, ray_session):
    stages.script(monkeypatch)


def go(folder, *overrides):
    stages.calls.clear()
    return run(load_recipe("tiny", overrides), Store(folder), ASKED, Progress())


def decide(folder, *ids: str, decision="accept") -> None:
    DecisionLog(Store(folder)).append(
        *(Decision(id, "lamini", decision, "ada", now()) for id in ids)
    )


def test_training_starts_after_the_decisions_and_the_approval(tmp_path, capsys):
    match = "review.required is 3, and people have decided on 0 rows .*Decide on 3 more"
    with pytest.raises(ReviewNeeded, match=match):
        go(tmp_path, REVIEW)
    assert stages.calls == ["generate", "filter", "report"]
    assert Store(tmp_path).read_json("summary.json")["run"]["status"] == "review"
    decide(tmp_path, "a", "b", "c")
    decide(tmp_path, "d", decision="skip")
    with pytest.raises(ReviewNeeded, match="nobody has approved .*--approve NAME"):
        go(tmp_path, REVIEW)
    assert cli.main(["review", str(tmp_path), "--approve", "Ada L."]) == 0
    assert "Ada L. approved the rows" in capsys.readouterr().out
    summary = go(tmp_path, REVIEW)
    assert stages.calls == ["sft", "report"]
    assert summary["run"]["status"] == "done"


def test_the_exit_code_is_5_and_the_message_says_what_to_do(tmp_path, capsys):
    arguments = ["run", "tiny", "--run-dir", str(tmp_path), "--set", REVIEW]
    assert cli.main([*arguments, "--stages", ",".join(ASKED)]) == 5
    assert f"bezoar review {tmp_path} --rows 100" in capsys.readouterr().err


def test_skips_and_undone_decisions_do_not_count(tmp_path):
    decide(tmp_path, "a", "b", "c")
    decide(tmp_path, "c", decision="undo")
    with pytest.raises(ReviewNeeded, match="decided on 2 rows"):
        go(tmp_path, "review={required: 3}")
    decide(tmp_path, "c")
    go(tmp_path, "review={required: 3}")


def test_other_rows_need_another_approval(tmp_path):
    """With filter.decisions, later decisions change the rows that train."""
    settings = ("review={approve: true}", OWN)
    with pytest.raises(ReviewNeeded):
        go(tmp_path, *settings)
    assert cli.main(["review", str(tmp_path), "--approve", "ada"]) == 0
    go(tmp_path, *settings)
    decide(tmp_path, "a", decision="reject")
    with pytest.raises(ReviewNeeded, match="nobody has approved"):
        go(tmp_path, *settings)
    assert stages.calls == ["filter", "report"]


def test_rows_that_the_filter_would_change_cannot_be_approved(tmp_path, capsys):
    with pytest.raises(ReviewNeeded):
        go(tmp_path, "review={approve: true}", OWN)
    decide(tmp_path, "a", decision="reject")
    assert cli.main(["review", str(tmp_path), "--approve", "ada"]) == 2
    assert "the filter is not done with this recipe" in capsys.readouterr().err


def test_too_few_decisions_cannot_be_approved(tmp_path, capsys):
    with pytest.raises(ReviewNeeded):
        go(tmp_path, REVIEW)
    assert cli.main(["review", str(tmp_path), "--approve", "ada"]) == 5
    assert "review.required is 3" in capsys.readouterr().err


def test_a_trained_stage_asks_for_nothing_and_the_section_redoes_nothing(tmp_path):
    go(tmp_path)
    go(tmp_path, REVIEW)
    assert stages.calls == []
    with_review, without = load_recipe("tiny", [REVIEW]), load_recipe("tiny")
    for stage in STAGES:
        if stage in without.stages:
            assert fingerprint(with_review, stage) == fingerprint(without, stage)


def test_another_failure_is_still_a_failure(tmp_path):
    stages.fails["filter"] = stages.FAILED
    with pytest.raises(BezoarError, match="the gate"):
        go(tmp_path, REVIEW)
    assert Store(tmp_path).read_json("summary.json")["run"]["status"] == "failed"
