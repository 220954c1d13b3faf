import asyncio
import contextlib
import time
from functools import partial

import pytest

from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.breaker import CircuitBreaker
from bezoar_ray.llm.chat import Refused, TryAgain


class Endpoint:
    """Up or down."""

    def __init__(self):
        self.up, self.attempts = True, 0

    async def ask(self):
        self.attempts += 1
        await asyncio.sleep(0.001)
        if not self.up:
            raise TryAgain("connection refused")
        return "yes"


async def run(breaker, attempt):
    """The outcome of an attempt through the circuit."""
    async with breaker.attempt():
        return await attempt()


async def patient(breaker, endpoint):
    while True:
        try:
            return await run(breaker, endpoint.ask)
        except TryAgain:
            await asyncio.sleep(0.01)


def test_while_an_endpoint_is_down_calls_wait_and_go_on_when_it_is_back():
    async def go():
        endpoint, breaker = Endpoint(), CircuitBreaker("judge", first_wait=0.05)
        endpoint.up = False
        calls = [asyncio.create_task(patient(breaker, endpoint)) for _ in range(100)]
        await asyncio.sleep(0.6)
        assert breaker.is_open
        tried, endpoint.up = endpoint.attempts, True
        began = time.monotonic()
        answers = await asyncio.gather(*calls)
        return tried, answers, time.monotonic() - began, breaker.is_open

    tried, answers, took, is_open = asyncio.run(go())
    assert tried < 110  # not 100 every hundredth of a second
    assert answers == ["yes"] * 100 and not is_open
    assert took < 3


def test_a_fault_now_and_then_opens_nothing():
    async def go():
        endpoint, breaker = Endpoint(), CircuitBreaker("judge")
        for number in range(60):
            endpoint.up = number % 3 != 0
            try:
                await run(breaker, endpoint.ask)
            except TryAgain:
                assert not breaker.is_open

    asyncio.run(go())


def test_an_endpoint_that_stays_away_ends_the_stage_and_is_named():
    async def go():
        endpoint, breaker = (
            Endpoint(),
            CircuitBreaker("judge-1 at http://x", patience=0.2, first_wait=0.02),
        )
        endpoint.up = False
        await asyncio.gather(*(patient(breaker, endpoint) for _ in range(30)))

    with pytest.raises(
        BezoarError,
        match="judge-1 at http://x has answered nothing for .*connection refused.*Run the",
    ):
        asyncio.run(go())


def test_a_429_is_a_sign_of_life():
    async def go():
        async def limited():
            raise TryAgain("429", limited=True)

        breaker = CircuitBreaker("judge")
        for _ in range(50):
            with pytest.raises(TryAgain):
                await run(breaker, limited)
        return breaker.is_open

    assert not asyncio.run(go())


@pytest.mark.parametrize(
    ("patience", "after", "times"), [(0.05, None, 20), (600, 86_400.0, 1)]
)
def test_an_endpoint_that_only_says_to_wait_ends_the_stage(patience, after, times):
    async def go():
        async def limited():
            raise TryAgain("429: the day's quota is used up", after, limited=True)

        breaker = CircuitBreaker("judge", patience=patience)
        for _ in range(times):
            with contextlib.suppress(TryAgain):
                await run(breaker, limited)
            await asyncio.sleep(0.01)

    with pytest.raises(
        BezoarError,
        match="takes no more calls for now: 429: the day's quota is used up",
    ):
        asyncio.run(go())


def test_a_few_quick_refusals_do_not_end_a_stage_whose_answers_take_longer():
    """64 calls are under way; 6 are refused at once, the others are answered later."""
    breaker = CircuitBreaker("x")

    async def attempt(number):
        await asyncio.sleep(0.001)
        if number < 6:
            raise Refused("bad", alike="bad")
        await asyncio.sleep(0.05)
        return number

    async def go():
        attempts = (run(breaker, partial(attempt, number)) for number in range(64))
        return await asyncio.gather(*attempts, return_exceptions=True)

    found = asyncio.run(go())
    assert [type(one) for one in found[:6]] == [Refused] * 6 and found[6:] == list(
        range(6, 64)
    )


def test_as_many_refusals_as_calls_were_under_way_end_it():
    breaker = CircuitBreaker("x")

    async def refused(number):
        await asyncio.sleep(0.01)
        raise Refused("bad", alike="bad")

    async def go():
        attempts = (run(breaker, partial(refused, number)) for number in range(20))
        return await asyncio.gather(*attempts, return_exceptions=True)

    found = asyncio.run(go())
    assert [isinstance(error, BezoarError) for error in found] == [False] * 19 + [True]
