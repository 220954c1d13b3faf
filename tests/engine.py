"""A scripted engine behind a real HTTP server: what it says and how likely it finds a text follow from the request."""

import contextlib
import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

from tests.endpoint import completion
from tests.scripted import words

CONTEXT = 2048


class Engine(ThreadingHTTPServer):
    """`chats` and `scored` count requests: by model and messages, and by model and kind of lm-eval's request; `most` is
    how many were under way at once."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, models: list[str], slowest: float):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models, self.slowest = models, slowest
        self.chats, self.scored = Counter[bytes](), Counter[tuple[str, str]]()
        self.under_way = self.most = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def asked(self) -> int:
        return self.chats.total() + self.scored.total()


@contextlib.contextmanager
def hosting(models: list[str], slowest: float = 0.0) -> Iterator[Engine]:
    """The engine, while the block runs; it takes up to `slowest` seconds for a request."""
    engine = Engine(models, slowest)
    threading.Thread(target=engine.serve_forever, daemon=True).start()
    try:
        yield engine
    finally:
        engine.shutdown()
        engine.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Engine
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._send(
            {
                "object": "list",
                "data": [
                    {"id": name, "max_model_len": CONTEXT}
                    for name in self.server.models
                ],
            }
        )

    def do_POST(self):
        body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            if "messages" in body:
                self.server.chats[orjson.dumps([body["model"], body["messages"]])] += 1
            else:
                self.server.scored[
                    body["model"], "scored" if body.get("echo") else "generated"
                ] += 1
            self.server.under_way += 1
            self.server.most = max(self.server.most, self.server.under_way)
        time.sleep(random.uniform(0, self.server.slowest))
        with self.server.lock:
            self.server.under_way -= 1
        if "messages" in body:
            self._send(
                orjson.loads(
                    completion(
                        " ".join(words([body["model"], body["messages"]])[:9]) + "."
                    )
                )
            )
        else:
            self._send(
                {
                    "id": "1",
                    "object": "text_completion",
                    "model": body["model"],
                    "choices": _choices(body),
                }
            )

    def _send(self, found: dict[str, Any]) -> None:
        data = orjson.dumps(found)
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def _choices(body: dict[str, Any]) -> list[dict[str, Any]]:
    prompts = (
        body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
    )
    return [
        _echoed(n, body["model"], prompt)
        if body.get("echo")
        else _said(n, body["model"], prompt)
        for n, prompt in enumerate(prompts)
    ]


def _said(index: int, model: str, prompt: list[int]) -> dict[str, Any]:
    return {
        "index": index,
        "text": f"The answer is {len(words([model, prompt])[0])}.",
        "finish_reason": "stop",
    }


def _echoed(index: int, model: str, prompt: list[int]) -> dict[str, Any]:
    tokens = [str(token) for token in [*prompt, 0]]
    found = [None, *(-_number(model, prompt[: n + 1]) for n in range(1, len(tokens)))]
    tops = [
        None,
        *({token: value} for token, value in zip(tokens[1:], found[1:], strict=True)),
    ]
    logprobs = {"tokens": tokens, "token_logprobs": found, "top_logprobs": tops}
    return {"index": index, "text": "", "finish_reason": "length", "logprobs": logprobs}


def _number(model: str, prompt: list[int]) -> float:
    return (
        int.from_bytes(hashlib.sha256(orjson.dumps([model, prompt])).digest()[:2])
        / 2**13
    )
