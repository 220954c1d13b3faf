"""Ray Data actors against a real HTTP server that answers as its test tells it."""

import asyncio

import pytest

from bezoar_ray.errors import RecipeError
from bezoar_ray.fan_out import Line, fan_out, interleaved
from bezoar_ray.recipe import ModelPart
from tests.endpoint import serving


async def twice(item, talker):
    """Two rows of an item: a call's answer, and that of a second call which builds on it."""
    chat = talker.for_row(item.decode())
    first = await chat([{"role": "user", "content": item.decode()}], step="first")
    yield first.text.encode()
    yield (await chat([{"role": "user", "content": first.text}], step="second")).text.encode()


def line(server, tmp_path) -> Line:
    return Line(ModelPart(model="m", base_url=server.url, max_in_flight=16), str(tmp_path), "teacher", "s1")


def test_every_row_of_every_item_arrives_once(ray_session, tmp_path):
    with serving(lambda messages: f"{messages[-1]['content']}!") as server:
        items = [str(n).encode() for n in range(30)]
        rows = list(fan_out(items, twice, line(server, tmp_path)))
        assert sorted(rows) == sorted(item + mark for item in items for mark in (b"!", b"!!"))
        assert len(server.requests) == 60
        assert server.most_at_once > 4
        assert sorted(fan_out(items, twice, line(server, tmp_path))) == sorted(rows)
        assert len(server.requests) == 60  # the second time all came from the ledger


def test_an_error_of_ours_arrives_as_it_was_raised(ray_session, tmp_path):
    with serving(lambda _: 401) as server, pytest.raises(RecipeError, match="answers 401: the key is wrong or missing"):
        list(fan_out([b"1", b"2"], twice, line(server, tmp_path)))


def test_without_items_nothing_is_started(tmp_path):
    assert list(fan_out([], twice, Line(ModelPart(model="no such"), str(tmp_path), "teacher", "s1"))) == []


def test_streams_are_merged_as_their_items_come():
    async def stream(name, waits):
        for number, wait in enumerate(waits):
            await asyncio.sleep(wait)
            yield f"{name}{number}"

    async def collect():
        return [
            item async for item in interleaved([stream("slow", [0.2, 0.2]), stream("fast", [0.1, 0.2]), stream("", [])])
        ]

    assert asyncio.run(collect()) == ["fast0", "slow0", "fast1", "slow1"]
