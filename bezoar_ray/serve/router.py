"""Several engines behind one address: each request goes to the engine of its model.

Router and engines exchange ASGI messages over Serve's handles. So streams stay streams,
and if a client disconnects, its request ends in the engine, too.
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
    """One HTTP request with its whole body."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @property
    def model(self) -> str | None:
        """The model that a JSON body names, if it names one."""
        try:
            body = json.loads(self.body)
        except ValueError:
            return None
        name = body.get("model") if isinstance(body, dict) else None
        return name if isinstance(name, str) else None


async def respond(app: "ASGIApp", request: HttpRequest) -> "AsyncIterator[Message]":
    """Run an ASGI app on one request, and yield the messages that it sends."""
    responses: asyncio.Queue[Message] = asyncio.Queue()
    body_message: Message = {
        "type": "http.request",
        "body": request.body,
        "more_body": False,
    }
    body_read = False

    async def receive() -> "Message":
        nonlocal body_read
        if not body_read:
            body_read = True
            return body_message
        # The app now waits for a disconnect. There is none to report: if the client
        # disconnects, this generator is closed and the app's task is canceled.
        return await asyncio.Future()

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
    task = asyncio.ensure_future(app(scope, receive, responses.put))
    # An empty message marks the end.
    task.add_done_callback(lambda _: responses.put_nowait({}))
    try:
        while True:
            message = await responses.get()
            if not message:
                break
            yield message
        await task  # raises the app's exception, if it had one
    finally:
        task.cancel()


def routing_app(
    engines: "dict[str, Callable[[HttpRequest], AsyncIterator[Message]]]",
) -> "ASGIApp":
    """Make an ASGI app that forwards each request to an engine.

    Args:
        engines: by model, a function that sends a request to the model's engine. A
            request that names none of these models goes to the first engine.
    """

    from fastapi import requests, responses

    first_engine = next(iter(engines.values()))

    async def route(scope: "Scope", receive: "Receive", send: "Send") -> None:
        # Read before it is forwarded, as the model's name is in it.
        body = await requests.Request(scope, receive).body()
        request = HttpRequest(
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"],
            headers=list(scope["headers"]),
            body=body,
        )
        if request.method == "GET" and request.path.rstrip("/") == _MODELS:
            response = responses.JSONResponse(await list_models(request))
            await response(scope, receive, send)
            return
        # The first engine refuses an unknown model with vLLM's own error.
        engine = engines.get(request.model or "", first_engine)
        async for message in engine(request):
            await send(message)

    async def list_models(request: HttpRequest) -> dict[str, object]:
        """Ask every engine for its models, and join their lists."""
        models: dict[str, object] = {}
        for engine in dict.fromkeys(engines.values()):
            chunks = [message.get("body", b"") async for message in engine(request)]
            for model in json.loads(b"".join(chunks))["data"]:
                models[model["id"]] = model
        listed = [models[name] for name in engines if name in models]
        return {"object": "list", "data": listed}

    return route
