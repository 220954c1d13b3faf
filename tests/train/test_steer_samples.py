"""The prompts of a round of SteerLM 2.0, their goals, and the answers that count."""

import asyncio
from typing import Any

import pytest

from bezoar_ray.data.schema import Pair
from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.chat import CallFailed, Reply
from bezoar_ray.recipe import Steer
from bezoar_ray.store import Store
from bezoar_ray.train.steer_samples import (
    SteerGroup,
    SteerPrompt,
    _check_answers,
    _table,
    draw_prompts,
    read_groups,
    sample_group,
)

GOALS = ({"verbosity": 0}, {"verbosity": 4})


def pair(number: int, question: str = "") -> Pair:
    content = question or f"Question {number}?"
    return Pair(
        id=f"pair{number}",
        source="s",
        license="MIT",
        prompt=[{"role": "user", "content": content}],
        chosen="yes",
        rejected="no",
    )


def steer(**fields: Any) -> Steer:
    return Steer.model_validate({"goals": GOALS, "prompts": 6} | fields)


def test_a_draw_of_prompts_depends_on_seed_round_and_row_alone() -> None:
    pairs = [pair(number) for number in range(12)]
    drawn = draw_prompts(pairs, steer(), 0, 1)
    assert len(drawn) == 6
    assert draw_prompts(pairs[::-1], steer(), 0, 1) == drawn
    # Another row takes the place of one, and changes none of the others.
    wider = draw_prompts([*pairs, pair(99)], steer(prompts=7), 0, 1)
    assert len([row for row in drawn if row in wider]) >= 6
    for seed, iteration in ((1, 1), (0, 2)):
        assert draw_prompts(pairs, steer(), seed, iteration) != drawn
    assert {
        row.goal["verbosity"] for row in draw_prompts(pairs, steer(prompts=12), 0, 1)
    } == {0, 4}


def test_a_prompt_of_several_pairs_is_asked_once() -> None:
    pairs = [pair(1, "Same?"), pair(2, "Same?"), pair(3)]
    drawn = draw_prompts(pairs, steer(), 0, 1)
    assert {row.id for row in drawn} == {"pair1", "pair3"}


class ScriptedChat:
    """A Chat that gives each sample its own reply, and keeps how it was asked."""

    def __init__(self, *replies: Reply | CallFailed):
        self.replies = replies
        self.asked: list[tuple[Any, ...]] = []

    async def __call__(
        self, messages: Any, *, step: str, sample: int = 0, **_: object
    ) -> Reply:
        self.asked.append((messages, step, sample))
        reply = self.replies[sample]
        if isinstance(reply, CallFailed):
            raise reply
        return reply


def group_of(chat: ScriptedChat, row: SteerPrompt) -> SteerGroup:
    async def first() -> SteerGroup:
        rows = sample_group(row, chat, iteration=2, samples=len(chat.replies))  # type: ignore[arg-type]
        return [group async for group in rows][0]

    return asyncio.run(first())


ROW = SteerPrompt("p1", [{"role": "user", "content": "Why?"}], {"verbosity": 0})


def test_each_sample_is_asked_under_the_goal() -> None:
    chat = ScriptedChat(Reply("So.", "stop", 9, 2), Reply("Because.", "stop", 9, 2))
    group = group_of(chat, ROW)
    assert group.answers == ["So.", "Because."]
    messages = [{"role": "system", "content": "verbosity:0"}, *ROW.prompt]
    assert chat.asked == [(messages, "steer/2", 0), (messages, "steer/2", 1)]


def test_an_answer_that_cannot_be_learned_from_is_left_out_and_not_its_group() -> None:
    chat = ScriptedChat(
        Reply("It goes on and", "length", 9, 64),
        Reply("So.", "stop", 9, 2),
        CallFailed("too long"),
        Reply("  ", "stop", 9, 1),
    )
    group = group_of(chat, ROW)
    assert (group.answers, group.cut_off, group.failed) == (["So."], 2, 1)


def test_workers_read_all_groups_once_in_their_order(tmp_path: Any) -> None:
    groups = [SteerGroup(f"g{i}", ROW.prompt, ROW.goal, ["a"] * i) for i in range(7)]
    store = Store(tmp_path)
    store.replace_table("answers.parquet", _table(groups))
    for workers in (1, 2, 3):
        found = []
        for rank in range(workers):
            begin, end = rank / workers, (rank + 1) / workers
            found += read_groups(store, "answers.parquet", begin, end)
        assert found == groups


def test_without_any_answer_it_says_what_to_raise() -> None:
    empty = [SteerGroup("g", ROW.prompt, ROW.goal, [], cut_off=3, failed=1)]
    with pytest.raises(BezoarError, match=r"3 are cut off .* 1 failed.*max_tokens"):
        _check_answers(empty, steer())
