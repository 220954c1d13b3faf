"""`judge.share`: 10,000 requests of 100 ms at 64 slots, ledger on disk. 1.0 is the bound of 15.6 s."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bezoar_ray.cluster import ray_session
from bezoar_ray.fan_out import Pass, Place, fan_out, spool
from bezoar_ray.recipe import ModelPart
from jobs.benchmarks import server

REQUESTS, SLOTS, LATENCY = 10_000, 64, 0.1
BOUND = REQUESTS / SLOTS * LATENCY


async def ask(item, talker):
    """One row of one call."""
    reply = await talker.for_row(item.decode())([{"role": "user", "content": f"Is {item.decode()} odd?"}], step="judge")
    yield reply.text.encode()


def figures() -> Iterator[tuple[str, list[float]]]:
    """The bound over our time, start of Ray excluded, start of the actor included."""
    with server.running(LATENCY) as url, ray_session():
        yield "judge.share", [round(BOUND / _seconds(url), 4) for _ in range(3)]


def _seconds(url: str) -> float:
    part = ModelPart(model="m", base_url=url, max_in_flight=SLOTS)
    with tempfile.TemporaryDirectory() as folder:
        cells = spool((str(n).encode() for n in range(REQUESTS)), Path(folder) / "cells.arrow")
        began = time.monotonic()
        rows = sum(1 for _ in fan_out([(cells, Pass(ask, part, "judge"))], [], Place(folder, "s")))
        took = time.monotonic() - began
    assert rows == REQUESTS
    return took
