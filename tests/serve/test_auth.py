"""What passes to the engines and what does not."""

import pytest
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.testclient import TestClient

from bezoar_ray.serve.auth import RequestGuard


def behind(key: str | None = None, most: int = 1000) -> TestClient:
    app = FastAPI()

    @app.post("/typed")
    async def typed(body: dict) -> int:
        return len(body)

    @app.post("/{path:path}")
    async def told(request: Request) -> int:
        return len(await request.body())

    app.add_middleware(RequestGuard, key=key, max_bytes=most)
    return TestClient(app)


@pytest.mark.parametrize("path", ["/v1/models", "/invocations", "/metrics"])
def test_a_key_guards_every_path(path):
    client = behind("secret")
    refused = client.post(path)
    assert (
        refused.status_code == 401 and "API key" in refused.json()["error"]["message"]
    )
    assert (
        client.post(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
    )
    assert (
        client.post(
            path, headers={"Authorization": "Bearer sécret".encode()}
        ).status_code
        == 401
    )
    assert (
        client.post(path, headers={"Authorization": "Bearer secret"}).status_code == 200
    )


def test_a_body_that_says_it_is_too_long_is_refused():
    assert behind().post("/v1/completions", content=b"x" * 1000).json() == 1000
    refused = behind().post("/v1/completions", content=b"x" * 1001)
    assert refused.status_code == 413
    assert (
        refused.json()["error"]["message"]
        == "the request is longer than 1000 bytes (serve.max_request_bytes)"
    )


def test_a_body_that_grows_too_long_on_its_way_is_refused():
    def chunks():
        for _ in range(50):
            yield b"x" * 100

    typed = {"Content-Type": "application/json"}
    assert behind(most=5000).post("/", content=chunks()).json() == 5000
    for path in (
        "/",
        "/typed",
    ):  # FastAPI reads the body of the second itself, and takes any error for broken JSON
        assert (
            behind(most=4999).post(path, content=chunks(), headers=typed).status_code
            == 413
        )
    assert (
        behind().post("/typed", content=iter([b'{"a": ', b"1}"]), headers=typed).json()
        == 1
    )


def test_a_key_guards_websockets():
    app = FastAPI()

    @app.websocket("/v1/realtime")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("hello")
        await socket.close()

    app.add_middleware(RequestGuard, key="secret", max_bytes=1000)
    client = TestClient(app)
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        with (
            pytest.raises(WebSocketDisconnect) as closed,
            client.websocket_connect("/v1/realtime", headers=headers),
        ):
            pass
        assert closed.value.code == 1008
    with client.websocket_connect(
        "/v1/realtime", headers={"Authorization": "Bearer secret"}
    ) as socket:
        assert socket.receive_text() == "hello"
