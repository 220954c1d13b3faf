"""A run on a cluster whose head is alone: Ray's autoscaler starts the node that a stage asks for, and ends idle ones.

Ray's own fake provider stands for the cloud: it starts and ends real nodes of Ray on this machine. The kinds of nodes
are those of cluster/aws.yaml, scaled down: their labels and priorities, fewer CPUs, a logical GPU in place of eight.
"""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ray.util import get_node_ip_address

from bezoar_ray.runtime.caches import bezoar_cache
from bezoar_ray.runtime.session import SETTINGS
from tests.cluster.nodes import free_port
from tests.end_to_end import SMALL, Command, in_stage, summary

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]
AWS = Path(__file__).parents[2] / "cluster/aws.yaml"
IDLE_MINUTES = 0.3
HEAD_ID = "f" * 56  # FAKE_HEAD_NODE_ID, by which the fake provider knows the head
PLACED = [  # as docs/how-to/cluster.md places a run's stages; training computes on CPUs here
    "teacher.num_gpus=1",
    "teacher.node_labels.bezoar=generate",
    "judges.0.node_labels.bezoar=cpu",
    "sft.node_labels.bezoar=train",
    "hh_sft.node_labels.bezoar=train",
    "align.node_labels.bezoar=train",
    "serve.num_gpus=1",
    "serve.node_labels.bezoar=serve",
    *(f"{stage}.workers=1" for stage in ("sft", "hh_sft", "align")),
]


class Autoscaled:
    """A head whose autoscaler may start the kinds of nodes of cluster/aws.yaml."""

    def __init__(self, folder: Path):
        gcs, dashboard = free_port(), free_port()
        self.address, self._dashboard = (
            f"{get_node_ip_address()}:{gcs}",
            f"http://127.0.0.1:{dashboard}",
        )
        self._temp = tempfile.mkdtemp(
            prefix="fake-", dir="/tmp"
        )  # sockets want short paths
        config = scaled_down(self.address)
        (folder / "ray_bootstrap_config.yaml").write_text(
            yaml.safe_dump(config)
        )  # as the launcher leaves it
        self.environment = SETTINGS | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
        }
        self.home = folder
        fake = {
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        }
        ports = {
            "port": gcs,
            "dashboard-port": dashboard,
            "ray-client-server-port": free_port(),
            "dashboard-agent-listen-port": free_port(),
            "dashboard-agent-grpc-port": free_port(),
            "metrics-export-port": free_port(),
            "runtime-env-agent-port": free_port(),
        }
        self.log = folder / "head.log"
        self._head = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("ray")),
                "start",
                "--head",
                "--block",
                "--num-cpus=0",
                "--dashboard-host=127.0.0.1",
                f"--temp-dir={self._temp}",
                f"--object-store-memory={2**28}",
                "--labels=bezoar=head",
                f"--autoscaling-config={folder / 'ray_bootstrap_config.yaml'}",
                "--disable-usage-stats",
                *(f"--{name}={port}" for name, port in ports.items()),
            ],
            env=os.environ | self.environment | fake,
            stdout=open(self.log, "wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def kinds(self) -> list[str]:
        """The label of each node that is alive; the head's comes first."""
        request = urllib.request.Request(f"{self._dashboard}/api/v0/nodes?detail=1")
        request.add_header(
            "Authorization", f"Bearer {self.environment['RAY_AUTH_TOKEN']}"
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                nodes = json.loads(answer.read())["data"]["result"]["result"]
        except OSError:
            return []
        found = [node["labels"]["bezoar"] for node in nodes if node["state"] == "ALIVE"]
        return sorted(found, key=lambda kind: kind != "head")

    def stop(self) -> None:
        """End the head and all nodes that its autoscaler has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._head.pid)
            for process in [*parent.children(recursive=True), parent]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if self._temp in " ".join(process.cmdline()):
                    process.kill()
        shutil.rmtree(self._temp, ignore_errors=True)


def scaled_down(address: str) -> dict[str, Any]:
    """cluster/aws.yaml for the fake provider: each kind a node or two, small enough for this machine."""
    aws = yaml.safe_load(AWS.read_text())
    kinds = {}
    for name, kind in aws["available_node_types"].items():
        resources = {
            key: min(value, 4 if key == "CPU" else 1)
            for key, value in kind["resources"].items()
        }
        kinds[name] = {
            "resources": resources
            | ({} if name == "head" else {"object_store_memory": 2**28}),
            "labels": kind["labels"],
            "node_config": {},
            "min_workers": 0,
            "max_workers": 0 if name == "head" else min(2, kind["max_workers"]),
        }
    kinds["ray.head.default"] = kinds.pop("head")
    return {
        "cluster_name": "fake",
        "max_workers": 6,
        "head_node_type": "ray.head.default",
        "available_node_types": kinds,
        "idle_timeout_minutes": IDLE_MINUTES,
        "upscaling_speed": aws["upscaling_speed"],
        "provider": {
            "type": "external",  # by its own name, Ray's wheel lacks a file of defaults
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
        },
        "auth": {},
        "docker": {},
        **{
            name: []
            for name in (
                "initialization_commands",
                "setup_commands",
                "head_setup_commands",
                "worker_setup_commands",
                "head_start_ray_commands",
                "worker_start_ray_commands",
                "cluster_synced_files",
                "rsync_exclude",
                "rsync_filter",
            )
        },
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
    }


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Autoscaled]:
    found = Autoscaled(tmp_path)
    try:
        end = time.monotonic() + 120
        while found.kinds() != ["head"]:
            assert time.monotonic() < end, "the head does not come up"
            time.sleep(0.5)
        yield found
    finally:
        found.stop()


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that is not on the head's own disk, as one that all nodes mount."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


class Placed(Command):
    """`bezoar run` as the cluster's driver, on its head."""

    def __init__(self, cluster: Autoscaled, run_dir: Path, *sets: str):
        there = {
            "RAY_ADDRESS": cluster.address,
            "HOME": str(cluster.home),
            "BEZOAR_CACHE": str(bezoar_cache()),
        }
        environment = cluster.environment | there
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            super().__init__(run_dir, sets=[*SMALL, *PLACED, *sets])


STAGES = {
    "generate": "generate",
    "filter": "generate",
    "sft": "train",
    "hh-sft": "train",
    "align": "train",
    "evaluate": "serve",
}


def test_a_run_starts_with_the_head_alone_and_nodes_come_and_go_as_stages_ask_for_them(
    tiny_world: Any, cluster: Autoscaled, shared: Path
) -> None:
    run_dir, began, history = shared / "run", time.monotonic(), []
    command = Placed(cluster, run_dir)
    while command.runs():
        stage = next((name for name in STAGES if in_stage(run_dir, name)), "")
        look = (stage, tuple(cluster.kinds()))
        if look[1] and (not history or history[-1][1:] != look):
            history.append((round(time.monotonic() - began), *look))
            print(history[-1], flush=True)
        time.sleep(0.5)
    code, output = command.wait()
    assert code == 0, output
    assert {stage["status"] for stage in summary(run_dir)["stages"].values()} == {
        "done"
    }
    assert history[0][2] == ("head",)
    for stage, kind in STAGES.items():
        assert any(kind in kinds for _, at, kinds in history if at == stage), (
            stage,
            history,
        )
    # What earlier stages ran on is gone before the last one ends: idle nodes cost money.
    assert any(
        "generate" not in kinds
        for _, at, kinds in history
        if at in ("align", "evaluate")
    )
    end = time.monotonic() + 60 * IDLE_MINUTES + 120
    while cluster.kinds() != ["head"]:
        assert time.monotonic() < end, f"idle nodes stay: {cluster.kinds()}"
        time.sleep(1)
    print(
        "the head is alone again after",
        round(time.monotonic() - began),
        "s",
        flush=True,
    )


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "teacher.num_gpus=2",
            r"tiny-teacher (1 actors with 1 CPU, 2 GPU each on nodes labelled",
        ),
        ("sft.node_labels.bezoar=nowhere", "on nodes labelled {'bezoar': 'nowhere'}"),
        ("serve.replicas=3", "the endpoint's engines (3 actors"),
    ],
)
def test_what_no_kind_of_node_could_ever_give_is_refused_before_a_node_starts(
    tiny_world: Any, cluster: Autoscaled, shared: Path, setting: str, said: str
) -> None:
    code, output = Placed(cluster, shared / "run", setting).wait(timeout=200)
    assert code == 2 and said in output, output
    assert cluster.kinds() == ["head"]
