"""An OpenAI-compatible server in a process of its own: answers after a time, and within a rate that may move.

`python -m jobs.benchmarks.server --latency 0.1 [--rates 150,20,90 --period 5]` prints its port, then serves.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web


class Allowance:
    """A token bucket whose rate moves; a tenth of a second's worth may go at once."""

    def __init__(self, rates: list[float], period: float):
        self._rates, self._period = rates, period
        self._began = self._seen = 0.0
        self._tokens, self.allowed, self.served, self.refused = 1.0, 0.0, 0, 0

    def ask(self) -> float | None:
        """Seconds to wait, or None where the request may go."""
        now = time.monotonic()
        self._began = self._began or now
        rate = self._rates[int((now - self._began) / self._period) % len(self._rates)]
        earned = (now - (self._seen or now)) * rate
        self._seen = now
        self.allowed += earned
        self._tokens = min(max(1.0, rate / 10), self._tokens + earned)
        if self._tokens < 1:
            self.refused += 1
            return (1 - self._tokens) / rate
        self._tokens, self.served = self._tokens - 1, self.served + 1
        return None


def app(latency: float, allowance: Allowance | None) -> web.Application:
    """The server: a teacher's or a judge's answer, always new."""
    numbers, began = itertools.count(), list[float]()

    async def chat(request: web.Request) -> web.Response:
        body = await request.json()
        if not began and body["messages"]:  # curator's first request has none
            began.append(time.monotonic())
        if allowance and (wait := allowance.ask()) is not None:
            refusal = {"error": {"message": "slow down"}}
            return web.json_response(
                refusal, status=429, headers={"retry-after": f"{wait:.4f}"}
            )
        await asyncio.sleep(latency)
        prompt = "".join(message["content"] for message in body["messages"])
        return web.json_response(_completion(_said(prompt, next(numbers))))

    async def models(_: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": [{"id": "m", "object": "model"}]}
        )

    async def counts(_: web.Request) -> web.Response:
        return web.json_response(
            {"began": began[0]} | (vars(allowance) if allowance else {})
        )

    server = web.Application(client_max_size=2**26)
    server.add_routes(
        [
            web.post("/v1/chat/completions", chat),
            web.get("/v1/models", models),
            web.get("/counts", counts),
        ]
    )
    return server


def _said(prompt: str, number: int) -> str:
    if "<response>" in prompt:
        return '{"reason": "fits", "rating": 5}'
    words = " ".join(f"w{(number * step) % 9973}" for step in range(7, 47))
    return f"Answer {number}: {words}."


def _completion(text: str) -> dict[str, Any]:
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


@contextlib.contextmanager
def running(
    latency: float = 0.0, rates: list[float] | None = None, period: float = 5.0
) -> Iterator[str]:
    """The server's base_url, while the block runs."""
    command = [
        sys.executable,
        "-m",
        "jobs.benchmarks.server",
        "--latency",
        str(latency),
        "--period",
        str(period),
    ]
    command += ["--rates", ",".join(map(str, rates))] if rates else []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.kill()


def counts(url: str) -> dict[str, float]:
    """What the server has allowed, served and refused, and when the first request came, by the monotonic clock."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/counts") as answer:
        return json.load(answer)


async def _serve(options: argparse.Namespace) -> None:
    rates = (
        [float(rate) for rate in options.rates.split(",")] if options.rates else None
    )
    runner = web.AppRunner(
        app(options.latency, Allowance(rates, options.period) if rates else None),
        access_log=None,
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--rates", default="")
    parser.add_argument("--period", type=float, default=5.0)
    uvloop.run(_serve(parser.parse_args()))
