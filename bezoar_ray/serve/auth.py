"""Checks of each request before an engine sees it: the API key and the body's size."""

import contextlib
import secrets
from typing import TYPE_CHECKING

from bezoar_ray.errors import RecipeError

if TYPE_CHECKING:
    from fastapi import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
_WRONG_KEY = "wrong or missing API key"
# 1008 is WebSocket's code for a policy violation.
_CLOSE_SOCKET = {"type": "websocket.close", "code": 1008, "reason": _WRONG_KEY}


class RequestGuard:
    """ASGI middleware that refuses requests without the key or with too long a body.

    It guards every path. vLLM's own `--api-key` leaves paths outside /v1 open.

    Args:
        app: the ASGI app behind it.
        key: what clients must send as a bearer token; None if no key is needed.
        max_bytes: the longest body.
    """

    def __init__(self, app: "ASGIApp", key: str | None, max_bytes: int):
        self._app = app
        self._key = key
        self._max_bytes = max_bytes

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        # `lifespan` is not a request: it starts and stops the engine.
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        allowed = self._is_allowed(headers.get(b"authorization", b""))
        if scope["type"] == "websocket":
            if allowed:
                await self._app(scope, receive, send)
            else:
                await send(_CLOSE_SOCKET)
            return
        if not allowed:
            await error_response(401, _WRONG_KEY)(scope, receive, send)
            return
        too_long = error_response(
            413,
            f"the request is longer than {self._max_bytes} bytes (serve.max_request_bytes)",
        )
        if int(headers.get(b"content-length", 0)) > self._max_bytes:
            await too_long(scope, receive, send)
            return
        body = _LimitedBody(receive, self._max_bytes)
        with contextlib.suppress(_TooLong):
            await self._app(scope, body.receive, body.guard(send))
        if body.is_too_long and not body.response_started:
            await too_long(scope, receive, send)

    def _is_allowed(self, authorization: bytes) -> bool:
        if not self._key:
            return True
        expected = f"Bearer {self._key}".encode()
        # In a time that does not tell how much of a key was right.
        return secrets.compare_digest(authorization, expected)


class _LimitedBody:
    """Counts the bytes of a body that comes in chunks without a content-length.

    FastAPI takes an exception during reading for broken JSON. The response that it then
    sends is dropped, so that the client gets ours.
    """

    def __init__(self, receive: "Receive", max_bytes: int):
        self._receive = receive
        self._max_bytes = max_bytes
        self._bytes_read = 0
        self.response_started = False

    @property
    def is_too_long(self) -> bool:
        """Whether more bytes were read than allowed."""
        return self._bytes_read > self._max_bytes

    async def receive(self) -> "Message":
        """Read the next chunk of the body.

        Raises:
            _TooLong: the body is longer than allowed.
        """
        message = await self._receive()
        self._bytes_read += len(message.get("body", b""))
        if self.is_too_long:
            raise _TooLong
        return message

    def guard(self, send: "Send") -> "Send":
        """Return a `send` that drops messages once the body is too long."""

        async def guarded(message: "Message") -> None:
            if not self.is_too_long:
                self.response_started = True
                await send(message)

        return guarded


class _TooLong(Exception):
    """The body is longer than allowed."""


def error_response(status: int, message: str) -> "Response":
    """Make a response in the format of OpenAI's errors."""
    from fastapi.responses import JSONResponse

    error = {
        "message": message,
        "type": "invalid_request_error",
        "param": None,
        "code": status,
    }
    return JSONResponse({"error": error}, status_code=status)


def required_key(host: str, key: str | None) -> str | None:
    """Return the key that clients must send; None if they need none.

    Args:
        host: the address that the endpoint binds to.
        key: the value of BEZOAR_API_KEY, if it is set.

    Raises:
        RecipeError: other machines can reach the host, but there is no key.
    """
    if host not in _LOCAL_HOSTS and not key:
        raise RecipeError(
            f"serve.host: {host!r} is reachable from other machines. Set the environment variable BEZOAR_API_KEY to "
            "the key that clients must send, or use 127.0.0.1."
        )
    return key or None
