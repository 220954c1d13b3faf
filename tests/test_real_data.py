"""The embedded models on real dolly, FLAN, HH-RLHF and MT-Bench files: poor results, but every stage takes them."""

from pathlib import Path

import pytest

from tests.end_to_end import SMALL, Command, summary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def seeds(folder: Path, *, mixed: bool) -> list[str]:
    ours = "{source: tiny}, " if mixed else ""
    files = {
        "dolly": f"{{source: {folder}/dolly/*.jsonl, license: CC-BY-SA-3.0}}",
        "flan": f"{{source: {folder}/flan/*.jsonl, license: Apache-2.0}}",
        "hh_rlhf": f"{{source: {folder}/hh-rlhf/*.jsonl.gz, license: MIT, limit: 200}}",
    }
    return [f"seeds.{kind}=[{ours}{source}]" for kind, source in files.items()]


def questions(folder: Path) -> list[str]:
    files = [
        f"questions={folder}/mt_bench/question.jsonl",
        f"references={folder}/mt_bench/reference_answer/gpt-4.jsonl",
    ]
    return [f"evaluate.mt_bench.{file}" for file in [*files, "limit=null"]]


def test_mixed_with_the_embedded_seeds_all_stages_end_in_a_report(
    real_data, tiny_world, tmp_path
):
    command = Command(
        tmp_path, sets=[*SMALL, *seeds(real_data, mixed=True), *questions(real_data)]
    )
    code, output = command.wait(1700)
    assert code == 0, output
    found = summary(tmp_path)
    assert {stage["status"] for stage in found["stages"].values()} == {"done"}
    assert (
        found["eval"]["mt_bench"]["dpo"]["scored"]
        + found["eval"]["mt_bench"]["dpo"]["unscored"]
        == 160
    )
    assert (
        found["data"]["orca"]["seeds_failed"] >= 84
    )  # FLAN rows whose `targets` are empty, as found
    assert "outside-world" in (tmp_path / "eval/mt_bench/judgments.jsonl").read_text()
    assert found["commercial_use"]["verdict"] == "with obligations"


def test_with_real_files_alone_the_run_ends_or_names_the_gate(
    real_data, tiny_world, tmp_path
):
    command = Command(tmp_path, sets=[*SMALL, *seeds(real_data, mixed=False)])
    code, output = command.wait(1700)
    assert code in (0, 3), output
    assert (tmp_path / "report.html").exists()
    if code == 3:
        assert "the gate `" in output
