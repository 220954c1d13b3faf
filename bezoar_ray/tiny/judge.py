"""tiny-judge: a program behind an OpenAI-compatible server on this machine.

It is not a model, and no name in the project calls it one.
`python -m bezoar_ray.tiny.judge --host H --port N` prints its port when it is ready, and
serves until its parent process ends.
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

_PR_SET_PDEATHSIG = 1  # of prctl(2)
_SIGKILL = 9

Messages = list[dict[str, str]]


def reply(messages: Messages) -> str:
    """Reply to a prompt of the filter or of MT-Bench, in the form that it asks for."""
    text = "\n".join(
        str(message.get("content") or "")
        for message in messages
        if message.get("role") != "system"
    )
    if "<answer_a_1>" in text:
        return _compare(text)
    if "<answer_1>" in text:
        return _grade_answer(text)
    if "<response>" in text:
        return _rate(text)
    return "I judge rows and answers only; this is neither."


def _rate(text: str) -> str:
    graded = grade(_content(text, "instruction"), _content(text, "response"))
    rating = round(1 + 4 * graded.share, 1)
    return json.dumps({"reason": graded.reason, "rating": rating})


def _grade_answer(text: str) -> str:
    graded = _grade_last_turn(text, "answer")
    return f"The answer was checked: {graded.reason}. Rating: [[{_mark(graded)}]]"


def _compare(text: str) -> str:
    a = _grade_last_turn(text, "answer_a")
    b = _grade_last_turn(text, "answer_b")
    verdict = "A" if a.share > b.share else "B"
    if _mark(a) == _mark(b):
        verdict = "C"  # a tie
    return f"Assistant a: {a.reason}. Assistant b: {b.reason}. [[{verdict}]]"


def _grade_last_turn(text: str, answer: str) -> Grade:
    """Grade an assistant's answer in the last turn that the prompt shows."""
    turns = re.findall(rf"<{answer}_(\d+)>", text)
    turn = max(map(int, turns))
    return grade(
        instruction=_content(text, f"question_{turn}"),
        response=_content(text, f"{answer}_{turn}"),
        reference=_content(text, f"reference_{turn}"),
    )


def _mark(graded: Grade) -> int:
    """Return MT-Bench's mark, from 1 to 10."""
    return round(1 + 9 * graded.share)


def _content(text: str, tag: str) -> str:
    """Return the text between a tag and its last closing tag.

    The judged text may itself contain such tags.
    """
    match = re.search(rf"<{tag}>\n(.*)\n</{tag}>", text, re.DOTALL)
    return match[1] if match else ""


def app() -> Any:
    """Return the ASGI app: /v1/models and /v1/chat/completions."""
    from fastapi import FastAPI, Request
    from fastapi.responses import Response

    server = FastAPI(openapi_url=None)

    @server.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {
            "id": JUDGE,
            "object": "model",
            "created": 0,
            "owned_by": "bezoar_ray",
        }
        return {"object": "list", "data": [model]}

    @server.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        status, body = answer(await request.body())
        return Response(
            json.dumps(body), status_code=status, media_type="application/json"
        )

    return server


def answer(body: bytes) -> tuple[int, dict[str, Any]]:
    """Return HTTP status and JSON for a chat request, with errors in OpenAI's shape."""
    try:
        request = json.loads(body)
        model = request["model"]
        messages = request["messages"]
        prompt = "\n".join(str(message["content"]) for message in messages)
    except (ValueError, KeyError, TypeError) as error:
        message = f"the request is not a chat completion: {error!r}"
        return 400, _error(message, None)
    if model != JUDGE:
        message = f"The model {model!r} does not exist; this is {JUDGE!r}."
        return 404, _error(message, "model_not_found")
    return 200, _completion(prompt, reply(messages))


def _error(message: str, code: str | None) -> dict[str, Any]:
    error = {
        "message": message,
        "type": "invalid_request_error",
        "param": None,
        "code": code,
    }
    return {"error": error}


def _completion(prompt: str, reply_text: str) -> dict[str, Any]:
    """Return a completion. Its tokens are words, as there is no tokenizer here."""
    prompt_words = len(prompt.split())
    reply_words = len(reply_text.split())
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": reply_text},
        "finish_reason": "stop",
        "logprobs": None,
    }
    usage = {
        "prompt_tokens": prompt_words,
        "completion_tokens": reply_words,
        "total_tokens": prompt_words + reply_words,
    }
    return {
        "id": "chatcmpl-tiny",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": JUDGE,
        "choices": [choice],
        "usage": usage,
    }


@contextlib.contextmanager
def running(host: str = "127.0.0.1") -> Iterator[str]:
    """Run the judge in a process of its own until the block ends; yield its base_url.

    Its port is any free one. It needs no key, as it knows the embedded world alone. Any
    address but localhost is for the other nodes of a cluster.

    Raises:
        BezoarError: It did not start. The message holds what it printed.
    """
    module = "bezoar_ray.tiny.judge"
    command = [sys.executable, "-m", module, "--host", host, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            port = process.stdout.readline().strip()
            if not port.isdigit():
                output = port or "no output"
                raise BezoarError(
                    f"tiny-judge did not start: {output} (exit code {process.poll()})"
                )
            yield f"http://{host}:{port}/v1"
        finally:
            process.kill()


def _end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however that ends."""
    if sys.platform == "linux":
        import ctypes

        # The signal comes when the parent's starting thread ends, here the main thread.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def serve(host: str, port: int) -> None:
    """Serve there, and print the port; 0 takes a free one."""
    import socket

    import uvicorn

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
        # Only now, as the reader of this line connects at once.
        print(listener.getsockname()[1], flush=True)
        config = uvicorn.Config(app(), log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m bezoar_ray.tiny.judge", description=__doc__
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    _end_with_parent()
    options = parser.parse_args()
    serve(options.host, options.port)
