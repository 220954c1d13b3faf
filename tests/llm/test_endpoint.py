"""The OpenAI client against a real HTTP server that answers as it is told."""

import asyncio
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
import pytest

from bezoar_ray.errors import RecipeError
from bezoar_ray.llm.chat import CallFailed, Reply, Sampling
from bezoar_ray.llm.client import open_talker
from bezoar_ray.llm.endpoint import seconds_to_wait
from bezoar_ray.llm.ledger import accounts
from bezoar_ray.recipe import ModelPart
from tests.endpoint import completion

GOOD = orjson.loads(completion("four"))


class Server(ThreadingHTTPServer):
    daemon_threads = True
    statuses: list[int]
    bodies: list[dict]
    requests: list[dict]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):
        size = int(self.headers["content-length"])
        self.server.requests.append(orjson.loads(self.rfile.read(size)) | {"key": self.headers["authorization"]})
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        fault = {"error": {"message": f"injected {status}"}}
        body = orjson.dumps(self.server.bodies.pop(0) if self.server.bodies else GOOD if status == 200 else fault)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.send_header("retry-after", "0")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.statuses, server.bodies, server.requests = [], [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server, tmp_path, sampling=None, **more) -> Reply:
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    part = ModelPart(**{"model": "judge-1", "base_url": url, "retries": 3} | more)

    async def go():
        talker = open_talker(part, str(tmp_path), "judge", "one")
        try:
            return await talker.for_row("r")([{"role": "user", "content": "2 + 2?"}], step="judge", sampling=sampling)
        finally:
            await talker.close()

    return asyncio.run(go())


def test_a_reply_carries_text_reason_and_tokens(server, tmp_path):
    assert ask(server, tmp_path) == Reply("four", "stop", 7, 2)
    assert server.requests[0]["model"] == "judge-1"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_faults_are_tried_again_and_each_attempt_is_counted(server, tmp_path, status):
    server.statuses = [status, status]
    assert ask(server, tmp_path).text == "four"
    assert len(server.requests) == accounts(tmp_path, "one")["judge"]["attempts"] == 3


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "Sat, 01 Jan 2000 00:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
    ],
)
def test_the_server_says_how_long_to_wait_in_several_ways(headers, seconds):
    assert seconds_to_wait(headers) == seconds


def test_a_date_is_waited_for():
    wait = seconds_to_wait({"retry-after": formatdate(time.time() + 3600, usegmt=True)})
    assert 3500 < wait <= 3600


def test_a_refused_prompt_fails_this_call_alone(server, tmp_path):
    server.statuses = [400]
    with pytest.raises(CallFailed, match="injected 400"):
        ask(server, tmp_path)
    assert len(server.requests) == 1


def test_a_parameter_that_the_model_does_not_take_stops_at_once_and_says_why(server, tmp_path):
    server.statuses = [400]
    server.bodies = [{"error": {"message": "no temperature, please", "param": "temperature", "code": "unsupported"}}]
    with pytest.raises(RecipeError, match="(?s)a parameter that every call has.*no temperature, please"):
        ask(server, tmp_path)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_wrong_key_or_model_stops_at_once_and_says_why(server, tmp_path, status):
    server.statuses = [status]
    with pytest.raises(RecipeError, match=f"judge-1 at .* answers {status}"):
        ask(server, tmp_path)
    assert len(server.requests) == 1


def test_an_empty_account_stops_at_once_although_it_comes_as_429(server, tmp_path):
    server.statuses, server.bodies = [429], [{"error": {"message": "no credit", "code": "insufficient_quota"}}]
    with pytest.raises(RecipeError, match="the account is empty"):
        ask(server, tmp_path)
    assert len(server.requests) == 1


@pytest.mark.parametrize("body", [{"error": "overloaded"}, GOOD | {"choices": []}])
def test_a_good_status_without_an_answer_is_a_passing_fault(server, tmp_path, body):
    server.bodies = [body]
    assert ask(server, tmp_path).text == "four"


def test_an_answer_without_usage_is_taken(server, tmp_path):
    server.bodies = [GOOD | {"usage": None}]
    assert ask(server, tmp_path) == Reply("four", "stop", 0, 0)


def test_a_server_that_is_not_there_is_tried_again_then_named(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(CallFailed, match="no answer after 1 attempts: http://127.0.0.1"):
        ask(server, tmp_path, retries=0)


def test_the_key_comes_from_the_environment_by_the_name_in_the_recipe(server, tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="set the environment variable MY_KEY"):
        ask(server, tmp_path, api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "secret")
    ask(server, tmp_path, api_key_env="MY_KEY")
    assert server.requests[0]["key"] == "Bearer secret"
    (segment,) = (tmp_path / "ledger/judge").glob("*.jsonl")
    assert b"secret" not in segment.read_bytes()


@pytest.mark.parametrize(
    ("model", "sent"),
    [("gpt-4.1", {"temperature", "max_tokens"}), ("gpt-5-mini", {"temperature", "max_completion_tokens"})],
)
def test_parameters_go_by_the_names_that_the_model_takes_and_defaults_stay_away(server, tmp_path, model, sent):
    ask(server, tmp_path, model=model, temperature=0.0)
    assert server.requests[0].keys() - {"model", "messages", "key"} == sent


def test_a_schema_is_sent_as_the_api_wants_it(server, tmp_path):
    ask(server, tmp_path, sampling=Sampling(schema='{"type": "object"}'))
    sent = server.requests[0]["response_format"]
    assert sent["type"] == "json_schema" and sent["json_schema"]["schema"] == {"type": "object"}
