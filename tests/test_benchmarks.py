"""The benchmarks for a GPU run on a CPU as well, with small shapes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
FOLDER = Path(__file__).parent.parent / "jobs/benchmarks"


def lines_of(script: str, *arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(FOLDER / script), "--tiny", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return [
        json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')
    ]


def test_training_is_measured_each_method_by_trl_and_by_our_own_stages() -> None:
    _, *lines, sft, dpo = lines_of("gpu_train.py")
    assert [(line["method"], line["way"]) for line in lines] == [
        ("sft", "trl, padded"),
        ("sft", "ours"),
        ("dpo", "trl, padded"),
        ("dpo", "ours"),
    ]
    assert all(line["tokens_per_s"] > 0 for line in lines)
    assert [line["passes"]["layout"] for line in lines if line["way"] == "ours"] == [
        "flat",
        "flat",
    ]
    assert (sft["figure"], dpo["figure"]) == ("gpu.vs_trl", "gpu.vs_trl_dpo")
    assert sft["value"] == pytest.approx(
        lines[1]["tokens_per_s"] / lines[0]["tokens_per_s"], abs=0.1
    )


def test_generation_is_measured_by_our_graph_and_by_vllm_with_one_measure() -> None:
    ours, actor, ratio = lines_of("gpu_generate.py")
    assert (ours["figure"], ours["calls"]) == ("gpu.generate", 40) and ours[
        "tokens_per_s"
    ] > 0
    assert (
        0 < actor["actor_main_thread"]["busy"] <= 1
        and actor["actor_main_thread"]["found_in"]
    )
    assert ratio["figure"] == "gpu.generate_vs_vllm"
    assert ratio["value"] == pytest.approx(
        ours["tokens_per_s"] / ratio["vllm_tokens_per_s"], abs=0.01
    )
