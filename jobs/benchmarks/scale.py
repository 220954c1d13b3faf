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

from bezoar_ray.llm.chat import Messages, Reply, Sampling
from bezoar_ray.llm.client import ModelClient
from bezoar_ray.llm.ledger import Ledger
from bezoar_ray.llm.limits import (
    BudgetLimit,
    RunQuotaServer,
    quota_client,
    quota_limits,
)
from bezoar_ray.llm.quota import Cost
from bezoar_ray.recipe import ModelSection, Prices
from bezoar_ray.runtime.session import beside_driver, ray_session

ROWS, REPLICAS, PROCESSES, SECONDS = 1_000_000, 1_000, 4, 0.1
THIRDS = 3
LIMIT = BudgetLimit("budget_usd", 1e9, ("judge",))
PART = ModelSection(
    model="virtual",
    base_url="http://virtual/v1",
    max_in_flight=REPLICAS // PROCESSES,
    max_tokens=512,
    prices=Prices(input=1.0, output=4.0),
    requests_per_minute=1e9,
    tokens_per_minute=1e12,
)
REPLY = Reply("x" * 400, "stop", 300, 100)
NEED, USED = Cost(800, 0.003), Cost(400, 0.001)
PERMIT_SECONDS, SLOTS = 20, 64  # as many calls as an actor has under way


def figures() -> Iterator[tuple[str, list[float]]]:
    """Calls a second in each third of the rows; seconds to open the ledger that they have left; permits a second where
    every replica is a client of the meter by itself, with as many calls under way as an actor has."""
    with tempfile.TemporaryDirectory() as folder, ray_session():
        yield (
            "scale.calls_per_s",
            [_calls(folder, ROWS // THIRDS) for _ in range(THIRDS)],
        )
        yield "scale.open_s_per_million", [_opening(folder) for _ in range(3)]
        yield "scale.permits_per_s_1000_clients", [_permits(folder) for _ in range(3)]


def _calls(root: str, rows: int) -> float:
    import ray

    processes = _processes(root)
    ray.get([process.open.remote() for process in processes])
    began = time.monotonic()
    ray.get(
        [
            process.call.remote(f"{began}-{n}", rows // PROCESSES)
            for n, process in enumerate(processes)
        ]
    )
    return round(rows / (time.monotonic() - began), 1)


def _permits(root: str) -> float:
    import ray

    return round(
        sum(ray.get([process.permit.remote() for process in _processes(root)]))
        / PERMIT_SECONDS,
        1,
    )


def _processes(root: str) -> list[Any]:
    """Four processes and the meter that they share."""
    import ray

    meter = ray.remote(
        num_cpus=0, max_concurrency=1000, scheduling_strategy=beside_driver()
    )(RunQuotaServer)
    meter = meter.remote(root, {"0": quota_limits(PART, "judge", (LIMIT,))}, (LIMIT,))
    return [
        ray.remote(num_cpus=0)(Process).remote(root, meter) for _ in range(PROCESSES)
    ]


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
    """A quarter of the replicas."""

    def __init__(self, root: str, meter: Any):
        self._root, self._meter = root, meter

    async def open(self) -> None:
        """Open one client for all, with its own segment of the ledger."""
        self._talker = ModelClient(
            Virtual(),
            Ledger(self._root, "judge", "s"),
            PART,
            quota_client(self._meter, "0"),
        )

    async def call(self, name: str, rows: int) -> None:
        """Make so many calls, as many at a time as there are replicas."""
        numbers = iter(range(rows))

        async def replica() -> None:
            for n in numbers:
                question = [{"role": "user", "content": f"Is {n} odd? " * 50}]
                await self._talker.for_row(f"{name}-{n}")(question, step="judge")

        await asyncio.gather(*(replica() for _ in range(REPLICAS // PROCESSES)))
        await self._talker.close()

    async def permit(self) -> int:
        """How many permits the replicas had, each of which asks for its own."""
        clients = [quota_client(self._meter, "0") for _ in range(REPLICAS // PROCESSES)]
        end, granted = time.monotonic() + PERMIT_SECONDS, 0

        async def slot(client: Any) -> None:
            nonlocal granted
            while time.monotonic() < end:
                await client.take(NEED)
                await asyncio.sleep(SECONDS)
                client.record_usage(NEED, USED)
                granted += 1

        await asyncio.gather(
            *(slot(client) for client in clients for _ in range(SLOTS))
        )
        return granted
