"""A server of OpenAI's files and batches on this machine, whose answers and faults a test scripts."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI, Form, HTTPException, Response, UploadFile

Answer = Callable[
    [list[dict[str, str]]], str | int | None
]  # text; an HTTP status; or None: not done when it expired


class Provider:
    """What it was sent, and how it answers. A batch is over as soon as it is asked about."""

    def __init__(self, answer: Answer):
        self.answer = answer
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.sent: list[str] = []  # custom ids, in the order of their coming
        self.refuse = ""  # why whole batches are refused
        self.holds = False  # whether no batch ends
        self.faults: list[
            str | int
        ] = []  # requests that get a 503 once; "created" makes the batch first; or a status

    def fault(self, request: str) -> None:
        """Fail, where the test says that this request does."""
        status = (
            self.faults[0] if self.faults and isinstance(self.faults[0], int) else 503
        )
        if self.faults and self.faults[0] in (request, status):
            self.faults.pop(0)
            raise HTTPException(status)

    def create(self, request: dict[str, Any]) -> dict[str, Any]:
        id = f"batch_{len(self.batches)}"
        self.batches[id] = {
            "id": id,
            "object": "batch",
            "status": "in_progress",
            "created_at": int(time.time()),
            "errors": None,
            "output_file_id": None,
            "error_file_id": None,
            **request,
        }
        lines = [
            orjson.loads(line)
            for line in self.files[request["input_file_id"]].splitlines()
        ]
        self.sent += [line["custom_id"] for line in lines]
        return self.batches[id]

    def retrieve(self, id: str) -> dict[str, Any]:
        batch = self.batches[id]
        if batch["status"] == "in_progress" and not self.holds:
            self._finish(batch)
        return batch

    def _finish(self, batch: dict[str, Any]) -> None:
        if self.refuse:
            batch |= {
                "status": "failed",
                "errors": {"data": [{"code": "invalid", "message": self.refuse}]},
            }
            return
        good, bad, missing = [], [], False
        for line in map(orjson.loads, self.files[batch["input_file_id"]].splitlines()):
            said = self.answer(line["body"]["messages"])
            missing |= said is None
            (good if isinstance(said, str) else bad).append(_result(line, said))
        batch |= {"status": "expired" if missing else "completed"}
        batch |= {"output_file_id": self._keep(good), "error_file_id": self._keep(bad)}

    def _keep(self, lines: list[dict[str, Any]]) -> str | None:
        if not lines:
            return None
        name = f"file_{len(self.files)}"
        self.files[name] = b"\n".join(map(orjson.dumps, lines))
        return name


def _result(line: dict[str, Any], said: str | int | None) -> dict[str, Any]:
    result = {
        "id": "r",
        "custom_id": line["custom_id"],
        "response": None,
        "error": None,
    }
    if said is None:
        return result | {
            "error": {"code": "batch_expired", "message": "not done in time"}
        }
    if isinstance(said, int):
        return result | {
            "response": {
                "status_code": said,
                "body": {"error": {"message": f"scripted {said}"}},
            }
        }
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": said},
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }
    return result | {"response": {"status_code": 200, "body": body}}


def _app(provider: Provider) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/files")
    async def upload(file: UploadFile, purpose: str = Form()) -> dict[str, Any]:
        provider.fault("upload")
        name = f"file_{len(provider.files)}"
        provider.files[name] = await file.read()
        return {
            "id": name,
            "object": "file",
            "bytes": 1,
            "created_at": 1,
            "filename": "x",
            "purpose": purpose,
            "status": "processed",
        }

    @app.get("/v1/files/{name}/content")
    def content(name: str) -> Response:
        provider.fault("content")
        return Response(provider.files[name], media_type="application/octet-stream")

    @app.post("/v1/batches")
    def create(request: dict[str, Any]) -> dict[str, Any]:
        provider.fault("create")
        made = provider.create(request)
        provider.fault("created")
        return made

    @app.get("/v1/batches/{id}")
    def retrieve(id: str) -> dict[str, Any]:
        provider.fault("retrieve")
        return provider.retrieve(id)

    @app.get("/v1/batches")
    def listed(limit: int = 20, after: str = "") -> dict[str, Any]:
        provider.fault("list")
        ids = list(provider.batches)
        ids = ids[ids.index(after) + 1 :] if after else ids
        page = [
            provider.batches[id] for id in ids[:2]
        ]  # small pages: a client has to turn them
        return {"object": "list", "data": page, "has_more": len(ids) > 2}

    return app


@contextlib.contextmanager
def providing(answer: Answer) -> Iterator[tuple[Provider, str]]:
    """The provider, and its base_url."""
    provider = Provider(answer)
    server = uvicorn.Server(uvicorn.Config(_app(provider), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield (
            provider,
            f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1",
        )
    finally:
        server.should_exit = True
        thread.join()
