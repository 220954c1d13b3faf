"""Events as lines of JSON."""

import asyncio
import logging

import orjson
import pytest

from bezoar_ray.llm.chat import CallFailed, TryAgain
from bezoar_ray.llm.client import ModelClient
from bezoar_ray.llm.ledger import Ledger
from bezoar_ray.recipe import ModelSection
from bezoar_ray.runtime import logs
from bezoar_ray.store import Store


@pytest.fixture
def events(tmp_path):
    """What is kept of the test's events."""
    logs.keep_events(Store(tmp_path / "r"), role="judge")
    yield lambda: [
        orjson.loads(line)
        for line in (tmp_path / "r/logs/events.jsonl").read_bytes().splitlines()
    ]
    logging.getLogger(logs.EVENTS).handlers = []


def test_an_event_says_when_where_which_row_and_what(events):
    logs.current_row.set("row-1")
    logs.event("attempt failed", logging.WARNING, why='a "quoted"\nreason')
    (found,) = events()
    assert found["at"].endswith("Z") and found["level"] == "WARNING"
    assert (found["run"], found["role"], found["row"]) == ("r", "judge", "row-1")
    assert (found["event"], found["why"]) == ("attempt failed", 'a "quoted"\nreason')


def test_failed_attempts_and_calls_name_their_rows(events, tmp_path, scripted):
    def answer(messages):
        raise {"passing": TryAgain("500", after=0), "refused": CallFailed("400")}[
            messages[0]["content"]
        ]

    async def go():
        talker = ModelClient(
            scripted(answer),
            Ledger(tmp_path, "judge", "one"),
            ModelSection(model="m", retries=1),
        )
        calls = [
            talker.for_row(f"row of {kind}")(
                [{"role": "user", "content": kind}], step="x"
            )
            for kind in ("passing", "refused")
        ]
        done = await asyncio.gather(*calls, return_exceptions=True)
        await talker.close()
        return done

    assert all(isinstance(error, CallFailed) for error in asyncio.run(go()))
    found = [(entry["event"], entry["row"], entry["why"]) for entry in events()]
    assert sorted(found) == [
        ("attempt failed", "row of passing", "500"),
        ("attempt failed", "row of passing", "500"),
        ("call failed", "row of refused", "400"),
    ]
