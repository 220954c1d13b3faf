"""The local pages on which people review rows and compare answers.

It is served on this machine only, under an address with a random token, and loads
nothing from elsewhere. Texts of rows reach the browser as JSON, and the page's script
shows them as text.
"""

import secrets
import socket
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from bezoar_ray.data.decision import Decision
from bezoar_ray.data.schema import Sample
from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.review.queue import ReviewQueue, criteria
from bezoar_ray.review.votes import AnswerPair, VoteQueue

if TYPE_CHECKING:
    from fastapi import FastAPI, Response

HOST = "127.0.0.1"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}


class DecisionRequest(BaseModel):
    """What the page sends when a reviewer decides."""

    id: str
    decision: Literal["accept", "reject", "skip"]
    reviewer: str
    reason: str = ""
    instruction: str | None = None
    input: str | None = None
    response: str | None = None
    seconds: float = 0.0


class UndoRequest(BaseModel):
    """What the page sends when a reviewer takes a decision back."""

    reviewer: str


def row_app(queue: ReviewQueue, reviewer: str, token: str) -> "FastAPI":
    """Make the app of the page that shows rows.

    Args:
        queue: the rows.
        reviewer: the name that the page proposes.
        token: the first part of every path. Other paths are refused.
    """
    app = protected_app(token, "rows.html", "rows.js")

    def state(name: str) -> dict[str, Any]:
        remaining = queue.remaining(name)
        return {
            "row": _shown(queue, remaining[0]) if remaining else None,
            "done": len(queue) - len(remaining),
            "total": len(queue),
        }

    @app.get(f"/{token}/start")
    def start() -> dict[str, str]:
        return {"reviewer": reviewer}

    @app.get(f"/{token}/next")
    def next_row(reviewer: str) -> dict[str, Any]:
        return state(reviewer)

    @app.post(f"/{token}/decisions")
    def decide(request: DecisionRequest) -> dict[str, Any]:
        queue.decide(Decision(scheme="", time="", **request.model_dump()))
        # Only now: a verdict that is seen before would sway the reviewer.
        verdict = _verdict(queue.row(request.id))
        return state(request.reviewer) | {"verdict": verdict}

    @app.post(f"/{token}/undo")
    def undo(request: UndoRequest) -> dict[str, Any]:
        sample = queue.undo(request.reviewer)
        found = state(request.reviewer)
        if sample:
            found["row"] = _shown(queue, sample)
        return found

    return app


class VoteRequest(BaseModel):
    """What the page sends when a reviewer compares two answers."""

    id: str
    choice: Literal["left", "right", "both_good", "both_bad", "skip"]
    reviewer: str
    seconds: float = 0.0


def pair_app(queue: VoteQueue, reviewer: str, token: str) -> "FastAPI":
    """Make the app of the page that shows pairs of answers.

    The arguments are those of `row_app`.
    """
    app = protected_app(token, "pairs.html", "pairs.js")

    def state(name: str, first: AnswerPair | None = None) -> dict[str, Any]:
        remaining = queue.remaining(name)
        pair = first or next(iter(remaining), None)
        total = len(queue.pairs(name))
        return {
            "pair": _hidden(pair) if pair else None,
            "done": total - len(remaining),
            "total": total,
        }

    @app.get(f"/{token}/start")
    def start() -> dict[str, str]:
        return {"reviewer": reviewer}

    @app.get(f"/{token}/next")
    def next_pair(reviewer: str) -> dict[str, Any]:
        return state(reviewer)

    @app.post(f"/{token}/votes")
    def vote(request: VoteRequest) -> dict[str, Any]:
        pair = queue.vote(request.id, request.choice, request.reviewer, request.seconds)
        # Only now: a name that is known before would sway the reviewer.
        return state(request.reviewer) | {"left": pair.left, "right": pair.right}

    @app.post(f"/{token}/undo")
    def undo(request: UndoRequest) -> dict[str, Any]:
        return state(request.reviewer, queue.undo(request.reviewer))

    return app


def _hidden(pair: AnswerPair) -> dict[str, Any]:
    """Return what a reviewer sees of a pair: not which model is on which side."""
    return {
        "id": pair.id,
        "user": pair.user_turns,
        "left": pair.left_turns,
        "right": pair.right_turns,
    }


def _shown(queue: ReviewQueue, sample: Sample) -> dict[str, Any]:
    """Return what a reviewer sees of a row: nothing that tells the judge's verdict."""
    rubric = queue.rubric(sample)
    return {
        "id": sample.id,
        "scheme": sample.scheme,
        "system": sample.system,
        "history": sample.history,
        "instruction": sample.instruction,
        "input": sample.input,
        "response": sample.response,
        "rubric": rubric,
        "reasons": criteria(rubric),
    }


def _verdict(sample: Sample) -> dict[str, Any]:
    """Return what gates and judges said of a row."""
    verdicts = [
        {
            "judge": verdict.judge,
            "status": verdict.status,
            "rating": verdict.rating,
            "reason": verdict.reason,
        }
        for verdict in sample.verdicts
    ]
    return {"status": sample.status, "reason": sample.reason, "verdicts": verdicts}


def protected_app(token: str, page: str, *scripts: str) -> "FastAPI":
    """Make an app that serves a page below the token, and refuses all other paths."""
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import JSONResponse, PlainTextResponse

    # FastAPI's own pages would load scripts from elsewhere.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        given = request.url.path.split("/")[1]
        # In a time that does not tell how much of the token was right.
        if secrets.compare_digest(given.encode(), token.encode()):
            response = await call_next(request)
        else:
            response = PlainTextResponse(
                "Wrong or missing token. Open the address that `bezoar review` printed.",
                status_code=403,
            )
        response.headers.update(_HEADERS)
        return response

    @app.exception_handler(BezoarError)
    def explain(_: Request, error: BezoarError) -> JSONResponse:
        # A wrong request is the page's fault; that a disk is full is not.
        code = 400 if isinstance(error, RecipeError) else 500
        return JSONResponse({"detail": str(error)}, status_code=code)

    for name in (page, "common.js", *scripts, "review.css"):
        path = "" if name == page else name
        app.get(f"/{token}/{path}")(_static(name))
    return app


def _static(name: str) -> "Callable[[], Response]":
    from fastapi import Response

    file = resources.files("bezoar_ray.review") / "static" / name
    data = file.read_bytes()
    media_type = _TYPES[name.rpartition(".")[2]]

    def serve() -> Response:
        return Response(data, media_type=media_type)

    return serve


def serve_page(app: Callable[[str], "FastAPI"], port: int) -> None:
    """Serve a page on this machine until Ctrl-C, and print its address.

    Args:
        app: makes the app for a token.
        port: of the address; 0 takes a free one.

    Raises:
        RecipeError: the port is in use.
    """
    import uvicorn

    token = secrets.token_urlsafe(24)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            # Before the address is printed: a browser may be quick.
            listener.listen()
        except OSError as error:
            raise RecipeError(
                f"--port {port}: {error.strerror}. Choose another, or leave it out"
            ) from error
        config = uvicorn.Config(app(token), log_level="warning")
        print(f"http://{HOST}:{listener.getsockname()[1]}/{token}/", flush=True)
        print("Open this address in a browser. Ctrl-C ends the review.", flush=True)
        uvicorn.Server(config).run(sockets=[listener])
