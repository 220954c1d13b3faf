import os

import pytest

from bezoar_ray.errors import BezoarError, BudgetReached, RecipeError
from bezoar_ray.recipe import load_recipe
from bezoar_ray.runs import orchestrator as run_module
from bezoar_ray.runs.orchestrator import parse_stages, report_again, run
from bezoar_ray.runs.summary import headline
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import STAGES, StageResult
from bezoar_ray.store import Store
from tests import stages

SOME = ["generate", "filter", "sft", "report"]


@pytest.fixture(autouse=True)
def scripted_stages(monkeypatch, ray_session):
    stages.script(monkeypatch)


def go(tmp_path, *overrides, asked=SOME):
    return run(load_recipe("tiny", overrides), Store(tmp_path), asked, Progress())


def test_stages_run_in_order_and_their_summaries_are_merged(tmp_path):
    summary = go(tmp_path)
    assert stages.calls == SOME
    assert summary["run"]["status"] == "done"
    assert summary["data"]["lamini"] == {
        "generate": 1,
        "filter": 1,
        "sft": 1,
        "report": 1,
    }
    assert summary == Store(tmp_path).read_json("summary.json")


def test_a_stage_that_the_recipe_lacks_is_neither_run_nor_asked_for(tmp_path):
    go(tmp_path, asked=list(STAGES))
    assert stages.calls == [name for name in STAGES if name != "rm"]
    with pytest.raises(RecipeError, match="no stage 'rm', because its section `rm`"):
        go(tmp_path, asked=["rm"])


def test_a_reward_model_that_is_added_redoes_no_other_training(tmp_path):
    go(tmp_path, asked=list(STAGES))
    before = Store(tmp_path).read_json("summary.json")["stages"]
    stages.calls.clear()
    summary = go(tmp_path, "rm={}", asked=list(STAGES))
    assert stages.calls == ["rm", "evaluate", "report"]
    for name in ("generate", "filter", "sft", "hh-sft", "align"):
        fingerprint = summary["stages"][name]["fingerprint"]
        assert fingerprint == before[name]["fingerprint"]
    stages.calls.clear()
    go(tmp_path, "rm={epochs: 3}", asked=["rm"])
    assert stages.calls == ["rm"]
    assert Store(tmp_path).exists("align.txt")
    assert not Store(tmp_path).exists("evaluate.txt")


def test_stages_that_flow_into_one_another_are_carried_out_as_one_with_a_manifest_each(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(run_module, "TOGETHER", {("generate", "filter"): "tests.flow"})
    stages.fails["filter"] = stages.FAILED
    with pytest.raises(BezoarError, match="duplicate"):
        go(tmp_path)
    found = Store(tmp_path).read_json("summary.json")["stages"]
    assert {name: entry["status"] for name, entry in found.items()} == {
        "generate": "done",
        "filter": "failed",
    }
    stages.fails.clear()
    stages.calls.clear()
    assert go(tmp_path)["run"]["status"] == "done"
    assert stages.calls == [
        "filter",
        "sft",
        "report",
    ]  # generate is done, so filter goes alone
    go(tmp_path, "seed=1")
    assert stages.calls[3:] == ["generate", "filter", "sft", "report"]


def test_a_budget_without_a_price_is_refused(tmp_path):
    endpoint = [
        "judges.0.model=gpt",
        "judges.0.base_url=http://127.0.0.1:1/v1",
        "evaluate.mt_bench=null",
    ]
    with pytest.raises(
        RecipeError, match="filter.budget_usd is set, but 'gpt' has no `prices`"
    ):
        go(tmp_path, *endpoint, "filter.budget_usd=1")
    with pytest.raises(
        RecipeError, match="budget_usd is set, but 'gpt' has no `prices`"
    ):
        go(tmp_path, *endpoint, "budget_usd=1")
    go(tmp_path, *endpoint, "budget_usd=1", "judges.0.prices={input: 1, output: 2}")


def test_what_is_done_is_skipped(tmp_path):
    go(tmp_path)
    stages.calls.clear()
    summary = go(tmp_path)
    assert stages.calls == []
    assert all(stage["skipped"] for stage in summary["stages"].values())


def test_a_change_redoes_its_stage_and_what_follows(tmp_path):
    go(tmp_path)
    stages.calls.clear()
    go(tmp_path, "filter.accept_rating=5")
    assert stages.calls == ["filter", "sft", "report"]


def test_a_lost_file_redoes_its_stage_and_what_follows(tmp_path):
    go(tmp_path)
    stages.calls.clear()
    (tmp_path / "filter.txt").unlink()
    go(tmp_path)
    assert stages.calls == ["filter", "sft", "report"]


def test_a_failed_stage_keeps_what_is_done_and_writes_the_report(tmp_path):
    stages.fails["filter"] = stages.FAILED
    with pytest.raises(BezoarError, match="duplicate"):
        go(tmp_path)
    summary = Store(tmp_path).read_json("summary.json")
    assert summary["run"]["status"] == "failed"
    assert {name: stage["status"] for name, stage in summary["stages"].items()} == {
        "generate": "done",
        "filter": "failed",
    }
    assert stages.calls == ["generate", "filter", "report"]
    stages.fails.clear()
    stages.calls.clear()
    assert go(tmp_path)["run"]["status"] == "done"
    assert stages.calls == ["filter", "sft", "report"]


def test_a_reached_budget_and_an_interrupt_are_told_apart(tmp_path):
    stages.fails["filter"] = stages.BUDGET
    with pytest.raises(BudgetReached):
        go(tmp_path)
    assert Store(tmp_path).read_json("summary.json")["run"]["status"] == "budget"
    stages.fails["filter"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path)
    assert Store(tmp_path).read_json("summary.json")["run"]["status"] == "interrupted"


def test_a_missing_key_is_named_before_any_work(tmp_path):
    with pytest.raises(RecipeError, match="set the environment variable NO_SUCH_KEY"):
        go(tmp_path, "judges.0.api_key_env=NO_SUCH_KEY")
    assert stages.calls == []


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (
            {
                "loss_last": 1.234,
                "heldout_accuracy": 0.81,
                "heldout_ci95": [0.7222, 0.8749],
            },
            "dpo loss_last 1.23, dpo heldout_accuracy 81.0 % (72.2 to 87.5)",
        ),
        ({"heldout_accuracy": 0.81}, "dpo heldout_accuracy 81.0 %"),
        (
            {"loss_last": 1.234, "heldout_accuracy": None, "heldout_ci95": None},
            "dpo loss_last 1.23",
        ),
        ({"heldout_accuracy": None}, "done"),
    ],
)
def test_a_trained_stage_ends_with_its_scores_where_there_are_any(part, said):
    assert headline(StageResult([], {"train": {"dpo": part}})) == said


def test_stages_are_asked_for_by_name():
    assert parse_stages("report,sft") == ["sft", "report"]
    with pytest.raises(RecipeError, match="no stage 'train'"):
        parse_stages("train")


def test_a_stage_without_what_it_reads_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(RecipeError, match="missing: --stages generate,filter,sft"):
        go(tmp_path, asked=["sft"])


def test_a_refused_command_leaves_a_finished_run_as_it_was(tmp_path):
    go(tmp_path)
    before = {
        name: (tmp_path / name).read_bytes() for name in ("recipe.yaml", "summary.json")
    }
    with pytest.raises(RecipeError, match="Add what is missing: --stages filter,sft"):
        go(tmp_path, "filter.accept_rating=5", asked=["sft"])
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_cluster_without_room_leaves_what_a_finished_run_has_made(
    tmp_path, monkeypatch
):
    go(tmp_path)
    kept = [
        *tmp_path.rglob("*.txt"),
        *tmp_path.rglob("manifests/*"),
        tmp_path / "recipe.yaml",
        tmp_path / "summary.json",
    ]
    before = {path: path.read_bytes() for path in kept}
    stages.calls.clear()

    def refuse(recipe, stages):
        raise RecipeError("no node of the cluster has that")

    monkeypatch.setattr("bezoar_ray.runs.orchestrator.check_stages", refuse)
    with pytest.raises(RecipeError, match="no node of the cluster has that"):
        go(tmp_path, "filter.accept_rating=5")
    assert {
        path: path.read_bytes() for path in before
    } == before and stages.calls == []  # no report of it either
    assert all(entry["skipped"] for entry in go(tmp_path)["stages"].values())


def test_the_summary_tells_of_stages_that_an_earlier_command_did(tmp_path):
    go(tmp_path, asked=["generate", "filter"])
    found = {
        name: entry["skipped"]
        for name, entry in go(tmp_path, asked=["sft"])["stages"].items()
    }
    assert found == {"generate": True, "filter": True, "sft": False}
    assert list(go(tmp_path, "seed=1", asked=["generate"])["stages"]) == ["generate"]


def test_a_report_written_again_leaves_the_runs_status(tmp_path):
    stages.fails["sft"] = stages.FAILED
    with pytest.raises(BezoarError):
        go(tmp_path)
    before = (tmp_path / "summary.json").read_bytes()
    report_again(load_recipe("tiny"), Store(tmp_path), Progress())
    assert stages.calls[-1] == "report"
    assert (tmp_path / "summary.json").read_bytes() == before


def test_a_fault_that_nobody_foresaw_is_one_line_and_its_traceback_is_in_the_log(
    tmp_path,
):
    stages.fails["filter"] = ZeroDivisionError("division by zero")
    with pytest.raises(
        BezoarError,
        match=r"ZeroDivisionError: division by zero\. The traceback is in .*driver\.log",
    ):
        go(tmp_path)
    assert "Traceback" in (tmp_path / "logs/driver.log").read_text()


def test_a_missing_file_is_named_before_any_work(tmp_path):
    with pytest.raises(RecipeError, match=r"filter\.rubrics\.orca: no file 'no\.txt'"):
        go(tmp_path, "filter.rubrics.orca=no.txt")
    assert stages.calls == []


def test_mt_benchs_judge_must_have_an_endpoint(tmp_path):
    with pytest.raises(
        RecipeError, match=r"evaluate\.mt_bench\.judge: 'big/judge' needs a `base_url`"
    ):
        go(tmp_path, "evaluate.mt_bench.judge={model: big/judge}", asked=["evaluate"])


def test_library_noise_goes_to_the_log(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(stages, "noise", lambda: os.write(2, b"a library's warning\n"))
    go(tmp_path)
    assert "a library's warning" not in capfd.readouterr().err
    assert "a library's warning" in (tmp_path / "logs/driver.log").read_text()


def test_a_reward_judge_is_checked_before_any_work(tmp_path):
    judges = "judges=[{model: tiny-judge}, {reward: %s}]"
    with pytest.raises(RecipeError, match=r"judges\.1\.reward: .*config\.json"):
        go(tmp_path / "run", judges % (tmp_path / "missing"))
    own = tmp_path / "run/checkpoints/rm"
    (own / "merged").mkdir(parents=True)
    weights = {"score_weights": {"helpfulness": 1.0}}
    Store(own).replace_json("merged/config.json", weights)
    with pytest.raises(RecipeError, match="is in this run directory.*--run-dir"):
        go(tmp_path / "run", judges % own)
    assert stages.calls == []
    go(tmp_path / "another", judges % own)
    assert stages.calls == SOME
