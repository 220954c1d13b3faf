"""The OpenAI client against a real HTTP server that answers as it is told."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
import pytest

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.llm.chat import CallFailed, Refused, Reply, Sampling
from bezoar_ray.llm.client import open_client
from bezoar_ray.llm.endpoint import retry_after_seconds
from bezoar_ray.llm.ledger import accounts
from bezoar_ray.recipe import ModelSection
from tests.endpoint import completion

GOOD = orjson.loads(completion("four"))
HANG_UP = 0  # a status: the server reads the request and closes the connection


class Server(ThreadingHTTPServer):
    daemon_threads = True
    statuses: list[int]
    bodies: list[dict]
    requests: list[dict]
    organizations: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):
        size = int(self.headers["content-length"])
        self.server.requests.append(
            orjson.loads(self.rfile.read(size)) | {"key": self.headers["authorization"]}
        )
        self.server.organizations.append(self.headers["openai-organization"])
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if status == HANG_UP:
            self.close_connection = True
            return
        fault = {"error": {"message": f"injected {status}"}}
        body = orjson.dumps(
            self.server.bodies.pop(0)
            if self.server.bodies
            else GOOD
            if status == 200
            else fault
        )
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
    server.organizations = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server, tmp_path, sampling=None, **more) -> Reply:
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    part = ModelSection(**{"model": "judge-1", "base_url": url, "retries": 3} | more)

    async def go():
        talker = open_client(part, str(tmp_path), "judge", "one")
        try:
            return await talker.for_row("r")(
                [{"role": "user", "content": "2 + 2?"}], step="judge", sampling=sampling
            )
        finally:
            await talker.close()

    return asyncio.run(go())


def test_a_reply_carries_text_reason_and_tokens(server, tmp_path):
    assert ask(server, tmp_path) == Reply("four", "stop", 7, 2)
    assert server.requests[0]["model"] == "judge-1"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_faults_are_tried_again_and_each_attempt_is_counted(
    server, tmp_path, status
):
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
    assert retry_after_seconds(headers) == seconds


def test_a_date_is_waited_for():
    wait = retry_after_seconds(
        {"retry-after": formatdate(time.time() + 3600, usegmt=True)}
    )
    assert 3500 < wait <= 3600


def test_a_refused_prompt_fails_this_call_alone(server, tmp_path):
    server.statuses = [400]
    with pytest.raises(CallFailed, match="injected 400"):
        ask(server, tmp_path)
    assert len(server.requests) == 1


def test_a_parameter_that_the_model_does_not_take_stops_at_once_and_says_why(
    server, tmp_path
):
    server.statuses = [400]
    server.bodies = [
        {
            "error": {
                "message": "no temperature, please",
                "param": "temperature",
                "code": "unsupported",
            }
        }
    ]
    with pytest.raises(
        RecipeError,
        match="(?s)a parameter that every call sends.*no temperature, please",
    ):
        ask(server, tmp_path)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_stops_at_once_and_says_why(server, tmp_path, status):
    server.statuses = [status]
    with pytest.raises(RecipeError, match=f"judge-1 at .* answers {status}"):
        ask(server, tmp_path)
    assert len(server.requests) == 1


def test_an_empty_account_stops_at_once_although_it_comes_as_429(server, tmp_path):
    server.statuses, server.bodies = (
        [429],
        [{"error": {"message": "no credit", "code": "insufficient_quota"}}],
    )
    with pytest.raises(BezoarError, match="the account is empty.* no credit") as caught:
        ask(server, tmp_path)
    assert len(server.requests) == 1 and caught.value.exit_code == 3


def ask_many(server, tmp_path, rows, **more):
    """What comes of each row, asked one after the other."""
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    part = ModelSection(
        **{"model": "judge-1", "base_url": url, "retries": 3, "max_in_flight": 1} | more
    )

    async def go():
        talker = open_client(part, str(tmp_path), "judge", "one")
        asks = [
            talker.for_row(f"{n}")([{"role": "user", "content": f"{n}"}], step="judge")
            for n in range(rows)
        ]
        found = await asyncio.gather(*asks, return_exceptions=True)
        await talker.close()
        return found

    return asyncio.run(go())


REFUSAL = {"error": {"message": "`temperature` and `top_p` cannot both be specified"}}


def test_an_endpoint_that_refuses_all_calls_alike_stops_the_run(server, tmp_path):
    server.statuses, server.bodies = [400] * 30, [REFUSAL] * 30
    found = ask_many(server, tmp_path, 30)
    assert len(server.requests) in range(5, 10)  # the next ones may be on their way
    assert all(isinstance(error, Refused) for error in found[:4])
    assert all(isinstance(error, BezoarError) for error in found[4:])
    assert "5 calls were refused in the same way" in str(
        found[-1]
    ) and "cannot both be" in str(found[-1])


def test_a_resumed_run_whose_last_rows_are_refused_ends_with_them(server, tmp_path):
    """What was answered before comes from the ledger: only refusals are seen, and they are these rows' own."""
    server.statuses, server.bodies = [200], [GOOD]
    assert isinstance(ask_many(server, tmp_path, 1)[0], Reply)
    server.statuses, server.bodies = [400] * 80, [REFUSAL] * 80
    found = ask_many(server, tmp_path, 81)
    assert isinstance(found[0], Reply) and all(
        isinstance(error, Refused) for error in found[1:]
    )


def test_refusals_among_answers_fail_their_rows_alone(server, tmp_path):
    server.statuses = [200, 400, 400, 400, 400, 400, 400, 200] * 3
    server.bodies = [GOOD if status == 200 else REFUSAL for status in server.statuses]
    found = ask_many(server, tmp_path, 24)
    assert [isinstance(reply, Reply) for reply in found] == [
        True,
        *[False] * 6,
        True,
    ] * 3
    assert all(
        isinstance(error, CallFailed) for error in found if not isinstance(error, Reply)
    )


def test_refusals_that_differ_are_the_rows_own(server, tmp_path):
    words = [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "zeta",
        "eta",
        "theta",
        "iota",
        "kappa",
    ]
    server.statuses = [400] * 10
    server.bodies = [
        {"error": {"message": f"unreadable because of {word}"}} for word in words
    ]
    assert all(
        isinstance(error, CallFailed) for error in ask_many(server, tmp_path, 10)
    )


def test_a_fault_in_a_good_answer_is_billed_as_it_says(server, tmp_path):
    prices = {"input": 1e6, "output": 1e6}  # a dollar a token
    empty = {"choices": [{"message": {"content": ""}, "finish_reason": "error"}]}
    server.bodies = [
        empty,
        empty | {"usage": {"prompt_tokens": 3, "completion_tokens": 1}},
        GOOD,
    ]
    assert ask(server, tmp_path, prices=prices).text == "four"
    calls = accounts(tmp_path, "one")["judge"]
    assert (calls["attempts"], calls["usd"]) == (3, 0 + 4 + 9)


def test_an_attempt_of_which_no_byte_went_out_costs_nothing(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(CallFailed, match="Connect call failed"):
        ask(server, tmp_path, retries=0, prices={"input": 1, "output": 1})
    assert accounts(tmp_path, "one")["judge"]["usd"] == 0


def test_an_attempt_that_was_read_and_not_answered_is_counted_as_paid(server, tmp_path):
    server.statuses = [HANG_UP]
    prices = {"input": 0, "output": 1e6}  # a dollar a token
    reply = ask(server, tmp_path, prices=prices, max_tokens=10)
    calls = accounts(tmp_path, "one")["judge"]
    assert (calls["attempts"], calls["usd"]) == (2, 10 + reply.tokens_out)


def test_a_request_names_the_organization_of_the_environment(
    server, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-7")
    ask(server, tmp_path)
    assert server.organizations == ["org-7"]


@pytest.mark.parametrize(
    "url", ["htp://127.0.0.1:1/v1", "127.0.0.1:1/v1", "http://127.0.0.1:99999/v1"]
)
def test_an_address_to_which_nothing_can_be_sent_stops_at_once(tmp_path, url, server):
    with pytest.raises(RecipeError, match="cannot be sent: check base_url"):
        ask(server, tmp_path, base_url=url)
    assert accounts(tmp_path, "one")["judge"]["usd"] == 0


def test_white_space_around_a_key_is_none_of_it(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "  sk-1\r\n")
    ask(server, tmp_path, api_key_env="MY_KEY")
    assert server.requests[0]["key"] == "Bearer sk-1"


@pytest.mark.parametrize(
    "key", ["sk-\u2026", "sk-1\nsk-2", "sk 1", "sk-\x00", "“sk-1”"]
)
def test_a_key_that_no_header_takes_is_refused_by_its_name_alone(
    server, tmp_path, monkeypatch, key
):
    monkeypatch.setitem(os.environ, "MY_KEY", key.replace("\x00", "\x01"))
    with pytest.raises(
        RecipeError, match="MY_KEY: the key of judge-1 contains a character"
    ) as caught:
        ask(server, tmp_path, api_key_env="MY_KEY")
    assert "sk" not in str(caught.value) and not server.requests


def test_only_white_space_is_no_key(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", " \n")
    with pytest.raises(RecipeError, match="set the environment variable MY_KEY"):
        ask(server, tmp_path, api_key_env="MY_KEY")


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
    with pytest.raises(
        CallFailed, match="no answer after 1 attempts: http://127.0.0.1"
    ):
        ask(server, tmp_path, retries=0)


def test_the_key_comes_from_the_environment_by_the_name_in_the_recipe(
    server, tmp_path, monkeypatch
):
    with pytest.raises(RecipeError, match="set the environment variable MY_KEY"):
        ask(server, tmp_path, api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "secret")
    ask(server, tmp_path, api_key_env="MY_KEY")
    assert server.requests[0]["key"] == "Bearer secret"
    (segment,) = (tmp_path / "ledger/judge").glob("*.jsonl")
    assert b"secret" not in segment.read_bytes()


@pytest.mark.parametrize(
    ("model", "sent"),
    [
        ("gpt-4.1", {"temperature", "max_tokens"}),
        ("gpt-5-mini", {"temperature", "max_completion_tokens"}),
    ],
)
def test_parameters_go_by_the_names_that_the_model_takes_and_defaults_stay_away(
    server, tmp_path, model, sent
):
    ask(server, tmp_path, model=model, temperature=0.0)
    assert server.requests[0].keys() - {"model", "messages", "key"} == sent


def test_a_schema_is_sent_as_the_api_wants_it(server, tmp_path):
    ask(server, tmp_path, sampling=Sampling(schema='{"type": "object"}'))
    sent = server.requests[0]["response_format"]
    assert sent["type"] == "json_schema" and sent["json_schema"]["schema"] == {
        "type": "object"
    }
