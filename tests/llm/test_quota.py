import asyncio
import time

import pytest

from bezoar_ray.errors import BudgetReached
from bezoar_ray.llm.limits import Limit, RunMeter, limits, permits, terms
from bezoar_ray.llm.quota import Budget, Meter, Need, Permits, Terms
from bezoar_ray.recipe import ModelPart, Prices, load_recipe

PART = ModelPart(model="m", prices=Prices(input=1, output=1))


async def timed(*waits):
    began = time.monotonic()
    await asyncio.gather(*waits)
    return time.monotonic() - began


def test_requests_of_all_processes_together_keep_to_the_limit():
    async def go():
        meter = Meter({"judge": Terms(requests_per_minute=1200)}, [])  # 20 a second
        own = [permits(meter, "judge") for _ in range(3)]
        return await timed(*(one.take(Need()) for one in own for _ in range(15)))

    assert 1.1 < asyncio.run(go()) < 2.0  # 20 at once, 25 at 20 a second


def test_tokens_keep_to_the_limit_and_what_was_not_used_is_given_back():
    async def go(used):
        meter = Meter({"judge": Terms(tokens_per_minute=60_000)}, [])
        own = permits(meter, "judge")

        async def call():
            await own.take(Need(tokens=500))
            own.settle(Need(tokens=500), Need(tokens=used))

        return await timed(*(call() for _ in range(6)))

    assert asyncio.run(go(500)) > 1.8
    assert asyncio.run(go(10)) < 1.2


def test_models_do_not_wait_for_one_another():
    async def go():
        meter = Meter({"slow": Terms(requests_per_minute=60), "fast": Terms()}, [])
        slow, fast = permits(meter, "slow"), permits(meter, "fast")
        waiting = asyncio.gather(*(slow.take(Need()) for _ in range(5)))
        took = await timed(*(fast.take(Need()) for _ in range(50)))
        waiting.cancel()
        return took

    assert asyncio.run(go()) < 0.5


def test_a_call_that_might_exceed_a_budget_waits_for_what_others_give_back_and_is_then_refused():
    async def go():
        meter = Meter({"judge": Terms(budgets=("filter.budget_usd",))}, [Budget("filter.budget_usd", 1.0, 0.5)])
        own, spent = permits(meter, "judge"), []

        async def call():
            await own.take(Need(usd=0.2))
            await asyncio.sleep(0.05)
            own.settle(Need(usd=0.2), Need(usd=0.03))
            spent.append(0.03)

        done = await asyncio.gather(*(call() for _ in range(20)), return_exceptions=True)
        return sum(spent), [error for error in done if error]

    spent, refused = asyncio.run(go())
    assert 0.3 < spent <= 0.5  # the last one might have cost more than was left
    assert all(isinstance(error, BudgetReached) for error in refused)
    assert "filter.budget_usd of 1 dollars is reached" in str(refused[0]) and "--set filter.budget_usd=" in str(
        refused[0]
    )


def test_what_a_dead_process_has_reserved_is_waited_for_no_longer_than_its_call_could_take(monkeypatch):
    async def go():
        monkeypatch.setattr("bezoar_ray.llm.quota._LATE", 0.1)
        meter = Meter({"judge": Terms(budgets=("budget_usd",), timeout=0.1)}, [Budget("budget_usd", 1.0, 0.0)])
        await permits(meter, "judge").take(Need(usd=0.8))  # never settled
        with pytest.raises(BudgetReached, match=r"0\.8000 reserved"):
            await asyncio.wait_for(permits(meter, "judge").take(Need(usd=0.5)), 5)

    asyncio.run(go())


def test_two_models_that_wait_for_their_rates_do_not_exceed_the_budget_they_share():
    async def go():
        one = Terms(requests_per_minute=600, budgets=("budget_usd",))
        meter = Meter({"teacher": one, "judge": one}, [Budget("budget_usd", 2.25, 0.0)])
        reserved = []

        async def call(own):
            await own.take(Need(usd=0.1))
            reserved.append(0.1)

        own = [permits(meter, "teacher"), permits(meter, "judge")]
        calls = [asyncio.create_task(call(one)) for _ in range(15) for one in own]  # ten at once each, then they wait
        await asyncio.sleep(1.0)
        for waiting in calls:
            waiting.cancel()
        return sum(reserved)

    assert asyncio.run(go()) == pytest.approx(2.2)


def test_a_meter_that_cannot_be_reached_ends_the_calls_that_wait_for_it():
    async def go():
        async def lost(*_):
            raise ConnectionError("the meter is gone")

        own = Permits(lost, lost)
        done = await asyncio.gather(*(own.take(Need()) for _ in range(3)), return_exceptions=True)
        return [str(error) for error in done]

    assert asyncio.run(asyncio.wait_for(go(), 5)) == ["the meter is gone"] * 3


def test_a_run_knows_its_budgets_and_who_draws_on_them():
    recipe = load_recipe("tiny", ["budget_usd=9", "filter.budget_usd=2"])
    found = limits(recipe)
    assert [(limit.field, limit.usd) for limit in found] == [("budget_usd", 9), ("filter.budget_usd", 2)]
    assert terms(PART, "judge", found).budgets == ("budget_usd", "filter.budget_usd")
    assert terms(PART, "teacher", found).budgets == ("budget_usd",)
    assert not terms(ModelPart(model="free"), "teacher", found)


def test_a_meter_that_starts_again_knows_what_the_ledger_says_was_spent(tmp_path):
    from bezoar_ray.llm.ledger import Ledger

    async def spend():
        ledger = Ledger(tmp_path, "judge", "one")
        await ledger.intend("aa", 0.9)  # never settled: counts as spent
        await ledger.close()
        limit = Limit("filter.budget_usd", 1.0, ("judge",))
        own = permits(RunMeter(tmp_path, {"0": terms(PART, "judge", [limit])}, [limit]), "0")
        await own.take(Need(usd=0.05))
        own.settle(Need(usd=0.05), Need(usd=0.05))
        with pytest.raises(BudgetReached, match=r"0\.9500 are spent"):
            await own.take(Need(usd=0.2))

    asyncio.run(spend())
