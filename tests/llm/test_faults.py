"""Every way in which an endpoint can fail, over real HTTP: each row ends with an answer or with its reason."""

import asyncio
import random

import orjson
import pytest

from bezoar_ray.llm.chat import CallFailed
from bezoar_ray.llm.client import open_talker
from bezoar_ray.llm.ledger import accounts
from bezoar_ray.recipe import ModelPart, Prices
from tests.llm.test_endpoint import GOOD

KEY = "sk-canary-0123456789"
LENGTH = GOOD | {"choices": [GOOD["choices"][0] | {"finish_reason": "length"}]}
ANSWERS = {
    "good": (200, orjson.dumps(GOOD)), "cut off": (200, orjson.dumps(LENGTH)),
    "429": (429, b'{"error": {"message": "slow down"}}'), "500": (500, b"oops"), "503": (503, b"<html>busy</html>"),
    "broken": (200, b'{"choices": ['), "not json": (200, b"<html>hello</html>"), "null": (200, b"null"),
    "list": (200, b"[1]"), "no choice": (200, orjson.dumps(GOOD | {"choices": []})),
    "400": (400, b'{"error": {"message": "bad prompt"}}'),
}  # fmt: skip
FAULTS = [*ANSWERS, "hang", "close", "cut body"]


class Faulty:
    """Answers a request by what its test says of the row in it, and of how often it was asked."""

    def __init__(self, fate):
        self.fate, self.asked = fate, {}

    async def serve(self, reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                row = orjson.loads(await reader.readexactly(size))["messages"][0]["content"]
                self.asked[row] = self.asked.get(row, 0) + 1
                await self._answer(self.fate(row, self.asked[row]), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, fault, writer):
        if fault == "hang":
            await asyncio.sleep(60)
        if fault == "close":
            raise ConnectionError
        status, body = ANSWERS.get(fault, ANSWERS["good"])
        head = (
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nretry-after: 0.01\r\ncontent-length: {len(body)}"
        )
        writer.write(head.encode() + b"\r\n\r\n" + (body[: len(body) // 2] if fault == "cut body" else body))
        await writer.drain()
        if fault == "cut body":
            raise ConnectionError


def ask_all(tmp_path, fate, rows, monkeypatch, **more):
    """By row: the answer's text and reason, or the fault."""
    monkeypatch.setenv("FAULTS_KEY", KEY)
    monkeypatch.setattr("bezoar_ray.llm.client._LONGEST_WAIT", 0.02)

    async def go():
        faulty = Faulty(fate)
        server = await asyncio.start_server(faulty.serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        settings = {"model": "m", "base_url": url, "api_key_env": "FAULTS_KEY", "timeout": 0.5, "retries": 3}
        talker = open_talker(ModelPart(**settings | more), str(tmp_path), "judge", "s")
        asks = [talker.for_row(row)([{"role": "user", "content": row}], step="x") for row in rows]
        done = await asyncio.gather(*asks, return_exceptions=True)
        await talker.close()
        server.close()
        return dict(zip(rows, done, strict=True)), faulty.asked

    return asyncio.run(go())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_comes_once_costs_no_row(tmp_path, monkeypatch, fault):
    answers, asked = ask_all(tmp_path, lambda row, times: fault if times == 1 else "good", ["r"], monkeypatch)
    if fault == "400":
        assert isinstance(answers["r"], CallFailed)
    else:
        assert answers["r"].text == "four"
        assert answers["r"].finish_reason == ("length" if fault == "cut off" else "stop")
        assert asked["r"] == (1 if fault in ("good", "cut off") else 2)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in ("good", "cut off", "429")])
def test_a_fault_that_stays_fails_its_row_with_its_reason_and_no_other(tmp_path, monkeypatch, fault):
    rows = ["bad", *map(str, range(30))]
    answers, asked = ask_all(tmp_path, lambda row, _: fault if row == "bad" else "good", rows, monkeypatch)
    assert isinstance(answers.pop("bad"), CallFailed)
    assert asked["bad"] == (1 if fault == "400" else 4)
    assert {reply.text for reply in answers.values()} == {"four"}


@pytest.mark.parametrize("fault", ["401", "500 with the key"])
def test_a_key_that_the_endpoint_says_back_is_not_repeated(tmp_path, monkeypatch, fault):
    said = orjson.dumps({"error": {"message": f"wrong key: {KEY}"}})
    monkeypatch.setitem(ANSWERS, fault, (int(fault[:3]), said))
    answers, _ = ask_all(tmp_path, lambda *_: fault, ["r"], monkeypatch, retries=0)
    assert "wrong key: ***" in str(answers["r"])
    assert KEY.encode() not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_whatever_comes_every_row_ends_every_attempt_is_counted_and_the_key_is_nowhere(tmp_path, monkeypatch):
    rng = random.Random(0)
    fates = {str(n): [rng.choice([*FAULTS, *["good"] * 25]) for _ in range(20)] for n in range(120)}
    prices = Prices(input=1.0, output=1.0)
    fate = lambda row, times: fates[row][times % 20]  # noqa: E731
    answers, asked = ask_all(tmp_path, fate, list(fates), monkeypatch, prices=prices, timeout=0.2)
    assert all(isinstance(reply, CallFailed) or reply.text == "four" for reply in answers.values())
    calls = accounts(tmp_path, "s")["judge"]
    assert calls["attempts"] == sum(asked.values())
    assert calls["sent"] == sum(not isinstance(reply, CallFailed) for reply in answers.values())
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in written and KEY not in str(answers)
