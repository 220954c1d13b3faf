"""`scale.*`: a thousand replicas of a model at once, a million rows, through the clients that a run's actors use.

A replica is an asyncio task that answers after 100 ms; they share four processes, as many as two cores bear. Real are
each call's key, its permit from the one meter of all processes (a rate and a budget, neither of which binds), the
intent and the answer in the ledger with their fsyncs. Left out is HTTP, which every actor of a cluster has to itself.
"""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from bezoar_ray.cluster import beside_driver, ray_session
from bezoar_ray.llm.chat import Messages, Reply, Sampling
from bezoar_ray.llm.client import Talker
from bezoar_ray.llm.ledger import Ledger
from bezoar_ray.llm.limits import Limit, RunMeter, permits, terms
from bezoar_ray.recipe import ModelPart, Prices

ROWS, REPLICAS, PROCESSES, SECONDS = 1_000_000, 1_000, 4, 0.1
THIRDS = 3
LIMIT = Limit("budget_usd", 1e9, ("judge",))
REPLY = Reply("x" * 400, "stop", 300, 100)


def figures() -> Iterator[tuple[str, list[float]]]:
    """Calls a second in each third of the rows; seconds to open the ledger that they have left; calls a second where
    every replica has a client and a ledger of its own, on a tenth of the rows."""
    with tempfile.TemporaryDirectory() as folder, ray_session():
        shared = [[folder]] * PROCESSES
        yield "scale.calls_per_s", [_rate(shared, ROWS // THIRDS) for _ in range(THIRDS)]
        yield "scale.open_s_per_million", [_opening(folder) for _ in range(3)]
    with tempfile.TemporaryDirectory() as folder, ray_session():
        own = [[f"{folder}/{p}-{n}" for n in range(REPLICAS // PROCESSES)] for p in range(PROCESSES)]
        yield "scale.calls_per_s_own_clients", [_rate(own, ROWS // 10 // THIRDS) for _ in range(THIRDS)]


def _rate(roots: list[list[str]], rows: int) -> float:
    """Calls a second; `roots` are the run directories of each process's clients."""
    import ray

    part = _part(REPLICAS // sum(map(len, roots)))
    remote = ray.remote(num_cpus=0, max_concurrency=1000, scheduling_strategy=beside_driver())(RunMeter)
    meter = remote.remote(roots[0][0], {"0": terms(part, "judge", (LIMIT,))}, (LIMIT,))
    actor = ray.remote(num_cpus=0)(Process)
    processes = [actor.remote(of_process, part, meter) for of_process in roots]
    ray.get([process.ready.remote() for process in processes])
    began = time.monotonic()
    ray.get([process.work.remote(f"{began}-{n}", rows // PROCESSES) for n, process in enumerate(processes)])
    return round(rows / (time.monotonic() - began), 1)


def _part(slots: int) -> ModelPart:
    return ModelPart(
        model="virtual", base_url="http://virtual/v1", max_in_flight=slots, max_tokens=512,
        prices=Prices(input=1.0, output=4.0), requests_per_minute=1e9, tokens_per_minute=1e12,
    )  # fmt: skip


def _opening(root: str) -> float:
    began = time.monotonic()

    async def opened() -> None:
        await Ledger(root, "judge", "s").close()

    asyncio.run(opened())
    return round(time.monotonic() - began, 2)


class Virtual:
    """A replica that answers after a while."""

    identity = "virtual"

    async def complete(self, messages: Messages, sampling: Sampling) -> Reply:
        await asyncio.sleep(SECONDS)
        return REPLY

    async def close(self) -> None:
        pass


class Process:
    """One process with some clients, each of which has its share of the replicas."""

    def __init__(self, roots: list[str], part: ModelPart, meter: Any):
        self._roots, self._part, self._meter = roots, part, meter

    async def ready(self) -> None:
        """The clients are open."""
        self._talkers = [
            Talker(Virtual(), Ledger(root, "judge", "s"), self._part, permits(self._meter, "0")) for root in self._roots
        ]

    async def work(self, name: str, rows: int) -> None:
        """Make so many calls, as many at a time as there are replicas."""
        numbers = iter(range(rows))

        async def replica(talker: Talker) -> None:
            for n in numbers:
                await talker.for_row(f"{name}-{n}")([{"role": "user", "content": f"Is {n} odd? " * 50}], step="judge")

        slots = self._part.max_in_flight
        await asyncio.gather(*(replica(talker) for talker in self._talkers for _ in range(slots)))
        for talker in self._talkers:
            await talker.close()
