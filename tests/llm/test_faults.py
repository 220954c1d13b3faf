"""Every way in which an endpoint can fail, over real HTTP: each row ends with an answer or with its reason."""

import asyncio
import random

import orjson
import pytest

from bezoar_ray.llm.chat import CallFailed
from bezoar_ray.llm.client import open_client
from bezoar_ray.llm.ledger import accounts
from bezoar_ray.recipe import ModelSection, Prices
from tests.faulty import FAULTS, FOR_GOOD, LIMITED, WHOLE, Faulty, serving

KEY = "sk-canary-0123456789"


def ask_all(tmp_path, fate, rows, monkeypatch, **more):
    """By row: the answer's text and reason, or the fault."""
    monkeypatch.setenv("FAULTS_KEY", KEY)
    monkeypatch.setattr("bezoar_ray.llm.client._MAX_RETRY_WAIT", 0.02)

    faulty = Faulty(fate, lambda _: "four")

    async def go(url):
        settings = {
            "model": "m",
            "base_url": url,
            "api_key_env": "FAULTS_KEY",
            "timeout": 20.0,
            "retries": 3,
        }
        talker = open_client(
            ModelSection(**settings | more), str(tmp_path), "judge", "s"
        )
        asks = [
            talker.for_row(row)([{"role": "user", "content": row}], step="x")
            for row in rows
        ]
        done = await asyncio.gather(*asks, return_exceptions=True)
        await talker.close()
        return dict(zip(rows, done, strict=True)), faulty.asked

    with serving(faulty) as url:
        return asyncio.run(go(url))


def patience(fault):
    """Of the client: a busy machine takes its time over good answers, too."""
    return {"timeout": 2.0} if fault == "hang" else {}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_comes_once_costs_no_row(tmp_path, monkeypatch, fault):
    answers, asked = ask_all(
        tmp_path,
        lambda row, times: fault if times == 1 else "good",
        ["r"],
        monkeypatch,
        **patience(fault),
    )
    if fault in FOR_GOOD:
        assert isinstance(answers["r"], CallFailed)
    else:
        assert answers["r"].text == "four"
        assert answers["r"].finish_reason == (
            "length" if fault == "cut off" else "stop"
        )
        assert asked["r"] == (1 if fault in WHOLE else 2)


@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS if fault not in (*WHOLE, *LIMITED)]
)
def test_a_fault_that_stays_fails_its_row_with_its_reason_and_no_other(
    tmp_path, monkeypatch, fault
):
    rows = ["bad", *map(str, range(30))]
    answers, asked = ask_all(
        tmp_path,
        lambda row, _: fault if row == "bad" else "good",
        rows,
        monkeypatch,
        **patience(fault),
    )
    assert isinstance(answers.pop("bad"), CallFailed)
    assert asked["bad"] == (1 if fault in FOR_GOOD else 4)
    assert {reply.text for reply in answers.values()} == {"four"}


@pytest.mark.parametrize("status", [200, 401, 500])
def test_a_key_that_the_endpoint_says_back_is_not_repeated(
    tmp_path, monkeypatch, status
):
    said = orjson.dumps({"error": {"message": f"wrong key: {KEY}"}})
    answers, _ = ask_all(
        tmp_path, lambda *_: (status, said), ["r"], monkeypatch, retries=0
    )
    assert "wrong key: ***" in str(answers["r"])
    assert KEY.encode() not in b"".join(
        path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    )


def test_whatever_comes_every_row_ends_every_attempt_is_counted_and_the_key_is_nowhere(
    tmp_path, monkeypatch
):
    rng = random.Random(0)
    fates = {
        str(n): [rng.choice([*FAULTS, *["good"] * 25]) for _ in range(20)]
        for n in range(120)
    }
    prices = Prices(input=1.0, output=1.0)
    fate = lambda row, times: fates[row][times % 20]  # noqa: E731
    answers, asked = ask_all(
        tmp_path, fate, list(fates), monkeypatch, prices=prices, timeout=3.0
    )
    assert all(
        isinstance(reply, CallFailed) or reply.text == "four"
        for reply in answers.values()
    )
    calls = accounts(tmp_path, "s")["judge"]
    assert calls["attempts"] == sum(asked.values())
    assert calls["sent"] == sum(
        not isinstance(reply, CallFailed) for reply in answers.values()
    )
    written = b"".join(
        path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    )
    assert KEY.encode() not in written and KEY not in str(answers)
