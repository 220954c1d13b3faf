"""`judge.share`: 10,000 requests of 100 ms at 64 slots, ledger on disk. 1.0 is the bound of 15.6 s.

The same calls go through curator and datatrove, each with its own cache or checkpoints, in environments made here.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bezoar_ray.data.row import StageRow
from bezoar_ray.data.spool import spool_rows
from bezoar_ray.llm.chat import Chat
from bezoar_ray.pipeline.actor_pool import ModelStage, RunContext, stream_rows
from bezoar_ray.recipe import ModelSection
from bezoar_ray.runtime.session import ray_session
from jobs.benchmarks import server

REQUESTS, SLOTS, LATENCY = 10_000, 64, 0.1
BOUND = REQUESTS / SLOTS * LATENCY
PEERS = {
    "curator": ("bespokelabs-curator==0.1.31",),
    "datatrove": (
        "datatrove==0.10.1",
        "aiosqlite",
        "aiofiles",
        "xxhash",
        "orjson",
        "httpx",
    ),
}


@dataclass(frozen=True)
class Number(StageRow):
    """One request, and its reply."""

    id: str
    reply: str = ""


async def ask(row: Number, chat: Chat) -> AsyncIterator[Number]:
    """One row of one call."""
    question = {"role": "user", "content": f"Is {row.id} odd?"}
    reply = await chat([question], step="judge")
    yield Number(row.id, reply.text)


def figures() -> Iterator[tuple[str, list[float]]]:
    """The bound over each one's time, in turn: from the first request, so without imports and starts of any, to the
    moment at which all answers are there and on disk."""
    pythons = {name: _environment(packages) for name, packages in PEERS.items()}
    shares: dict[str, list[float]] = {
        name: [] for name in ("judge.share", *(f"judge.share_{name}" for name in PEERS))
    }
    with ray_session():
        for _ in range(3):
            shares["judge.share"].append(_share(_ours))
            for name, python in pythons.items():
                shares[f"judge.share_{name}"].append(
                    _share(partial(_theirs, name, python))
                )
    yield from shares.items()


def _share(calls: Callable[[str], float]) -> float:
    with server.running(LATENCY) as url:
        over = calls(url)
        return round(BOUND / (over - server.counts(url)["began"]), 4)


def _environment(packages: tuple[str, ...]) -> str:
    """The Python of a peer's environment, made where there is none yet."""
    folder = Path(tempfile.gettempdir()) / f"bezoar-{packages[0]}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        uv = [sys.executable, "-m", "uv"]
        subprocess.run(
            [*uv, "venv", "-q", "--clear", "--python", sys.executable, folder],
            check=True,
        )
        subprocess.run(
            [*uv, "pip", "install", "-q", "--python", python, *packages], check=True
        )
        (folder / "ready").touch()
    return str(python)


def _theirs(name: str, python: str, url: str) -> float:
    """When a peer was done."""
    script = Path(__file__).parent / "peers" / f"{name}.py"
    done = subprocess.run(
        [python, script, url, str(REQUESTS), str(SLOTS)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])


def _ours(url: str) -> float:
    """When we were done."""
    part = ModelSection(model="m", base_url=url, max_in_flight=SLOTS)
    with tempfile.TemporaryDirectory() as folder:
        numbers = (Number(str(n)) for n in range(REQUESTS))
        spool = spool_rows(numbers, Path(folder) / "rows.arrow", Number)
        stage = ModelStage(ask, part, "judge", Number, Number)
        rows = sum(
            1 for _ in stream_rows([(spool, stage)], [], RunContext(folder, "s"))
        )
        over = time.monotonic()
    assert rows == REQUESTS
    return over
