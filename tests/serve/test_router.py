"""Several engines behind one address look like one."""

import asyncio
from functools import partial

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

from bezoar_ray.serve.router import respond, routing_app


def engine(*models: str) -> FastAPI:
    """An app that says which models are its own, and what it was asked."""
    app = FastAPI()

    @app.get("/v1/models")
    def listed() -> dict:
        return {
            "object": "list",
            "data": [{"id": name, "max_model_len": 8} for name in models],
        }

    @app.post("/v1/chat/completions")
    async def told(request: Request) -> dict:
        body = await request.body()
        return {
            "engine": models[0],
            "body": body.decode(),
            "query": str(request.url.query),
        }

    @app.post("/v1/completions")
    async def counted() -> StreamingResponse:
        async def numbers():
            for n in range(3):
                yield f"{n} of {models[0]}\n"

        return StreamingResponse(
            numbers(),
            media_type="text/event-stream",
            status_code=201,
            headers={"x-engine": models[0]},
        )

    @app.post("/broken")
    async def broken() -> None:
        raise ValueError("nobody knows")

    return app


@pytest.fixture
def client() -> TestClient:
    family, alone = (
        partial(respond, engine("base", "dpo")),
        partial(respond, engine("sft")),
    )
    return TestClient(
        routing_app({"base": family, "sft": alone, "dpo": family}),
        raise_server_exceptions=False,
    )


@pytest.mark.parametrize(
    ("model", "engine"),
    [("base", "base"), ("dpo", "base"), ("sft", "sft"), ("none", "base")],
)
def test_a_request_goes_to_the_engine_of_its_model(client, model, engine):
    body = f'{{"model": "{model}"}}'
    found = client.post("/v1/chat/completions?a=b", content=body).json()
    assert found == {"engine": engine, "body": body, "query": "a=b"}


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "null", '{"model": null}', '{"model": ["sft"]}']
)
def test_what_names_no_model_is_answered_by_the_first(client, body):
    assert client.post("/v1/chat/completions", content=body).json()["engine"] == "base"


def test_all_models_are_listed_in_order(client):
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [
        "base",
        "sft",
        "dpo",
    ]


def test_status_headers_and_streams_come_through(client):
    with client.stream("POST", "/v1/completions", json={"model": "sft"}) as found:
        assert (found.status_code, found.headers["x-engine"]) == (201, "sft")
        assert list(found.iter_lines()) == ["0 of sft", "1 of sft", "2 of sft"]


def test_an_engines_own_fault_is_not_hidden(client):
    assert client.post("/broken").status_code == 500


def test_a_client_that_goes_away_ends_its_request():
    ended = []

    async def endless(scope, receive, send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.Future()
        finally:
            ended.append(True)

    async def leave() -> None:
        from bezoar_ray.serve.router import HttpRequest as Asked

        messages = respond(endless, Asked("POST", "/", b"", [], b""))
        await anext(messages)
        await messages.aclose()
        await asyncio.sleep(0)

    asyncio.run(leave())
    assert ended == [True]
