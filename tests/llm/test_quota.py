import asyncio
import time

import pytest

from bezoar_ray.errors import BudgetReached
from bezoar_ray.llm.limits import (
    BudgetLimit,
    RunQuotaServer,
    budget_limits,
    quota_client,
    quota_limits,
)
from bezoar_ray.llm.quota import Budget, Cost, Limits, QuotaClient, QuotaServer
from bezoar_ray.recipe import ModelSection, Prices, load_recipe

PART = ModelSection(model="m", prices=Prices(input=1, output=1))


async def timed(*waits):
    began = time.monotonic()
    await asyncio.gather(*waits)
    return time.monotonic() - began


def test_requests_of_all_processes_together_keep_to_the_limit():
    async def go():
        meter = QuotaServer(
            {"judge": Limits(requests_per_minute=1200)}, []
        )  # 20 a second
        own = [quota_client(meter, "judge") for _ in range(3)]
        return await timed(*(one.take(Cost()) for one in own for _ in range(15)))

    assert 1.1 < asyncio.run(go()) < 2.0  # 20 at once, 25 at 20 a second


def test_tokens_keep_to_the_limit_and_what_was_not_used_is_given_back():
    async def go(used):
        meter = QuotaServer({"judge": Limits(tokens_per_minute=60_000)}, [])
        own = quota_client(meter, "judge")

        async def call():
            await own.take(Cost(tokens=500))
            own.record_usage(Cost(tokens=500), Cost(tokens=used))

        return await timed(*(call() for _ in range(6)))

    assert asyncio.run(go(500)) > 1.8
    assert asyncio.run(go(10)) < 1.2


def test_models_do_not_wait_for_one_another():
    async def go():
        meter = QuotaServer(
            {"slow": Limits(requests_per_minute=60), "fast": Limits()}, []
        )
        slow, fast = quota_client(meter, "slow"), quota_client(meter, "fast")
        waiting = asyncio.gather(*(slow.take(Cost()) for _ in range(5)))
        took = await timed(*(fast.take(Cost()) for _ in range(50)))
        waiting.cancel()
        return took

    assert asyncio.run(go()) < 0.5


def test_a_call_that_might_exceed_a_budget_waits_for_what_others_give_back_and_is_then_refused():
    async def go():
        meter = QuotaServer(
            {"judge": Limits(budgets=("filter.budget_usd",))},
            [Budget("filter.budget_usd", 1.0, 0.5)],
        )
        own, spent = quota_client(meter, "judge"), []

        async def call():
            await own.take(Cost(usd=0.2))
            await asyncio.sleep(0.05)
            own.record_usage(Cost(usd=0.2), Cost(usd=0.03))
            spent.append(0.03)

        done = await asyncio.gather(
            *(call() for _ in range(20)), return_exceptions=True
        )
        return sum(spent), [error for error in done if error]

    spent, refused = asyncio.run(go())
    assert 0.3 < spent <= 0.5  # the last one might have cost more than was left
    assert all(isinstance(error, BudgetReached) for error in refused)
    assert "filter.budget_usd of 1 dollars is reached" in str(
        refused[0]
    ) and "--set filter.budget_usd=" in str(refused[0])


def test_what_a_dead_process_has_reserved_is_waited_for_no_longer_than_its_call_could_take(
    monkeypatch,
):
    async def go():
        monkeypatch.setattr("bezoar_ray.llm.quota._GRACE_SECONDS", 0.1)
        meter = QuotaServer(
            {"judge": Limits(budgets=("budget_usd",), timeout=0.1)},
            [Budget("budget_usd", 1.0, 0.0)],
        )
        await quota_client(meter, "judge").take(Cost(usd=0.8))  # never settled
        with pytest.raises(BudgetReached, match=r"0\.8000 reserved"):
            await asyncio.wait_for(quota_client(meter, "judge").take(Cost(usd=0.5)), 5)

    asyncio.run(go())


def test_two_models_that_wait_for_their_rates_do_not_exceed_the_budget_they_share():
    async def go():
        one = Limits(requests_per_minute=600, budgets=("budget_usd",))
        meter = QuotaServer(
            {"teacher": one, "judge": one}, [Budget("budget_usd", 2.25, 0.0)]
        )
        reserved = []

        async def call(own):
            await own.take(Cost(usd=0.1))
            reserved.append(0.1)

        own = [quota_client(meter, "teacher"), quota_client(meter, "judge")]
        calls = [
            asyncio.create_task(call(one)) for _ in range(15) for one in own
        ]  # ten at once each, then they wait
        await asyncio.sleep(1.0)
        for waiting in calls:
            waiting.cancel()
        return sum(reserved)

    assert asyncio.run(go()) == pytest.approx(2.2)


def test_a_meter_that_cannot_be_reached_ends_the_calls_that_wait_for_it():
    async def go():
        async def lost(*_):
            raise ConnectionError("the meter is gone")

        own = QuotaClient(lost, lost)
        done = await asyncio.gather(
            *(own.take(Cost()) for _ in range(3)), return_exceptions=True
        )
        return [str(error) for error in done]

    assert asyncio.run(asyncio.wait_for(go(), 5)) == ["the meter is gone"] * 3


def test_a_run_knows_its_budgets_and_who_draws_on_them():
    recipe = load_recipe("tiny", ["budget_usd=9", "filter.budget_usd=2"])
    found = budget_limits(recipe)
    assert [(limit.field, limit.usd) for limit in found] == [
        ("budget_usd", 9),
        ("filter.budget_usd", 2),
    ]
    assert quota_limits(PART, "judge", found).budgets == (
        "budget_usd",
        "filter.budget_usd",
    )
    assert quota_limits(PART, "teacher", found).budgets == ("budget_usd",)
    assert not quota_limits(ModelSection(model="free"), "teacher", found)


def test_a_meter_that_starts_again_knows_what_the_ledger_says_was_spent(tmp_path):
    from bezoar_ray.llm.ledger import Ledger

    async def spend():
        ledger = Ledger(tmp_path, "judge", "one")
        await ledger.intend("aa", 0.9)  # never settled: counts as spent
        await ledger.close()
        limit = BudgetLimit("filter.budget_usd", 1.0, ("judge",))
        own = quota_client(
            RunQuotaServer(
                tmp_path, {"0": quota_limits(PART, "judge", [limit])}, [limit]
            ),
            "0",
        )
        await own.take(Cost(usd=0.05))
        own.record_usage(Cost(usd=0.05), Cost(usd=0.05))
        with pytest.raises(BudgetReached, match=r"0\.9500 are spent"):
            await own.take(Cost(usd=0.2))

    asyncio.run(spend())
