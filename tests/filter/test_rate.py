import asyncio

import orjson
import pytest

from bezoar_ray.data.schema import Sample, Verdict
from bezoar_ray.filter.rate import judge_sample
from bezoar_ray.llm.chat import CallFailed, Reply
from bezoar_ray.llm.reasoning import without_reasoning
from bezoar_ray.recipe import RowJudge

SAMPLE = Sample(
    id="1",
    scheme="orca",
    operation="x",
    system="Be kind.",
    instruction="Name a fruit.",
    response="Fig.",
)


JUDGE = RowJudge(model="some-judge")


def verdict(*replies, accept_rating=4.0, judge=JUDGE):
    """The verdict where the judge gives these replies, and the calls it took."""
    calls = []

    async def chat(messages, *, step, attempt=0, sampling=None):
        calls.append((step, attempt, messages))
        if replies[attempt] is None:
            raise CallFailed("HTTP 400")
        found = replies[attempt]
        return (
            found
            if isinstance(found, Reply)
            else Reply(without_reasoning(found), "stop", 10, 5)
        )

    return asyncio.run(
        judge_sample(SAMPLE, chat, "Fruit only.", judge, accept_rating)
    ), calls


def test_the_judge_sees_rubric_system_message_and_row():
    _, ((step, number, messages),) = verdict('{"reason": "a fruit", "rating": 5}')
    assert (step, number) == ("judge", 0)
    assert all(
        text in messages[1]["content"]
        for text in ("Fruit only.", "Be kind.", "Name a fruit.", "Fig.")
    )


def test_a_reward_model_sees_the_row_alone():
    _, ((_, _, messages),) = verdict(
        '{"reason": "helpfulness 4.00", "rating": 5}', judge=RowJudge(reward="rm")
    )
    assert messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Name a fruit."},
        {"role": "assistant", "content": "Fig."},
    ]


@pytest.mark.parametrize(
    ("rating", "status"),
    [(5, "accepted"), (4, "accepted"), (3.5, "rejected"), (1, "rejected")],
)
def test_the_threshold_decides(rating, status):
    found, _ = verdict(f'Here: {{"reason": "so", "rating": {rating}}}')
    assert found == Verdict("some-judge", status, rating, "so")


def test_nonsense_is_asked_for_once_more():
    found, calls = verdict("hm", '{"reason": "ok", "rating": 4}')
    assert found.status == "accepted"
    assert [number for _, number, _ in calls] == [0, 1]


@pytest.mark.parametrize(
    "reply", ["hm", '{"rating": 9}', '{"reason": "no rating"}', "4"]
)
def test_nonsense_twice_is_never_accepted(reply):
    found, calls = verdict(reply, reply, accept_rating=1)
    assert (found.status, found.rating, len(calls)) == ("failed", None, 2)
    assert reply in found.reason


@pytest.mark.parametrize(
    "reply",
    [
        r'{"reason": "It proves that \(x^2\) is \frac{a}{b}.", "rating": 4}',
        '{"reason": "one line\nand another", "rating": 4}',
        '{"reason": "so", "rating": 4,}',
        '{"Reason": "so", "Rating": 4}',
        '{"reason": "so", "score": 4}',
        '{"reason": "so", "rating": null, "score": 4}',
        '{"reason": "so", "rating": "4/5"}',
        '{"reason": "so", "rating": "4 out of 5"}',
        "{'reason': 'so', 'rating': 4}",
        '{"reason": "He says "no" twice.", "rating": 4}',
        '{"reason": "so" "rating": 4}',
        "{reason: so, rating: 4}",
        '{"reason": "so", "rating": 4',
        '```json\n{"reason": "a set {1, 2}", "rating": 4,}\n```',
        'A set {1, 2} is right. {"reason": "so", "rating": 4}',
        '<think>First {"rating": 1}, or rather 5?</think>{"reason": "so", "rating": 4}',
        'maybe {"rating": 2}\n</think>\n{"reason": "so", "rating": 4}',
    ],
)
def test_a_verdict_is_read_as_judges_write_it(reply):
    found, calls = verdict(reply)
    assert (found.status, found.rating, len(calls)) == ("accepted", 4.0, 1)


@pytest.mark.parametrize(
    "reply",
    [
        '{"reason": "The answer holds {"rating": 5} itself.", "rating": 2}',  # which of them is the judge's?
        '{"reason": "so", "rating": "8/10"}',
        '{"reason": "so", "rating": true}',
        '{"reason": "so", "rating": "high"}',
        '{"reason": "so", "rating": 4} {"reason": "or", "rating": 2}',
        '<think>It deserves {"rating": 5}',
        "{" * 15_000,
    ],
)
def test_what_could_be_another_verdict_is_none(reply):
    found, calls = verdict(reply, reply)
    assert (found.status, len(calls)) == ("failed", 2)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (
            Reply('{"reason": "so", "rating": 5}', "length", 10, 512),
            "it was cut off (length after 512 tokens)",
        ),
        (
            Reply("", "max_tokens", 10, 512),
            "the answer was lost to reasoning (max_tokens after 512 tokens)",
        ),
        (
            Reply("Perhaps 5", "length", 10, 512, 400),
            "the answer was lost to reasoning",
        ),
        (Reply("", "SAFETY", 10, 0), "it was ended by a filter (SAFETY)"),
    ],
)
def test_a_reply_that_is_cut_off_holds_no_verdict_and_says_what_helps(reply, said):
    found, calls = verdict(reply, reply)
    assert found.status == "failed" and said in found.reason
    assert "filter" in said or "raise max_tokens" in found.reason
    assert said in calls[1][2][-1]["content"]


def test_the_second_attempt_says_what_could_not_be_read():
    """At temperature 0 the same question would be answered in the same way."""
    _, calls = verdict("hm", "hm", "hm")
    (_, _, first), (_, _, second) = calls
    assert second[:-1] == first[:-1] and second[-1]["content"].startswith(
        first[-1]["content"]
    )
    assert "it held no rating that could be read" in second[-1]["content"]


@pytest.mark.parametrize(
    "reply",
    [
        '{"rating": ' + "9" * 400 + "}",
        '{"a":' + "[" * 100_000,
        '{"rating": NaN}',
        '{"rating": {"rating": 5}}',
    ],
    ids=[
        "more digits than a float has",
        "deeper than the stack",
        "not a number",
        "an object",
    ],
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

    part = RowJudge(model="j", temperature=0.5, max_tokens=99, structured=structured)
    asyncio.run(judge_sample(SAMPLE, chat, "Fruit only.", part, 4.0))
    (sampling,) = asked
    assert (sampling.temperature, sampling.max_tokens) == (0.5, 99)
    assert bool(sampling.schema) == structured
