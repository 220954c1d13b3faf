"""A real OpenAI-compatible HTTP server on this machine whose answers a test scripts."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson

from bezoar_ray.llm.chat import Messages

Answer = Callable[
    [Messages], str | tuple[str, str] | int
]  # text; text and finish_reason; or an HTTP status


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Answer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.requests, self.most_at_once, self._open = answer, [], 0, 0
        self.models: list[str] = []
        self.keys: set[str | None] = set()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def count(self, change: int) -> None:
        with self._lock:
            self._open += change
            self.most_at_once = max(self.most_at_once, self._open)


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    """The server, while the block runs.

    `requests` holds the messages of each call, `models` the model that each asked for, `keys` who they came from.
    """
    server = Server(answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
        messages = body["messages"]
        self.server.requests.append(messages)
        self.server.models.append(body["model"])
        self.server.keys.add(self.headers["authorization"])
        self.server.count(1)
        threading.Event().wait(0.02)
        status, body = _body(self.server.answer(messages))
        self.server.count(-1)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def _body(answer: str | tuple[str, str] | int) -> tuple[int, bytes]:
    if isinstance(answer, int):
        return answer, orjson.dumps({"error": {"message": f"scripted {answer}"}})
    text, finish_reason = (answer, "stop") if isinstance(answer, str) else answer
    return 200, completion(text, finish_reason)


def completion(text: str, finish_reason: str = "stop") -> bytes:
    """A whole answer."""
    choice = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": text},
    }
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    whole = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }
    return orjson.dumps(whole)
