"""The benchmark for a GPU runs on a CPU as well, with a small shape."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_gpu_benchmark_measures_each_method_both_ways():
    script = Path(__file__).parent.parent / "jobs/benchmarks/gpu_train.py"
    done = subprocess.run([sys.executable, str(script), "--tiny"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"shape"')]
    assert [(line["method"], line["way"]) for line in lines] == [
        ("sft", "trl, padded"), ("sft", "ours, packed"), ("dpo", "live reference"), ("dpo", "reference ahead"),
    ]  # fmt: skip
    assert all(line["tokens_per_s"] > 0 for line in lines)
