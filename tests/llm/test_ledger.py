import asyncio
import os
import resource
import uuid

import orjson
import pytest

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.llm import ledger_files
from bezoar_ray.llm.breaker import CircuitBreaker
from bezoar_ray.llm.chat import CallFailed, ModelDied, Reply, Sampling, TryAgain
from bezoar_ray.llm.client import ModelClient, open_client
from bezoar_ray.llm.ledger import SESSION, Ledger, accounts, call_key
from bezoar_ray.llm.quota import Cost, QuotaClient
from bezoar_ray.recipe import ModelSection, Prices

QUESTION = [{"role": "user", "content": "2 + 2?"}]
PART = ModelSection(model="scripted", retries=2)
PAID = PART.model_copy(update={"prices": Prices(input=1.0, output=10.0)})


def talker(tmp_path, model, part=PART, session="one"):
    return ModelClient(model, Ledger(tmp_path, "judge", session), part)


def ask(talker_, row="r1", **more):
    async def go():
        reply = await talker_.for_row(row)(QUESTION, step="judge", **more)
        await talker_.close()
        return reply

    return asyncio.run(go())


def test_an_answer_is_asked_for_once_and_found_again_by_the_next_process(
    tmp_path, scripted
):
    first, second = scripted(lambda m: "4"), scripted(lambda m: "never")
    assert ask(talker(tmp_path, first)).text == "4"
    assert ask(talker(tmp_path, second, session="two")).text == "4"
    assert second.asked == []
    calls = accounts(tmp_path, "two")["judge"]
    assert (calls["attempts"], calls["sent"], calls["from_ledger"]) == (1, 1, 1)
    assert (calls["last_run"]["sent"], calls["last_run"]["from_ledger"]) == (0, 1)
    assert calls["by_model"]["scripted"] == {
        "sent": 1,
        "tokens_in": 10,
        "tokens_out": 5,
        "tokens_reasoning": 0,
        "usd": 0.0,
    }


def test_a_segment_is_counted_again_only_after_it_has_grown(
    tmp_path, scripted, monkeypatch
):
    counted, read, real = {}, [], ledger_files.entries
    monkeypatch.setattr(
        ledger_files, "entries", lambda segment: read.append(1) or real(segment)
    )
    model = scripted(lambda m: "4")
    for row, segments in (
        ("r1", 1),
        ("r2", 2),
        ("r2", 3),
    ):  # each command has a segment of its own
        ask(talker(tmp_path, model, session=f"s{segments}"), row=row)
        read.clear()
        known = accounts(tmp_path, "s3", counted)
        assert len(read) == 1  # the new one
        assert known == accounts(tmp_path, "s3")
    assert (
        known["judge"]["sent"] == 2 and known["judge"]["last_run"]["from_ledger"] == 1
    )


@pytest.mark.parametrize(
    "change",
    [
        {"row": "r2"},
        {"sample": 1},
        {"attempt": 1},
        {"sampling": Sampling(temperature=0)},
    ],
)
def test_another_row_sample_attempt_or_parameter_is_another_call(
    tmp_path, scripted, change
):
    model = scripted(lambda m: "4")
    ask(talker(tmp_path, model))
    ask(talker(tmp_path, model), **change)
    assert len(model.asked) == 2


def test_a_retrained_checkpoint_does_not_get_old_answers():
    keys = {
        call_key(who, QUESTION, Sampling(), "r", "s", 0, 0)
        for who in ("fingerprint-1", "fingerprint-2")
    }
    assert len(keys) == 2


def test_a_torn_tail_is_dropped_and_the_rest_kept(tmp_path, scripted):
    ask(talker(tmp_path, scripted(lambda m: "4")))
    (segment,) = (tmp_path / "ledger/judge").glob("*.jsonl")
    with open(segment, "ab") as file:
        file.write(b'{"reply": "abc", "ans')
    model = scripted(lambda m: "never")
    assert ask(talker(tmp_path, model, session="two")).text == "4"
    assert model.asked == []


def test_a_passing_fault_is_tried_again_and_counted(tmp_path, scripted):
    faults = [TryAgain("503", after=0), TryAgain("503", after=0)]

    def answer(messages):
        if faults:
            raise faults.pop()
        return "4"

    assert ask(talker(tmp_path, scripted(answer))).text == "4"
    calls = accounts(tmp_path, "one")["judge"]
    assert (calls["attempts"], calls["sent"]) == (3, 1)


def test_after_the_last_attempt_the_call_fails_and_says_why(tmp_path, scripted):
    def answer(messages):
        raise TryAgain("server answers 503", after=0)

    with pytest.raises(
        CallFailed, match="no answer after 3 attempts: server answers 503"
    ):
        ask(talker(tmp_path, scripted(answer)))


def test_money_is_the_price_of_the_tokens_and_a_cut_call_counts_as_spent(
    tmp_path, scripted
):
    ask(talker(tmp_path, scripted(lambda m: Reply("4", "stop", 1000, 100)), PAID))
    assert accounts(tmp_path, "one")["judge"]["usd"] == pytest.approx(
        (1000 * 1 + 100 * 10) / 1e6
    )

    async def cut():
        ledger = Ledger(tmp_path, "judge", "two")
        await ledger.intend("ff", 0.5)
        await ledger.close()

    asyncio.run(cut())
    assert accounts(tmp_path, "two")["judge"]["usd"] == pytest.approx(0.502)


def test_an_answer_whose_tokens_nobody_counted_is_paid_for_at_its_bound_and_a_refused_key_is_not(
    tmp_path, scripted
):
    ask(talker(tmp_path, scripted(lambda m: Reply("4", "stop", 0, 0)), PAID))
    assert accounts(tmp_path, "one")["judge"]["usd"] > 512 * 10 / 1e6

    def refuse(messages):
        raise RecipeError("wrong key")

    with pytest.raises(RecipeError):
        ask(talker(tmp_path / "b", scripted(refuse), PAID))
    assert accounts(tmp_path / "b", "one")["judge"]["usd"] == 0


def test_many_answers_share_their_fsyncs_and_all_are_durable(tmp_path, monkeypatch):
    syncs, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (syncs.append(fd), real(fd)))

    async def go():
        ledger = Ledger(tmp_path, "teacher", "one")
        reply = Reply("x", "stop", 1, 1)
        await asyncio.gather(
            *(ledger.record_usage(f"{i:032x}", "m", reply, 0.0) for i in range(500))
        )
        await ledger.close()

    asyncio.run(go())
    assert len(syncs) < 50
    assert accounts(tmp_path, "one")["teacher"]["sent"] == 500


def test_a_cancelled_call_holds_nobody_up(tmp_path):
    async def go():
        ledger = Ledger(tmp_path, "teacher", "one")
        reply = Reply("x", "stop", 1, 1)
        given_up, other = (
            asyncio.create_task(ledger.record_usage(key, "m", reply, 0.0))
            for key in ("aa", "bb")
        )
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait_for(other, 5)
        await ledger.close()

    asyncio.run(go())
    assert accounts(tmp_path, "one")["teacher"]["sent"] == 2


def test_a_full_disk_tears_no_line_and_is_named(tmp_path):
    async def go():
        ledger, reply = (
            Ledger(tmp_path, "teacher", "one"),
            Reply("x" * 200, "stop", 1, 1),
        )
        await ledger.record_usage("aa", "m", reply, 0.0)
        (segment,) = (tmp_path / "ledger/teacher").glob("*.jsonl")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (segment.stat().st_size + 50, limits[1])
        )
        try:
            with pytest.raises(BezoarError, match="cannot write .*Free space"):
                await ledger.record_usage("bb", "m", reply, 0.0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        await ledger.record_usage("cc", "m", reply, 0.0)
        await ledger.close()

    asyncio.run(go())
    assert accounts(tmp_path, "one")["teacher"]["sent"] == 2


def test_what_an_earlier_command_left_running_makes_no_call_and_writes_nothing(
    tmp_path, scripted
):
    (tmp_path / SESSION).write_text("one")
    model = scripted(lambda m: "4")

    async def go():
        old = talker(
            tmp_path, model, PAID
        )  # each attempt is written down before it is made
        await old.for_row("r1")(QUESTION, step="judge")
        (tmp_path / SESSION).write_text("two")
        written = {
            path: path.read_bytes() for path in (tmp_path / "ledger").rglob("*.jsonl")
        }
        with pytest.raises(BezoarError, match=r"now owned by another command \(two\)"):
            await old.for_row("r2")(QUESTION, step="judge")
        with pytest.raises(BezoarError, match="owned by another command"):
            await old.for_row("r3")(QUESTION, step="judge")
        assert {
            path: path.read_bytes() for path in (tmp_path / "ledger").rglob("*.jsonl")
        } == written

    asyncio.run(go())
    assert len(model.asked) == 1


def test_only_an_attempt_that_may_have_been_answered_counts_as_spent(
    tmp_path, scripted
):
    faults = [TryAgain("429", after=0, limited=True), TryAgain("timeout", after=0)]

    def answer(messages):
        if faults:
            raise faults.pop(0)
        return Reply("4", "stop", 0, 0)

    ask(talker(tmp_path, scripted(answer), PAID))
    lines = [
        line
        for path in (tmp_path / "ledger/judge").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    spent = [orjson.loads(line)["usd"] for line in lines if "failed" in line]
    assert spent[0] == 0 < spent[1]


def test_an_outage_that_opens_the_circuit_fails_no_call(tmp_path, scripted):
    down = iter(range(30))

    def answer(messages):
        if next(down, None) is not None:
            raise TryAgain("connection refused", after=0)
        return "4"

    async def go():
        one = talker(tmp_path, scripted(answer), PART.model_copy(update={"retries": 1}))
        one._breaker = CircuitBreaker("m", first_wait=0.01)
        done = await asyncio.gather(
            *(one.for_row(f"r{n}")(QUESTION, step="judge") for n in range(25))
        )
        await one.close()
        return [reply.text for reply in done]

    assert asyncio.run(go()) == ["4"] * 25


def test_while_a_circuit_is_open_the_calls_that_wait_for_a_slot_stay_where_they_are(
    tmp_path, scripted
):
    def answer(messages):
        raise TryAgain("503", after=0)

    async def go():
        one = talker(tmp_path, model, PART.model_copy(update={"max_in_flight": 8}))
        calls = [
            asyncio.create_task(one.for_row(f"r{n}")(QUESTION, step="x"))
            for n in range(300)
        ]
        await asyncio.sleep(0.5)  # the first probe comes later
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    model = scripted(answer)
    asyncio.run(go())
    assert 20 <= len(model.asked) <= 40


def test_calls_that_an_endpoint_was_asked_when_its_process_died_are_not_blamed(
    tmp_path, scripted
):
    part = PAID.model_copy(update={"base_url": "http://x", "max_in_flight": 8})

    class Silent(scripted):
        async def complete(self, messages, sampling):
            await asyncio.sleep(60)

    async def go(model, seconds):
        one = talker(tmp_path, model, part)
        calls = [
            asyncio.create_task(one.for_row(f"r{n}")(QUESTION, step="x"))
            for n in range(8)
        ]
        await asyncio.wait(calls, timeout=seconds)
        return [
            call.result().text for call in calls if call.done()
        ]  # a process that dies closes nothing

    for _ in range(3):
        assert asyncio.run(go(Silent(lambda m: ""), 0.2)) == []
    assert asyncio.run(go(scripted(lambda m: "4"), 5)) == ["4"] * 8


def test_actors_that_die_again_and_again_before_they_answer_anything_end_the_stage(
    tmp_path,
):
    part = PAID.model_copy(update={"base_url": "http://127.0.0.1:1/v1"})

    async def die():
        await Ledger(tmp_path, "judge", "one").intend(uuid.uuid4().hex, 1.0)

    async def start(session):
        await open_client(part, str(tmp_path), "judge", session).close()

    for _ in range(9):
        asyncio.run(die())
    with pytest.raises(
        BezoarError, match="scripted: 9 actors died before they answered anything"
    ):
        asyncio.run(start("one"))
    asyncio.run(start("two"))


def test_a_fault_of_the_disk_that_nobody_foresaw_ends_the_calls(tmp_path):
    async def go():
        ledger = Ledger(tmp_path, "teacher", "one")
        (tmp_path / SESSION).mkdir()  # reading it is an error
        with pytest.raises(BezoarError, match="cannot read .*session"):
            await asyncio.wait_for(ledger.intend("aa", 1.0), 5)

    asyncio.run(go())


def test_prompts_that_nothing_answers_fail_and_open_no_circuit(tmp_path, scripted):
    def answer(messages):
        if messages[0]["content"] == "bad":
            raise TryAgain("500", after=0)
        return "4"

    async def go():
        one = talker(tmp_path, scripted(answer))
        one._breaker = CircuitBreaker(
            "m", first_wait=60
        )  # a circuit that opens would hold the test up
        contents = ["fine", "bad", "fine"] * 15
        asks = [
            one.for_row(f"r{n}")([{"role": "user", "content": c}], step="x")
            for n, c in enumerate(contents)
        ]
        done = await asyncio.gather(*asks, return_exceptions=True)
        await one.close()
        return done

    done = asyncio.run(go())
    assert [isinstance(reply, CallFailed) for reply in done] == [
        False,
        True,
        False,
    ] * 15
    assert accounts(tmp_path, "one")["judge"]["attempts"] == 30 + 15 * 3


def test_a_call_that_three_engines_died_of_fails_and_others_do_not(tmp_path, scripted):
    """Each engine dies as soon as it is asked row 7; the calls that were in flight with it are not blamed."""

    def answer(messages):
        return "4"

    class Dying(scripted):
        async def complete(self, messages, sampling):
            if messages[0]["content"] == "7":
                raise ModelDied("killed")
            await asyncio.sleep(0.01)
            return await super().complete(messages, sampling)

    async def engine():
        one = talker(tmp_path, Dying(answer), session="s")
        asks = [
            one.for_row(f"r{n}")([{"role": "user", "content": str(n)}], step="x")
            for n in range(20)
        ]
        done = await asyncio.gather(*asks, return_exceptions=True)
        # a process that dies closes nothing
        return done

    for _ in range(3):
        assert any(isinstance(reply, ModelDied) for reply in asyncio.run(engine()))
    done = asyncio.run(engine())
    assert isinstance(done.pop(7), CallFailed)
    assert [reply.text for reply in done] == ["4"] * 19


@pytest.mark.parametrize(("deaths", "at_once"), [(1, 8), (2, 1)])
def test_only_calls_in_flight_at_two_deaths_go_one_at_a_time(
    tmp_path, scripted, deaths, at_once
):
    """A node that is taken away leaves hundreds of calls in flight, none of which has killed anything."""
    seen = 0

    class Silent(scripted):
        async def complete(self, messages, sampling):
            nonlocal seen
            seen += 1
            await asyncio.sleep(60)

    async def go(at_once):
        """How many calls come to be under way, once as many are as should be, and no more in a while."""
        nonlocal seen
        seen, one = (
            0,
            talker(
                tmp_path,
                Silent(lambda m: ""),
                PART.model_copy(update={"max_in_flight": 8}),
            ),
        )
        calls = [
            asyncio.create_task(one.for_row(f"r{n}")(QUESTION, step="x"))
            for n in range(8)
        ]
        while seen < at_once:
            await asyncio.sleep(0.01)
        await asyncio.wait(calls, timeout=0.2)
        return seen  # a process that dies closes nothing

    for _ in range(deaths):
        asyncio.run(go(8))
    assert asyncio.run(go(at_once)) == at_once


def test_in_a_busy_bucket_a_failed_call_does_not_wait_for_the_others(
    tmp_path, monkeypatch
):
    """Lines go out a batch at a time, with a pause between; there are always some that wait."""
    monkeypatch.setattr("bezoar_ray.llm.ledger_files.FileSegment.pause", 0.1)

    async def go():
        ledger = Ledger(tmp_path, "judge", "one")

        async def busy():
            for n in range(10_000):
                ledger.fail(f"{n:08x}", "m", "500", 0.0)
                await asyncio.sleep(0.01)

        others = asyncio.create_task(busy())
        for _ in range(3):
            await asyncio.sleep(0.05)
            await asyncio.wait_for(ledger.flushed(), 5)
        others.cancel()
        await ledger.close()

    asyncio.run(go())


def test_a_call_that_is_cancelled_before_it_is_sent_gives_all_of_its_quota_back(
    tmp_path, scripted
):
    granted = []
    usage = []

    class Quota(QuotaClient):
        async def take(self, cost, patient=True):
            granted.append(cost)

        def record_usage(self, reserved, used):
            usage.append((reserved, used))

    async def go():
        model = scripted(lambda m: "4")
        ledger = Ledger(tmp_path, "judge", "one")
        client = ModelClient(model, ledger, PAID, Quota(None, None))
        request = await client._rate.admit()
        client._rate.record_limit(request, 60.0)  # the next request waits a minute
        call = asyncio.create_task(client.for_row("r1")(QUESTION, step="judge"))
        while not granted:
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await client.close()
        return model

    model = asyncio.run(go())
    assert model.asked == []
    assert usage == [(granted[0], Cost())]
