"""Ray Data actors against a real HTTP server that answers as its test tells it."""

import json
import math
import os
import re
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass

import pytest

from bezoar_ray.data.row import StageRow
from bezoar_ray.data.spool import Spool, spool_rows
from bezoar_ray.errors import BezoarError, BudgetReached, RecipeError
from bezoar_ray.llm.ledger import accounts
from bezoar_ray.llm.limits import BudgetLimit
from bezoar_ray.pipeline.actor_pool import ModelStage, RunContext, stream_rows
from bezoar_ray.recipe import ModelSection, Prices
from tests.endpoint import serving


@dataclass(frozen=True)
class Text(StageRow):
    """A text, which is also its id."""

    id: str


async def twice(row, chat):
    """Two rows: a call's answer, and that of a second call which builds on it."""
    first = await chat([{"role": "user", "content": row.id}], step="first")
    yield Text(first.text)
    second = await chat([{"role": "user", "content": first.text}], step="second")
    yield Text(second.text)


async def once(row, chat):
    reply = await chat([{"role": "user", "content": row.id}], step="x")
    yield Text(reply.text)


def text_stage(process, section, role="teacher"):
    return ModelStage(process, section, role, Text, Text)


def spool_texts(texts, path):
    return spool_rows(map(Text, texts), path, Text)


def part(server, **more) -> ModelSection:
    return ModelSection(
        **{"model": "m", "base_url": server.url, "max_in_flight": 16} | more
    )


def rows(
    server,
    tmp_path,
    texts,
    process=twice,
    downstream=(),
    limits=(),
    session="s1",
    **more,
):
    """The texts that arrive from a teacher and the judges after it."""
    context = RunContext(str(tmp_path), session, limits)
    teacher = text_stage(process, part(server, **more))
    judges = [text_stage(process, part(server), "judge") for process in downstream]
    spool = spool_texts(texts, tmp_path / "scratch/rows.arrow")
    return [row.id for row in stream_rows([(spool, teacher)], judges, context)]


TEXTS = [str(n) for n in range(30)]


def mark(messages):
    return f"{messages[-1]['content']}!"


def test_every_row_of_every_input_row_arrives_once(ray_session, tmp_path):
    with serving(mark) as server:
        found = rows(server, tmp_path, TEXTS)
        assert sorted(found) == sorted(
            text + end for text in TEXTS for end in ("!", "!!")
        )
        assert len(server.requests) == 60
        assert server.most_at_once > 4
        assert sorted(rows(server, tmp_path, TEXTS)) == sorted(found)
        assert len(server.requests) == 60  # the second time all came from the ledger
        assert sorted(rows(server, tmp_path, TEXTS, session="s2", actors=2)) == sorted(
            found
        )
        assert len(server.requests) == 60  # and so for the next command


def test_rows_go_on_to_the_next_model_while_others_are_still_being_made(
    ray_session, tmp_path
):
    judged = threading.Event()

    def answer(messages):
        text = messages[-1]["content"]
        if text == "slow":
            assert judged.wait(60)
        if text.endswith("!"):
            judged.set()
        return f"{text}!"

    with serving(answer) as server:
        found = rows(server, tmp_path, ["slow", *TEXTS], once, downstream=[once])
    assert sorted(found) == sorted(text + "!!" for text in ["slow", *TEXTS])


def test_an_error_of_ours_arrives_as_it_was_raised(ray_session, tmp_path):
    with (
        serving(lambda _: 401) as server,
        pytest.raises(RecipeError, match="answers 401: the key is wrong or missing"),
    ):
        rows(server, tmp_path, TEXTS)


def test_a_row_that_cannot_be_encoded_is_an_error_of_ours(ray_session, tmp_path):
    async def half_a_character(row, chat):
        yield Text("\ud83d")

    message = r"teacher: TypeError: .*surrogates.* More in .*teacher\.log"
    with serving(mark) as server, pytest.raises(BezoarError, match=message):
        rows(server, tmp_path, TEXTS, half_a_character)


def test_what_is_being_answered_when_another_call_is_refused_is_kept(
    ray_session, tmp_path
):
    under_way, refuses = threading.Event(), True

    def answer(messages):
        if refuses and messages[-1]["content"] == "7":
            under_way.wait(60)
            return 401
        under_way.set()
        time.sleep((2 if messages[-1]["content"] == "6" else 0.2) * refuses)
        return "fine!"

    with serving(answer) as server:
        with pytest.raises(RecipeError, match="answers 401"):
            rows(server, tmp_path, TEXTS, once)
        refuses = False
        assert rows(server, tmp_path, TEXTS, once) == ["fine!"] * len(TEXTS)
    times = Counter(messages[-1]["content"] for messages in server.requests)
    assert times.pop("7") == 2 and set(times.values()) == {1}


@pytest.mark.parametrize("downstream", [[once], [once, once]])
def test_an_error_of_an_early_stage_is_not_lost_in_the_later_ones(
    ray_session, tmp_path, downstream
):
    def answer(messages):
        return 401 if messages[-1]["content"] == "7" else "fine!"

    with serving(answer) as server, pytest.raises(RecipeError, match="answers 401"):
        rows(server, tmp_path, TEXTS, once, downstream=downstream)


def test_actors_that_can_never_all_start_are_refused_at_once(ray_session, tmp_path):
    with (
        serving(mark) as server,
        pytest.raises(RecipeError, match=r"1 actors with 100 CPU each.: no node"),
    ):
        rows(server, tmp_path, TEXTS, once, num_cpus=100.0)


def test_a_node_that_does_not_see_the_run_directory_makes_no_call(
    ray_session, tmp_path
):
    """It joined after the start: what it paid for would lie on its own disk."""
    with serving(mark) as server:
        stage = text_stage(once, part(server))
        spool = spool_texts(TEXTS, tmp_path / "scratch/rows.arrow")
        context = RunContext(str(tmp_path), "s1", locked=True)
        with pytest.raises(
            BezoarError,
            match="does not see this folder. Mount the same disk on every node",
        ):
            list(stream_rows([(spool, stage)], [], context))
        assert not server.requests


def test_without_rows_nothing_is_started(tmp_path):
    stage = text_stage(once, ModelSection(model="no such"))
    nothing = spool_texts([], tmp_path / "none.arrow")
    assert nothing == Spool(str(tmp_path / "none.arrow"), 0, Text)
    assert list(stream_rows([(nothing, stage)], [], RunContext("", "s1"))) == []


def test_a_budget_is_never_exceeded_and_what_was_paid_for_is_kept(
    ray_session, tmp_path
):
    prices = Prices(
        input=0.0, output=1000.0
    )  # two tokens an answer: 0.002 dollars, at most 0.01
    limits = (BudgetLimit("generate.budget_usd", 0.05, ("teacher",)),)
    with serving(mark) as server:
        with pytest.raises(
            BudgetReached,
            match=r"generate\.budget_usd of 0\.05 dollars is reached: 0\.04",
        ):
            rows(
                server,
                tmp_path,
                TEXTS,
                once,
                limits=limits,
                prices=prices,
                max_tokens=10,
            )
        spent = accounts(tmp_path, "s1")["teacher"]
        assert 0.04 <= spent["usd"] <= 0.05 and spent["sent"] == len(server.requests)
        more = (BudgetLimit("generate.budget_usd", 5.0, ("teacher",)),)
        assert (
            len(
                rows(
                    server,
                    tmp_path,
                    TEXTS,
                    once,
                    limits=more,
                    prices=prices,
                    max_tokens=10,
                )
            )
            == 30
        )
        assert len(server.requests) == 30


def test_an_actor_that_dies_is_replaced_and_its_rows_are_done_again_from_the_ledger(
    ray_session, tmp_path
):
    died = tmp_path / "died"

    async def deadly(row, chat):
        reply = await chat([{"role": "user", "content": row.id}], step="x")
        if row.id == "17" and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield Text(reply.text)

    with serving(mark) as server:
        assert sorted(rows(server, tmp_path, TEXTS, deadly)) == sorted(
            text + "!" for text in TEXTS
        )
        assert 30 <= len(server.requests) <= 30 + 16


def visible_gpus() -> list[int]:
    """The GPUs that Ray gives to the process in which this runs."""
    import ray

    return sorted(map(int, ray.get_gpu_ids()))


async def on_gpus(row, chat):
    """A call's answer, and the GPUs of the actor that made it."""
    reply = await chat([{"role": "user", "content": row.id}], step="x")
    yield Text(f"{reply.text} {visible_gpus()}")


@pytest.mark.parametrize(
    ("teacher", "judge"),
    [
        ({"num_gpus": 1}, {"num_gpus": 1}),
        ({"num_gpus": 1}, {"num_gpus": 0.5}),  # a local judge with half a GPU
        ({"num_gpus": 0.5}, {"num_gpus": 0.5}),
        ({"num_gpus": 2, "engine": {"tensor_parallel_size": 2}}, {}),
    ],
)
def test_models_run_on_the_gpus_that_they_ask_for(
    ray_session, tmp_path, teacher, judge
):
    """Ray Data takes no batch size of None where an actor asks for GPUs."""
    with serving(mark) as server:
        first = text_stage(on_gpus, part(server, **teacher))
        second = text_stage(on_gpus, part(server, **judge), "judge")
        spool = spool_texts(TEXTS, tmp_path / "scratch/rows.arrow")
        context = RunContext(str(tmp_path), "s1")
        found = list(stream_rows([(spool, first)], [second], context))
    assert len(found) == len(TEXTS)
    for row in found:
        taught, judged = re.findall(r"\[[\d, ]*\]", row.id)
        assert len(json.loads(taught)) == math.ceil(teacher["num_gpus"])
        assert len(json.loads(judged)) == math.ceil(judge.get("num_gpus", 0))


def test_two_teachers_and_a_pool_that_may_grow_share_the_gpus(ray_session, tmp_path):
    with serving(mark) as server:
        growing = part(server, model="n", num_gpus=0.5, actors=1, max_actors=2)
        inputs = [
            (
                spool_texts(TEXTS[:15], tmp_path / "scratch/a.arrow"),
                text_stage(on_gpus, part(server, num_gpus=1)),
            ),
            (
                spool_texts(TEXTS[15:], tmp_path / "scratch/b.arrow"),
                text_stage(on_gpus, growing),
            ),
        ]
        found = list(stream_rows(inputs, [], RunContext(str(tmp_path), "s1")))
    assert sorted(row.id.split()[0] for row in found) == sorted(
        text + "!" for text in TEXTS
    )
    assert {row.id.split()[1] for row in found} == {"[0]", "[1]"}
