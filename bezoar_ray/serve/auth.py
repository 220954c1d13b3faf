"""What a request passes before an engine sees it: the key that the endpoint asks for, and the size that it takes."""

import contextlib
import secrets
from typing import TYPE_CHECKING

from bezoar_ray.errors import RecipeError

if TYPE_CHECKING:
    from fastapi import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_CLOSED = {
    "type": "websocket.close",
    "code": 1008,
    "reason": "wrong or missing API key",
}


class Gate:
    """ASGI middleware, on every path: vLLM's own `--api-key` leaves paths outside /v1 open.

    `key` is what clients have to send as a bearer token, if any; `most` is the longest body in bytes.
    """

    def __init__(self, app: "ASGIApp", key: str | None, most: int):
        self._app, self._key, self._most = app, key, most

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        opens = not self._key or self._opens(headers.get(b"authorization", b""))
        if scope["type"] == "websocket":
            return await (self._app(scope, receive, send) if opens else send(_CLOSED))
        if not opens:
            return await refusal(401, "wrong or missing API key")(scope, receive, send)
        too_long = refusal(
            413,
            f"the request is longer than {self._most} bytes (serve.max_request_bytes)",
        )
        if int(headers.get(b"content-length", 0)) > self._most:
            return await too_long(scope, receive, send)
        body = _Counted(receive, self._most)
        with contextlib.suppress(_TooLong):
            await self._app(scope, body.receive, body.held(send))
        if body.outgrown and not body.answered:
            await too_long(scope, receive, send)

    def _opens(self, given: bytes) -> bool:
        return secrets.compare_digest(given, f"Bearer {self._key}".encode())


class _Counted:
    """For bodies that come in chunks and do not say how long they will be. FastAPI takes an error while it reads for
    broken JSON: what it answers then is held back."""

    def __init__(self, receive: "Receive", most: int):
        self._receive, self._most, self._seen, self.answered = receive, most, 0, False

    @property
    def outgrown(self) -> bool:
        """Whether the body is too long."""
        return self._seen > self._most

    async def receive(self) -> "Message":
        """The next part of the body."""
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self.outgrown:
            raise _TooLong
        return message

    def held(self, send: "Send") -> "Send":
        """`send`, unless the body is too long."""

        async def answer(message: "Message") -> None:
            if not self.outgrown:
                self.answered = True
                await send(message)

        return answer


class _TooLong(Exception):
    """A body that has outgrown the limit."""


def refusal(status: int, message: str) -> "Response":
    """An answer in the shape of OpenAI's errors."""
    from fastapi.responses import JSONResponse

    error = {
        "message": message,
        "type": "invalid_request_error",
        "param": None,
        "code": status,
    }
    return JSONResponse({"error": error}, status_code=status)


def key_for(host: str, given: str | None) -> str | None:
    """The key that an endpoint at this address asks for.

    Raises:
        RecipeError: others can reach it, and there is none.
    """
    if host not in ("127.0.0.1", "localhost", "::1") and not given:
        raise RecipeError(
            f"serve.host: {host!r} can be reached by others. Set the environment variable BEZOAR_API_KEY to the key "
            "that clients must send, or use 127.0.0.1."
        )
    return given or None
