"""`ledger.ops_per_s`: lookups and appends of one ledger, half and half, each append durable before it counts."""

import asyncio
import hashlib
import tempfile
import time
from collections.abc import Iterator

from bezoar_ray.llm.chat import Reply
from bezoar_ray.llm.ledger import Ledger

OPERATIONS, AT_ONCE = 40_000, 256
REPLY = Reply("x" * 400, "stop", 100, 100)


def figures() -> Iterator[tuple[str, list[float]]]:
    """Operations a second."""
    yield "ledger.ops_per_s", [round(asyncio.run(_rate()), 1) for _ in range(3)]


async def _rate() -> float:
    keys = iter(
        [
            hashlib.sha256(str(n).encode()).hexdigest()[:32]
            for n in range(OPERATIONS // 2)
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(folder, "judge", "s")

        async def worker() -> None:
            for key in keys:
                await ledger.record_usage(key, "m", REPLY, 0.0)
                assert ledger.find(key) == REPLY

        began = time.monotonic()
        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        await ledger.close()
        return OPERATIONS / (time.monotonic() - began)
