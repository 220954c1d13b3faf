import asyncio

import orjson
import pytest

from bezoar_ray.filter.judge import judge_sample
from bezoar_ray.llm.chat import CallFailed, Reply
from bezoar_ray.recipe import ModelPart
from bezoar_ray.rows import Sample, Verdict

SAMPLE = Sample(id="1", scheme="orca", operation="x", system="Be kind.", instruction="Name a fruit.", response="Fig.")


def verdict(*replies, accept_rating=4.0):
    """The verdict where the judge gives these replies, and the calls it took."""
    calls = []

    async def chat(messages, *, step, attempt=0, sampling=None):
        calls.append((step, attempt, messages))
        if replies[attempt] is None:
            raise CallFailed("HTTP 400")
        return Reply(replies[attempt], "stop", 10, 5)

    part = ModelPart(model="some-judge")
    return asyncio.run(judge_sample(SAMPLE, chat, "Fruit only.", part, accept_rating)), calls


def test_the_judge_sees_rubric_system_message_and_row():
    _, ((step, number, messages),) = verdict('{"reason": "a fruit", "rating": 5}')
    assert (step, number) == ("judge", 0)
    assert all(text in messages[1]["content"] for text in ("Fruit only.", "Be kind.", "Name a fruit.", "Fig."))


@pytest.mark.parametrize(("rating", "status"), [(5, "accepted"), (4, "accepted"), (3.5, "rejected"), (1, "rejected")])
def test_the_threshold_decides(rating, status):
    found, _ = verdict(f'Here: {{"reason": "so", "rating": {rating}}}')
    assert found == Verdict("some-judge", status, rating, "so")


def test_nonsense_is_asked_for_once_more():
    found, calls = verdict("hm", '{"reason": "ok", "rating": 4}')
    assert found.status == "accepted"
    assert [number for _, number, _ in calls] == [0, 1]


@pytest.mark.parametrize("reply", ["hm", '{"rating": 9}', '{"reason": "no rating"}', "4"])
def test_nonsense_twice_is_never_accepted(reply):
    found, calls = verdict(reply, reply, accept_rating=1)
    assert (found.status, found.rating, len(calls)) == ("failed", None, 2)
    assert reply in found.reason


@pytest.mark.parametrize(
    "reply",
    ['{"rating": ' + "9" * 400 + "}", '{"a":' + "[" * 100_000, '{"rating": NaN}', '{"rating": {"rating": 5}}'],
    ids=["more digits than a float has", "deeper than the stack", "not a number", "an object"],
)
def test_no_reply_can_end_the_stage(reply):
    found, _ = verdict(reply, reply)
    assert found.status == "failed"


def test_half_a_character_in_a_reason_can_be_written_down():
    found, _ = verdict(r'{"reason": "so \ud83d so", "rating": 4}')
    assert (found.status, found.reason) == ("accepted", "so ? so")
    assert orjson.dumps(found.reason)


def test_a_failed_call_is_a_failed_verdict():
    found, calls = verdict(None)
    assert (found.status, found.reason, len(calls)) == ("failed", "call: HTTP 400", 1)


@pytest.mark.parametrize("structured", [False, True])
def test_a_verdict_is_asked_for_by_schema_where_the_recipe_says_so(structured):
    asked = []

    async def chat(messages, *, step, attempt=0, sampling=None):
        asked.append(sampling)
        return Reply('{"reason": "good", "rating": 4}', "stop", 10, 5)

    part = ModelPart(model="j", temperature=0.5, max_tokens=99, structured=structured)
    asyncio.run(judge_sample(SAMPLE, chat, "Fruit only.", part, 4.0))
    (sampling,) = asked
    assert (sampling.temperature, sampling.max_tokens) == (0.5, 99)
    assert bool(sampling.schema) == structured
