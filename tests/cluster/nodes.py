"""A Ray cluster of several nodes on this machine: `ray start` for each, with a token, on loopback alone."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

from bezoar_ray.runtime.session import SETTINGS

_RAY = str(Path(sys.executable).with_name("ray"))
_CPUS = 3  # logical, of each worker node


class Nodes:
    """A head without CPUs, and worker nodes that can be added and lost."""

    def __init__(self, environment: dict[str, str]):
        gcs, dashboard = free_port(), free_port()
        self.gcs, self.address = f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the job's `python` is that of the tests
        self.access = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
        }
        self._environment = (
            os.environ | SETTINGS | {"PATH": path} | self.access | environment
        )
        self._started: list[subprocess.Popen] = []
        self.folders: list[str] = []
        """Of each node, with all that Ray writes."""
        self._head_ports = [f"--port={gcs}", f"--dashboard-port={dashboard}"]
        self.head = self.start_head()
        self.workers: list[subprocess.Popen] = []

    def start_head(self) -> subprocess.Popen:
        """Start the head, or, after it was lost, another one at the same addresses."""
        head = self._start(
            "--head",
            *self._head_ports,
            "--dashboard-host=127.0.0.1",
            f"--ray-client-server-port={free_port()}",
            "--num-cpus=0",
            "--disable-usage-stats",
        )
        self._wait(lambda: len(self._alive()) == 1)
        return head

    def add_worker(
        self, blind_to: Path | None = None, labels: str = ""
    ) -> subprocess.Popen:
        """Start a node and wait until it has joined. It sees a folder that it is `blind_to` as empty (needs root)."""
        known = self._alive()
        hidden = (
            "unshare",
            "--mount",
            "sh",
            "-c",
            f'mount -t tmpfs none {blind_to} && exec "$@"',
            "sh",
        )
        started = [self._start_worker(labels, hidden if blind_to else ())]

        def joined() -> bool:
            if (
                started[-1].poll() is not None
            ):  # Ray gives a node's agent 15 s to start, which a busy machine may miss
                started.append(self._start_worker(labels, hidden if blind_to else ()))
            return bool(self._alive() - known)

        self._wait(joined)
        return started[-1]

    def lose(self, node: subprocess.Popen) -> None:
        """SIGKILL to all processes of a node at once, as when its machine is taken away."""
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(node.pid)
            for process in [parent, *parent.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        node.wait()

    def stop(self) -> None:
        """End every node."""
        for node in reversed(self._started):
            self.lose(node)
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _start_worker(self, labels: str, within: tuple[str, ...]) -> subprocess.Popen:
        return self._start(
            f"--address={self.gcs}",
            f"--num-cpus={_CPUS}",
            f"--labels={labels}",
            within=within,
        )

    def _start(self, *arguments: str, within: tuple[str, ...] = ()) -> subprocess.Popen:
        ports = (
            f"--{name}={free_port()}"
            for name in (
                "dashboard-agent-listen-port",
                "dashboard-agent-grpc-port",
                "metrics-export-port",
                "runtime-env-agent-port",
            )
        )
        folder = tempfile.mkdtemp(
            prefix="node-", dir="/tmp"
        )  # nodes share no disk; sockets want short paths
        self.folders.append(folder)
        (own := Path(folder) / "tmp").mkdir()
        environment = self._environment | {"TMPDIR": str(own)}
        node = subprocess.Popen(
            [
                *within,
                _RAY,
                "start",
                "--block",
                f"--temp-dir={folder}",
                f"--object-store-memory={2**28}",
                *ports,
            ]
            + list(arguments),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._started.append(node)
        return node

    def told(self, path: str) -> bytes:
        """What the dashboard answers to those who have the token."""
        headers = {"Authorization": f"Bearer {self.access['RAY_AUTH_TOKEN']}"}
        with urllib.request.urlopen(
            urllib.request.Request(self.address + path, headers=headers)
        ) as answer:
            return answer.read()

    def _alive(self) -> set[str]:
        """The nodes that the head takes for alive, by their ids; a lost one may be among them for a while."""
        try:
            found = json.loads(self.told("/api/v0/nodes"))["data"]["result"]["result"]
        except OSError:  # the head is still starting
            return set()
        return {node["node_id"] for node in found if node["state"] == "ALIVE"}

    def _wait(self, ready, timeout: float = 400) -> None:
        end = time.monotonic() + timeout
        while not ready():
            assert time.monotonic() < end, "the node does not come up"
            time.sleep(0.5)


@contextlib.contextmanager
def cluster(workers: int, environment: dict[str, str] | None = None) -> Iterator[Nodes]:
    """A head and so many workers, while the block runs."""
    nodes = Nodes(environment or {})
    try:
        nodes.workers = [nodes.add_worker() for _ in range(workers)]
        yield nodes
    finally:
        nodes.stop()


def free_port() -> int:
    """A port that nobody listens on, below those that Linux and Ray give out before it is used."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
