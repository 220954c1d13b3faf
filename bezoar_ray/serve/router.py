"""Several engines behind one address: a request goes to the engine that hosts the model it names.

What travels between the two are ASGI's own messages, over Serve's handles: streams stay streams, and a client that goes
away ends its request in the engine.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MODELS = "/v1/models"


@dataclass(frozen=True)
class HttpRequest:
    """One HTTP request, whole."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @property
    def model(self) -> str | None:
        """The model that its body names, if it is JSON and names one."""
        try:
            body = json.loads(self.body)
        except ValueError:
            return None
        name = body.get("model") if isinstance(body, dict) else None
        return name if isinstance(name, str) else None


async def answer(app: "ASGIApp", request: HttpRequest) -> "AsyncIterator[Message]":
    """An ASGI app's messages in answer to a request."""
    messages: asyncio.Queue[Message] = asyncio.Queue()
    given = iter([{"type": "http.request", "body": request.body, "more_body": False}])

    async def receive() -> "Message":
        for message in given:
            return message
        return (
            await asyncio.Future()
        )  # the client stays: if it goes, this whole generator ends

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "method": request.method,
        "path": request.path,
        "raw_path": request.path.encode(),
        "query_string": request.query,
        "headers": request.headers,
        "client": None,
        "server": None,
    }
    task = asyncio.ensure_future(app(scope, receive, messages.put))
    task.add_done_callback(lambda _: messages.put_nowait({}))
    try:
        while message := await messages.get():
            yield message
        await task
    finally:
        task.cancel()


def router(
    engines: "dict[str, Callable[[HttpRequest], AsyncIterator[Message]]]",
) -> "ASGIApp":
    """An ASGI app that hands requests on: `engines` by model. What names no model of theirs is the first one's."""

    from fastapi import requests, responses

    async def route(scope: "Scope", receive: "Receive", send: "Send") -> None:
        body = await requests.Request(scope, receive).body()
        request = HttpRequest(
            scope["method"],
            scope["path"],
            scope["query_string"],
            list(scope["headers"]),
            body,
        )
        if request.method == "GET" and request.path.rstrip("/") == _MODELS:
            return await responses.JSONResponse(await _all_models(request))(
                scope, receive, send
            )
        chosen = engines.get(request.model or "", next(iter(engines.values())))
        async for message in chosen(request):
            await send(message)

    async def _all_models(request: HttpRequest) -> dict[str, object]:
        found: dict[str, object] = {}
        for engine in dict.fromkeys(engines.values()):
            body = b"".join(
                [message.get("body", b"") async for message in engine(request)]
            )
            found |= {model["id"]: model for model in json.loads(body)["data"]}
        return {
            "object": "list",
            "data": [found[name] for name in engines if name in found],
        }

    return route
