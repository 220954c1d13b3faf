import asyncio
import time

from bezoar_ray.llm.rate_control import AdaptiveConcurrency


class Limited:
    """A server with a token bucket: so many requests a second, one at once."""

    def __init__(self, rate):
        self.rate, self.tokens, self.seen, self.served, self.refused = (
            rate,
            1.0,
            time.monotonic(),
            0,
            0,
        )

    def ask(self):
        """Seconds to wait, or None where the request is served."""
        now = time.monotonic()
        self.tokens = min(
            max(1.0, self.rate / 10), self.tokens + (now - self.seen) * self.rate
        )
        self.seen = now
        if self.tokens >= 1:
            self.tokens, self.served = self.tokens - 1, self.served + 1
            return None
        self.refused += 1
        return (1 - self.tokens) / self.rate


async def use(server, pace, seconds, slots=32):
    end = time.monotonic() + seconds

    async def slot():
        while time.monotonic() < end:
            turn = await pace.turn()
            after = server.ask()
            await asyncio.sleep(0.05 if after is None else 0.002)
            if after is not None:
                pace.limited(turn, after)

    await asyncio.gather(*(slot() for _ in range(slots)))


def test_without_a_limit_nothing_waits():
    async def go():
        pace, began = AdaptiveConcurrency(), time.monotonic()
        for _ in range(1000):
            await pace.turn()
        return time.monotonic() - began

    assert asyncio.run(go()) < 1


def test_most_of_what_a_server_allows_is_used_and_little_is_refused():
    server = Limited(100)
    asyncio.run(use(server, AdaptiveConcurrency(), 4))
    assert server.served > 0.6 * 400
    assert server.refused < 0.15 * server.served


def test_a_limit_that_moves_is_followed_both_ways():
    async def go():
        server, pace = Limited(150), AdaptiveConcurrency()
        served = []
        for rate in (150, 30, 150):
            server.rate, before = rate, server.served
            await use(server, pace, 3)
            served.append((server.served - before) / (3 * rate))
        return served, server

    shares, server = asyncio.run(go())
    assert min(shares) > 0.5
    assert server.refused < 0.2 * server.served


def test_retry_after_is_honoured():
    async def go():
        pace = AdaptiveConcurrency()
        refused = await pace.turn()
        pace.limited(refused, 0.4)
        return (await pace.turn()).at - refused.at

    assert asyncio.run(go()) >= 0.4
