"""tiny-judge: a program behind an OpenAI-compatible server on this machine. It is no model and never named like one.

`python -m bezoar_ray.tiny.judge --host H --port N` serves until its parent ends, and prints its port when it is ready.
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from bezoar_ray.errors import BezoarError
from bezoar_ray.tiny import JUDGE
from bezoar_ray.tiny.grading import Grade, grade

_PARENT_DEATH, _SIGKILL = 1, 9  # PR_SET_PDEATHSIG of prctl(2)


def reply(messages: list[dict[str, str]]) -> str:
    """The judge's reply to a prompt of the filter or of MT-Bench, in the form that the prompt asks for."""
    text = "\n".join(
        str(message.get("content") or "")
        for message in messages
        if message.get("role") != "system"
    )
    if "<answer_a_1>" in text:
        return _compared(text)
    if "<answer_1>" in text:
        return _graded(text)
    if "<response>" in text:
        return _rated(text)
    return "I judge rows and answers only; this is neither."


def _rated(text: str) -> str:
    found = grade(_inside(text, "instruction"), _inside(text, "response"))
    return json.dumps({"reason": found.reason, "rating": round(1 + 4 * found.share, 1)})


def _graded(text: str) -> str:
    found = _last(text, "answer")
    return f"The answer was checked: {found.reason}. Rating: [[{_mark(found)}]]"


def _compared(text: str) -> str:
    a, b = _last(text, "answer_a"), _last(text, "answer_b")
    verdict = "C" if _mark(a) == _mark(b) else "A" if a.share > b.share else "B"
    return f"Assistant a: {a.reason}. Assistant b: {b.reason}. [[{verdict}]]"


def _last(text: str, answer: str) -> Grade:
    """The grade of an assistant's answer in the last turn that is shown."""
    turn = max(int(number) for number in re.findall(rf"<{answer}_(\d+)>", text))
    return grade(
        *(_inside(text, f"{part}_{turn}") for part in ("question", answer, "reference"))
    )


def _mark(found: Grade) -> int:
    return round(1 + 9 * found.share)


def _inside(text: str, tag: str) -> str:
    """What stands between a tag and its last closing one: what is judged may hold tags of its own."""
    found = re.search(rf"<{tag}>\n(.*)\n</{tag}>", text, re.DOTALL)
    return found[1] if found else ""


def app() -> Any:
    """The ASGI app: /v1/models and /v1/chat/completions."""
    from fastapi import FastAPI, Request
    from fastapi.responses import Response

    server = FastAPI(openapi_url=None)

    @server.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [
                {"id": JUDGE, "object": "model", "created": 0, "owned_by": "bezoar_ray"}
            ],
        }

    @server.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        status, body = answer(await request.body())
        return Response(
            json.dumps(body), status_code=status, media_type="application/json"
        )

    return server


def answer(body: bytes) -> tuple[int, dict[str, Any]]:
    """HTTP status and JSON of one chat request, errors in OpenAI's shape."""
    try:
        asked = json.loads(body)
        model, messages = asked["model"], asked["messages"]
        prompt = "\n".join(str(message["content"]) for message in messages)
    except (ValueError, KeyError, TypeError) as error:
        return 400, _error(
            f"the request is not a chat completion: {error!r}",
            "invalid_request_error",
            None,
        )
    if model != JUDGE:
        return 404, _error(
            f"The model {model!r} does not exist; this is {JUDGE!r}.",
            "invalid_request_error",
            "model_not_found",
        )
    return 200, _completion(prompt, reply(messages))


def _error(message: str, kind: str, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _completion(prompt: str, said: str) -> dict[str, Any]:
    """A completion; its tokens are words, for there is no tokenizer here."""
    asked, told = len(prompt.split()), len(said.split())
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": said},
        "finish_reason": "stop",
        "logprobs": None,
    }
    return {
        "id": "chatcmpl-tiny",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": JUDGE,
        "choices": [choice],
        "usage": {
            "prompt_tokens": asked,
            "completion_tokens": told,
            "total_tokens": asked + told,
        },
    }


@contextlib.contextmanager
def running(host: str = "127.0.0.1") -> Iterator[str]:
    """The judge in a process of its own, on a free port; yields its base_url and ends it.

    It asks for no key, as it knows nothing but the embedded world: any address but localhost is for a cluster's nodes.

    Raises:
        BezoarError: it did not start; the message holds what it printed.
    """
    command = [
        sys.executable,
        "-m",
        "bezoar_ray.tiny.judge",
        "--host",
        host,
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = process.stdout.readline().strip()
            if not port.isdigit():
                raise BezoarError(
                    f"tiny-judge did not start: {port or 'no output'} (exit code {process.poll()})"
                )
            yield f"http://{host}:{port}/v1"
        finally:
            process.kill()


def _end_with_parent() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PARENT_DEATH, _SIGKILL)


def serve(host: str, port: int) -> None:
    """Serve there; port 0 takes a free one. Prints the port."""
    import socket

    import uvicorn

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
        print(listener.getsockname()[1], flush=True)
        uvicorn.Server(
            uvicorn.Config(app(), log_level="warning", access_log=False)
        ).run(sockets=[listener])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m bezoar_ray.tiny.judge", description=__doc__
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    _end_with_parent()
    options = parser.parse_args()
    serve(options.host, options.port)
