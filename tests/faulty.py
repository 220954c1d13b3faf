"""An endpoint that fails in every way there is, over real HTTP, as its test tells it."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import orjson

from bezoar_ray.llm.chat import Messages
from tests.endpoint import completion

_FAULTY = {
    "429": (429, b'{"error": {"message": "slow down"}}'),
    "500": (500, b"oops"),
    "503": (503, b"<html>busy</html>"),
    "broken": (200, b'{"choices": ['),
    "not json": (200, b"hello"),
    "null": (200, b"null"),
    "list": (200, b"[1]"),
    "no choice": (200, b'{"id": "1", "object": "chat.completion", "choices": []}'),
    "400": (400, b'{"error": {"message": "bad prompt"}}'),
    "flagged": (403, b'{"error": "rejected by moderation"}'),
    "too long": (
        400,
        b'{"error": {"message": "prompt is too long", "type": "invalid_request_error"}}',
    ),
    "error inside": (200, b'{"error": {"code": 502, "message": "the host hung up"}}'),
    "limit inside": (200, b'{"error": {"code": 429, "message": "slow down"}}'),
    "error at the end": (
        200,
        b'{"choices": [{"message": {"content": ""}, "finish_reason": "error"}]}',
    ),
    "overloaded": (
        529,
        b'{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}',
    ),
}
FAULTS = ["good", "cut off", "in parts", *_FAULTY, "hang", "close", "cut body"]
FOR_GOOD = ("400", "flagged", "too long")
"""Those that end the row: the same prompt would be refused again."""
WHOLE = ("good", "cut off", "in parts")
"""Those that are answers."""
LIMITED = ("429", "limit inside")
"""Those after which a call is made again, however often."""


class Faulty:
    """Answers a request by `fate`, of its last message and of how often that was asked: one of `FAULTS`, or a status
    and a body. `says` is what a good answer says; `asked` counts the requests."""

    def __init__(
        self,
        fate: Callable[[str, int], str | tuple[int, bytes]],
        says: Callable[[Messages], str],
    ):
        self._fate, self._says = fate, says
        self.asked: dict[str, int] = {}

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One connection's requests, one after the other."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = int(
                    head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                )
                messages = orjson.loads(await reader.readexactly(size))["messages"]
                prompt = messages[-1]["content"]
                self.asked[prompt] = self.asked.get(prompt, 0) + 1
                await self._answer(
                    self._fate(prompt, self.asked[prompt]), messages, writer
                )
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(
        self,
        fault: str | tuple[int, bytes],
        messages: Messages,
        writer: asyncio.StreamWriter,
    ) -> None:
        if fault == "hang":
            await asyncio.sleep(60)  # until the client gives up and the test ends
        if fault == "close":
            raise ConnectionError
        whole = completion(
            self._says(messages), "length" if fault == "cut off" else "stop"
        )
        if fault == "in parts":
            answer = orjson.loads(whole)
            said = answer["choices"][0]["message"]
            said["content"] = [
                {"type": "thinking", "thinking": "hm"},
                {"type": "text", "text": said["content"]},
            ]
            whole = orjson.dumps(answer)
        status, body = (
            fault if isinstance(fault, tuple) else _FAULTY.get(fault, (200, whole))
        )
        head = (
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
            f"retry-after: 0.01\r\ncontent-length: {len(body)}"
        )
        writer.write(
            head.encode()
            + b"\r\n\r\n"
            + (body[: len(body) // 2] if fault == "cut body" else body)
        )
        await writer.drain()
        if fault == "cut body":
            raise ConnectionError


@contextlib.contextmanager
def serving(faulty: Faulty) -> Iterator[str]:
    """Its base_url, while the block runs."""
    address, over = Future[str](), threading.Event()

    async def serve() -> None:
        async with await asyncio.start_server(faulty.serve, "127.0.0.1", 0) as server:
            address.set_result(
                f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            )
            while not over.is_set():
                await asyncio.sleep(0.05)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        yield address.result()
    finally:
        over.set()
        thread.join()
