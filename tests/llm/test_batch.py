"""The batch interface against a real HTTP server that keeps files and batches, and fails as it is told."""

import asyncio
from dataclasses import dataclass

import orjson
import pytest

from bezoar_ray.data.row import StageRow
from bezoar_ray.errors import BezoarError, BudgetReached, RecipeError
from bezoar_ray.llm import batch
from bezoar_ray.llm.batch import BatchClient
from bezoar_ray.llm.chat import CallFailed, Deferred
from bezoar_ray.llm.ledger import accounts
from bezoar_ray.llm.limits import BudgetLimit
from bezoar_ray.pipeline.actor_pool import ModelStage, RunContext
from bezoar_ray.pipeline.runner import run_in_batches
from bezoar_ray.recipe import ModelSection, Prices
from tests.batches import providing


@dataclass(frozen=True)
class Text(StageRow):
    """A text, which is also its id."""

    id: str


ROWS = [Text(str(n)) for n in range(10)]
ANSWERED = [f"{row.id}!!" for row in ROWS]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(batch, "_POLL_SECONDS", 0.01)


async def judged(row, chat):
    """A chain of two calls; a call that fails for good is a row that says so."""
    try:
        first = await chat([{"role": "user", "content": row.id}], step="first")
        second = await chat([{"role": "user", "content": first.text}], step="second")
    except CallFailed as error:
        yield Text(f"{row.id} failed: {error}")
    else:
        yield Text(second.text)


def part(url, **more) -> ModelSection:
    prices = Prices(input=10.0, output=100.0)
    return ModelSection(
        **{
            "model": "m",
            "base_url": url,
            "mode": "batch",
            "prices": prices,
            "retries": 1,
        }
        | more
    )


def go(tmp_path, url, session="one", limits=(), **more):
    stage = ModelStage(judged, part(url, **more), "judge", Text, Text)
    context = RunContext(str(tmp_path), session, limits)
    return sorted(row.id for row in run_in_batches(ROWS, stage, context))


def mark(messages):
    return messages[-1]["content"] + "!"


def test_each_step_of_all_chains_is_one_batch_at_half_the_price_and_a_rerun_sends_nothing(
    tmp_path,
):
    with providing(mark) as (provider, url):
        assert go(tmp_path, url) == ANSWERED
        assert len(provider.batches) == 2 and len(provider.sent) == 20
        assert go(tmp_path, url, session="two") == ANSWERED
        assert len(provider.batches) == 2
    calls = accounts(tmp_path, "one")["judge"]
    assert (calls["sent"], calls["attempts"]) == (20, 20)
    assert calls["usd"] == pytest.approx(20 * 0.5 * (100 * 10 + 10 * 100) / 1e6)


def test_a_batch_holds_no_more_than_the_provider_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "_MAX_REQUESTS", 4)
    with providing(mark) as (provider, url):
        assert len(go(tmp_path, url)) == 10
        sizes = [
            len(provider.files[b["input_file_id"]].splitlines())
            for b in provider.batches.values()
        ]
        assert sorted(sizes) == [2, 2, 4, 4, 4, 4]


def test_several_judges_take_their_batches_one_after_the_other(tmp_path):
    async def judge(row, chat):
        reply = await chat([{"role": "user", "content": row.id}], step="x")
        yield Text(reply.text)

    def go(session):
        context = RunContext(str(tmp_path), session)
        first, second = (
            ModelStage(judge, part(url, model=name), "judge", Text, Text)
            for name in ("one", "two")
        )
        rows = run_in_batches(ROWS, first, context)
        return sorted(row.id for row in run_in_batches(rows, second, context))

    with providing(mark) as (provider, url):
        assert go("a") == go("b") == ANSWERED
        assert len(provider.sent) == len(set(provider.sent)) == 20


def test_an_answer_may_hold_any_character(tmp_path):
    with providing(lambda messages: "a\u2028b\x0cc\x85d") as (_, url):
        assert set(go(tmp_path, url)) == {"a\u2028b\x0cc\x85d"}


def test_lines_that_failed_or_expired_are_sent_again_then_fail_their_row_alone(
    tmp_path,
):
    seen = []

    def answer(messages):
        text = messages[-1]["content"]
        seen.append(text)
        if text == "7":
            return 500
        return None if text == "3" and seen.count("3") == 1 else text + "!"

    with providing(answer) as (provider, url):
        found = go(tmp_path, url)
    (failed,) = [row for row in found if "failed" in row]
    assert failed.startswith("7 failed: no answer in 2 batches: ")
    assert failed.endswith(" answers 500: scripted 500")
    assert "3!!" in found and seen.count("7") == 2
    assert (
        len(provider.sent) - len(set(provider.sent)) == 2
    )  # 3 and 7 twice, nothing else


def left_behind(tmp_path, provider, url, *, created: bool) -> None:
    """What a process leaves that is gone while its batch is on its way, or just before it is created."""
    provider.holds, provider.faults = True, [] if created else ["create"] * 1000

    async def go():
        batches = BatchClient(part(url), str(tmp_path), "judge", "killed")
        for row in ROWS:
            with pytest.raises(Deferred):
                await anext(judged(row, batches.for_row(row.id)))
        sending = asyncio.create_task(batches.send_and_wait())
        while not provider.batches if created else not provider.files:
            await asyncio.sleep(0.01)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await batches.close()

    asyncio.run(go())
    provider.holds, provider.faults = False, []


def test_a_batch_on_its_way_at_a_crash_is_adopted_not_made_again(tmp_path):
    with providing(mark) as (provider, url):
        left_behind(tmp_path, provider, url, created=True)
        assert len(provider.batches) == 1
        assert (
            accounts(tmp_path, "")["judge"]["attempts"] == 10
        )  # unsettled: counts as spent
        assert len(go(tmp_path, url)) == 10
        assert (
            len(provider.batches) == 2
            and len(set(provider.sent)) == len(provider.sent) == 20
        )
    assert accounts(tmp_path, "")["judge"]["attempts"] == 20


def test_a_batch_that_was_only_meant_is_made_once(tmp_path):
    with providing(mark) as (provider, url):
        left_behind(tmp_path, provider, url, created=False)
        assert not provider.batches
        assert len(go(tmp_path, url)) == 10
        assert len(set(provider.sent)) == len(provider.sent) == 20


def test_a_refused_batch_ends_the_stage_with_the_providers_reason_and_is_not_waited_for_again(
    tmp_path,
):
    with providing(mark) as (provider, url):
        provider.refuse = "no such model"
        with pytest.raises(
            BezoarError, match="m: batch batch_0 was refused: invalid: no such model"
        ):
            go(tmp_path, url)
        provider.refuse = ""
        assert len(go(tmp_path, url, session="two")) == 10


def test_an_outage_is_waited_for_and_makes_no_batch_twice(tmp_path):
    with providing(mark) as (provider, url):
        provider.faults = ["upload", "create", "list", "created", "retrieve", "content"]
        assert len(go(tmp_path, url)) == 10
        assert not provider.faults
        assert len(provider.batches) == 2 and len(set(provider.sent)) == 20


def test_a_wrong_key_stops_at_once(tmp_path):
    with providing(mark) as (provider, url):
        provider.faults = [401]
        with pytest.raises(
            RecipeError, match="answers 401: the key is wrong or missing"
        ):
            go(tmp_path, url)


def test_a_budget_holds_in_batches_too_and_what_fits_is_answered(tmp_path):
    most = (
        0.5 * (17 * 10 + 512 * 100) / 1e6
    )  # dollars of one call: 1 byte and 16, and 512 tokens
    limits = (BudgetLimit("filter.budget_usd", 5.5 * most, ("judge",)),)
    with providing(mark) as (provider, url):
        with pytest.raises(BudgetReached, match="filter.budget_usd"):
            go(tmp_path, url, limits=limits)
        assert len(provider.sent) == 5
        assert len(go(tmp_path, url, session="two")) == 10
        assert len(provider.sent) == 20
    records = [
        orjson.loads(path.read_bytes())
        for path in (tmp_path / "ledger/judge/batches").glob("*.json")
    ]
    assert records and all(record["over"] for record in records)
