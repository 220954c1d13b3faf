"""The rate follows a limit; time is virtual, so a busy machine changes nothing."""

import asyncio
from types import SimpleNamespace

import pytest

from bezoar_ray.llm import rate_control
from bezoar_ray.llm.rate_control import AdaptiveConcurrency, AimdSettings


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer as soon as nothing else is ready."""

    def __init__(self):
        super().__init__()
        self.now = 1.0
        self._clock_resolution = 1e-9
        select = self._selector.select

        def skip(timeout=None):
            self.now += timeout or 0.0
            return select(0)

        self._selector.select = skip

    def time(self):
        return self.now


@pytest.fixture
def loop(monkeypatch):
    loop = VirtualLoop()
    clock = SimpleNamespace(monotonic=loop.time)
    monkeypatch.setattr(rate_control, "time", clock)
    yield loop
    loop.close()


class LimitedServer:
    """A server with a token bucket: so many requests a second, one at once."""

    def __init__(self, rate, clock):
        self.rate = rate
        self.clock = clock
        self.tokens = 1.0
        self.filled_at = clock()
        self.served = 0
        self.refused = 0

    def ask(self):
        """Seconds to wait, or None where the request is served."""
        now = self.clock()
        inflow = (now - self.filled_at) * self.rate
        self.tokens = min(max(1.0, self.rate / 10), self.tokens + inflow)
        self.filled_at = now
        if self.tokens >= 1:
            self.tokens -= 1
            self.served += 1
            return None
        self.refused += 1
        return (1 - self.tokens) / self.rate


async def use(server, control, seconds, slots=32):
    end = server.clock() + seconds

    async def slot():
        while server.clock() < end:
            request = await control.admit()
            retry_after = server.ask()
            await asyncio.sleep(0.05 if retry_after is None else 0.002)
            if retry_after is not None:
                control.record_limit(request, retry_after)

    await asyncio.gather(*(slot() for _ in range(slots)))


def test_without_a_limit_nothing_waits(loop):
    async def go():
        control = AdaptiveConcurrency()
        began = loop.time()
        for _ in range(1000):
            await control.admit()
        return loop.time() - began

    assert loop.run_until_complete(go()) == 0


def test_most_of_what_a_server_allows_is_used_and_little_is_refused(loop):
    server = LimitedServer(100, loop.time)
    loop.run_until_complete(use(server, AdaptiveConcurrency(), 4))
    assert server.served > 0.8 * 400
    assert server.refused < 0.15 * server.served


def test_a_limit_that_moves_is_followed_both_ways(loop):
    server = LimitedServer(150, loop.time)

    async def go():
        control = AdaptiveConcurrency()
        shares = []
        for rate in (150, 30, 150):
            server.rate = rate
            before = server.served
            await use(server, control, 3)
            shares.append((server.served - before) / (3 * rate))
        return shares

    assert min(loop.run_until_complete(go())) > 0.8
    assert server.refused < 0.1 * server.served


def test_retry_after_is_honoured(loop):
    async def go():
        control = AdaptiveConcurrency()
        refused = await control.admit()
        control.record_limit(refused, 0.4)
        return (await control.admit()).at - refused.at

    assert loop.run_until_complete(go()) == pytest.approx(0.4)


def admit_for(loop, control, seconds):
    """Times at which requests go out that are never refused."""

    async def go():
        end = loop.time() + seconds
        times = []
        while loop.time() < end:
            request = await control.admit()
            times.append(request.at)
        return times

    return loop.run_until_complete(go())


def test_a_cut_multiplies_the_rate_and_growth_adds_equal_steps(loop):
    settings = AimdSettings(decrease=0.5, increase=1.0, hold_requests=1)
    control = AdaptiveConcurrency(settings)

    async def send_and_refuse():
        for _ in range(12):  # at 100 requests a second
            request = await control.admit()
            await asyncio.sleep(0.01)
        control.record_limit(request, None)

    loop.run_until_complete(send_and_refuse())
    cut_at = loop.time()
    times = admit_for(loop, control, settings.hold_seconds + 3)
    counts = []
    for second in range(3):
        start = cut_at + settings.hold_seconds + second
        counts.append(sum(start <= at < start + 1 for at in times))
    held = [at for at in times if at < cut_at + settings.hold_seconds]
    # Half of 100 requests a second, then 50 more with each second.
    assert len(held) == pytest.approx(50 * settings.hold_seconds, abs=2)
    assert counts == pytest.approx([75, 125, 175], abs=3)


def test_a_429_that_comes_very_late_cuts_the_rate_all_the_same(loop):
    async def go():
        control = AdaptiveConcurrency()
        late = await control.admit()
        await asyncio.sleep(5)
        await control.admit()
        control.record_limit(late, None)
        began = (await control.admit()).at
        return (await control.admit()).at - began

    assert loop.run_until_complete(go()) > 0.05
