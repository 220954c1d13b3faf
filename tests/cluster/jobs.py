"""Runs that are submitted to a cluster of nodes, looked at from outside."""

import subprocess
from collections import Counter

import psutil

from bezoar_ray.store import Store
from tests.cluster.nodes import Nodes
from tests.end_to_end import SMALL, Module, replies

# What runs on the node of which a stage has most to lose, by a word of the process's title.
WORK = {
    "generate": "EngineCore",
    "filter": "_Actor",
    "sft": "RayTrainWorker",
    "align": "RayTrainWorker",
    "evaluate": "EngineCore",
}


def submitted(
    nodes: Nodes, run_dir: str, *extra: str, sets: list[str] = SMALL
) -> Module:
    """`bezoar submit --follow`, as its own process."""
    settings = [part for setting in sets for part in ("--set", setting)]
    where = ["--address", nodes.address, "--run-dir", run_dir, "--follow"]
    return Module(
        "bezoar_ray.cli",
        "submit",
        "tiny",
        *where,
        *settings,
        *extra,
        environment=nodes.access,
    )


def attached(nodes: Nodes, run_dir: str) -> Module:
    """`bezoar status --follow`, as its own process."""
    where = ["--address", nodes.address, "--follow"]
    return Module("bezoar_ray.cli", "status", run_dir, *where, environment=nodes.access)


def stopped(nodes: Nodes, id: str) -> Module:
    """`ray job stop`, as its own process."""
    return Module(
        "ray.scripts.scripts",
        "job",
        "stop",
        id,
        "--address",
        nodes.address,
        environment=nodes.access,
    )


def answered(run_dir: str, role: str = "") -> Counter:
    """How often each call has a durable answer in the ledger, by its key."""
    return Counter(key for key, _ in replies(run_dir, role))


def rows(run_dir: str, scheme: str, status: str = "generated") -> list[str]:
    """The ids of a scheme's rows, sorted."""
    from bezoar_ray.data.sample_io import read_samples

    return sorted(sample.id for sample in read_samples(Store(run_dir), scheme, status))


def host(nodes: Nodes, title: str) -> subprocess.Popen | None:
    """The worker node on which a process of that title runs."""
    for node in nodes.workers:
        for process in _below(node):
            if title in process:
                return node
    return None


def _below(node: subprocess.Popen) -> list[str]:
    found = []
    for process in psutil.Process(node.pid).children(recursive=True):
        try:
            found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found
