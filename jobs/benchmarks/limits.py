"""`limits.share` and `limits.wasted`: a server whose limit moves between 20 and 200 requests a second every 5 s."""

import asyncio
import tempfile
import time
from collections.abc import Iterator

from bezoar_ray.llm.client import open_client
from bezoar_ray.recipe import ModelSection
from jobs.benchmarks import server

RATES = [110, 20, 200, 60, 150, 30, 180, 90, 40, 200, 20, 130]
SECONDS, SLOTS = 60, 64


def figures() -> Iterator[tuple[str, list[float]]]:
    """Useful answers over allowed ones; refusals over all requests of the same run."""
    shares, wasted = [], []
    for _ in range(3):
        with server.running(0.1, RATES) as url:
            asyncio.run(_use(url))
            found = server.counts(url)
        shares.append(round(found["served"] / found["allowed"], 4))
        wasted.append(round(found["refused"] / (found["served"] + found["refused"]), 4))
    yield "limits.share", shares
    yield "limits.wasted", wasted


async def _use(url: str) -> None:
    end = time.monotonic() + SECONDS
    with tempfile.TemporaryDirectory() as folder:
        talker = open_client(
            ModelSection(model="m", base_url=url, max_in_flight=SLOTS),
            folder,
            "judge",
            "s",
        )
        rows = iter(range(10**9))

        async def worker() -> None:
            while time.monotonic() < end:
                await talker.for_row(str(next(rows)))(
                    [{"role": "user", "content": "odd?"}], step="judge"
                )

        await asyncio.gather(*(worker() for _ in range(SLOTS)))
        await talker.close()
