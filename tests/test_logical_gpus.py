"""A whole run on a node whose two GPUs are logical: every actor asks Ray for one, or for a share of one."""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bezoar_ray.runtime.session import SETTINGS
from tests.cluster.nodes import free_port
from tests.end_to_end import SMALL, Command, replies, summary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
RAY = str(Path(sys.executable).with_name("ray"))
MODEL = "model: tiny-teacher, license: Apache-2.0, dtype: float32, max_tokens: 200"
SHARED = [
    *SMALL,
    f"teachers=[{{{MODEL}, num_gpus: 0.5}}, {{{MODEL}, revision: again, num_gpus: 1}}]",  # two engines
    f"judges=[{{model: tiny-judge, temperature: 0.0}}, {{{MODEL}, temperature: 0.0, num_gpus: 0.5}}]",  # a local one
    "serve.num_gpus=0.5",
    "serve.replicas=2",
]


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray with two logical GPUs, which commands join by RAY_ADDRESS."""
    port, folder = free_port(), tempfile.mkdtemp(prefix="gpus-", dir="/tmp")
    for name, value in (
        SETTINGS | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    ).items():
        monkeypatch.setenv(name, value)
    command = [
        RAY,
        "start",
        "--head",
        "--block",
        "--num-gpus=2",
        "--num-cpus=6",
        f"--port={port}",
    ]
    command += [
        "--include-dashboard=false",
        "--disable-usage-stats",
        f"--object-store-memory={2**29}",
    ]
    command += [f"--temp-dir={folder}", f"--ray-client-server-port={free_port()}"]
    head = subprocess.Popen(
        command,
        env=dict(os.environ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    try:
        yield
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            process.kill()
        head.wait()


def test_a_run_from_generate_to_report(
    node: None, tiny_world: object, tmp_path: Path
) -> None:
    code, output = Command(tmp_path / "run", sets=SHARED).wait(timeout=1400)
    assert code == 0, output
    found = summary(tmp_path / "run")
    assert {stage["status"] for stage in found["stages"].values()} == {"done"}
    assert (tmp_path / "run/report.html").exists()
    assert found["calls"]["teacher"]["sent"] > 100
    ours = [text for _, text in replies(tmp_path / "run", "judge")]
    assert (
        len(ours) > 100
    )  # those of the local judge among them: each row has two verdicts
    assert len(found["calls"]["judge"]["by_model"]) == 2
    assert all(
        found["train"][name]["passes"]["layout"] == "flat"
        for name in ("sft", "hh-sft", "dpo")
    )
