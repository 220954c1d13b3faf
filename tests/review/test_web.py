"""The page's requests: what a browser sends and sees, without a browser."""

import contextlib
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest
from fastapi.testclient import TestClient

from bezoar_ray import cli
from bezoar_ray.data.decision import by_row, latest, read_own_decisions
from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import recipe_of
from bezoar_ray.review.queue import (
    ReviewQueue,
    criteria,
    judge_fingerprint,
    rubric_fingerprint,
)
from bezoar_ray.review.web import row_app
from bezoar_ray.store import Store
from tests.review.conftest import ATTACK, make_rows, write_run

TOKEN = "token"


def client(store: Store, count: int = 100) -> TestClient:
    queue = ReviewQueue(store, recipe_of(store), count)
    return TestClient(
        row_app(queue, "ada", TOKEN), base_url=f"http://127.0.0.1/{TOKEN}/"
    )


def next_row(page: TestClient, reviewer: str = "ada") -> dict:
    return page.get("next", params={"reviewer": reviewer}).json()


def decide(page: TestClient, id: str, decision="accept", reviewer="ada", **fields):
    body = {"id": id, "decision": decision, "reviewer": reviewer} | fields
    return page.post("decisions", json=body)


def test_rows_come_one_by_one_until_all_are_decided(run_store):
    page = client(run_store)
    seen = []
    while (state := next_row(page))["row"]:
        assert state["done"] == len(seen) and state["total"] == 10
        seen.append(state["row"]["id"])
        assert decide(page, seen[-1], seconds=1.5).status_code == 200
    assert len(set(seen)) == 10
    found = by_row(read_own_decisions(run_store))
    assert set(found) == set(seen)
    recipe = recipe_of(run_store)
    decision = found[seen[0]]
    assert (decision.reviewer, decision.seconds, decision.scheme) == (
        "ada",
        1.5,
        "lamini",
    )
    assert decision.rubric == rubric_fingerprint(recipe.filter.rubric("lamini"))
    assert decision.judge == judge_fingerprint(recipe)


def test_the_verdict_is_hidden_until_the_row_is_decided(run_store):
    page = client(run_store)
    while (response := page.get("next", params={"reviewer": "ada"})).json()["row"]:
        assert "secret reason" not in response.text
        assert "tiny-judge" not in response.text and "status" not in response.text
        id = response.json()["row"]["id"]
        verdict = decide(page, id).json()["verdict"]
        assert verdict["verdicts"][0]["reason"] == "secret reason"


def test_a_later_session_goes_on_where_an_earlier_one_ended(run_store):
    first = client(run_store)
    ids = [next_row(first)["row"]["id"]]
    decide(first, ids[0])
    second = client(run_store)
    assert next_row(second)["done"] == 1
    assert next_row(second)["row"]["id"] not in ids


def test_two_reviewers_see_the_same_rows_at_once(run_store):
    """Two browsers on one server, and a second server on the folder."""
    pages = {"ada": client(run_store), "bob": client(run_store)}
    pages["eve"] = pages["ada"]
    order: dict[str, list[str]] = {name: [] for name in pages}
    for _ in range(10):
        for name, page in pages.items():
            id = next_row(page, name)["row"]["id"]
            decide(page, id, reviewer=name)
            order[name].append(id)
    assert order["ada"] == order["bob"] == order["eve"]
    found = latest(read_own_decisions(run_store))
    assert Counter(name for _, name in found) == {"ada": 10, "bob": 10, "eve": 10}


def test_undo_brings_the_last_row_back_and_withdraws_its_decision(run_store):
    page = client(run_store)
    first = next_row(page)["row"]["id"]
    decide(page, first)
    second = next_row(page)["row"]["id"]
    decide(page, second, "reject", reason="fails: is correct")
    state = page.post("undo", json={"reviewer": "ada"}).json()
    assert state["row"]["id"] == second and state["done"] == 1
    assert set(by_row(read_own_decisions(run_store))) == {first}
    # Another reviewer has nothing to take back.
    other = page.post("undo", json={"reviewer": "bob"}).json()
    assert other["done"] == 0 and set(by_row(read_own_decisions(run_store))) == {first}


def test_an_edit_keeps_what_changed_and_nothing_else(run_store):
    page = client(run_store)
    row = next_row(page)["row"]
    texts = {name: row[name] for name in ("instruction", "input", "response")}
    decide(page, row["id"], **texts | {"response": "Better."})
    (decision,) = read_own_decisions(run_store)
    assert decision.edits == {"response": "Better."}
    other = next_row(page)["row"]
    decide(page, other["id"], **{name: other[name] for name in texts})
    assert by_row(read_own_decisions(run_store))[other["id"]].edits == {}


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"id": "none"}, "no row 'none' is under review"),
        ({"reviewer": " "}, "reviewer: empty"),
        ({"response": " "}, "response: empty"),
        ({"decision": "reject", "response": "Better."}, "only an accepted row"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_and_not_kept(
    run_store, fields, match
):
    page = client(run_store)
    body = {"id": next_row(page)["row"]["id"], "decision": "accept", "reviewer": "ada"}
    response = page.post("decisions", json=body | fields)
    assert response.status_code == 400 and match in response.json()["detail"]
    assert page.post("decisions", json=body | {"decision": "x"}).status_code == 422
    assert read_own_decisions(run_store) == []


@pytest.mark.parametrize(
    "path",
    ["/", "/wrong/", "/toke/", "/token2/next", "/next", "/docs", "/openapi.json"],
)
def test_a_wrong_or_missing_token_is_refused(run_store, path):
    page = client(run_store)
    response = page.get(f"http://127.0.0.1{path}")
    assert response.status_code == 403 and "Task" not in response.text
    refused = page.post(f"http://127.0.0.1{path}", json={})
    assert refused.status_code == 403


def test_the_page_loads_nothing_from_elsewhere_and_runs_its_own_script_only(run_store):
    page = client(run_store)
    for name in ("", "common.js", "rows.js", "review.css"):
        response = page.get(name)
        assert response.status_code == 200
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert not re.search(r"(https?:)?//\w+\.", response.text)
        assert "innerHTML" not in response.text
        assert "insertAdjacentHTML" not in response.text
    markup = page.get("").text
    # The policy would refuse inline scripts, handlers and styles.
    assert "<script>" not in markup
    assert not re.search(r"\s(on\w+|style)=", markup)
    assert ATTACK in next_row(page)["row"]["response"]


@pytest.mark.parametrize(
    ("rubric", "expected"),
    [
        (
            "A good row has an instruction that is clear, and a response that does "
            "what is asked, is correct, and is complete.",
            [
                "an instruction that is clear",
                "a response that does what is asked",
                "is correct",
                "is complete",
            ],
        ),
        ("Rate:\n- true\n- 3.5 words, at most\n", ["true", "3.5 words, at most"]),
        ("", []),
    ],
)
def test_reasons_come_from_the_rubric(rubric, expected):
    assert criteria(rubric) == expected


def test_a_run_without_rows_says_what_to_do(tmp_path):
    store = write_run(tmp_path, [])
    with pytest.raises(RecipeError, match="has no rows to review. Carry out"):
        ReviewQueue(store, recipe_of(store), 10)


def test_a_port_in_use_is_named(run_store, capsys):
    with server(run_store) as running:
        port = str(running.address.port)
        assert cli.main(["review", str(run_store.root), "--port", port]) == 2
    assert f"--port {port}: Address already in use" in capsys.readouterr().err


@contextlib.contextmanager
def server(store: Store, *options: str) -> Iterator[SimpleNamespace]:
    """`bezoar review` with its `address` and `process`, which is killed after the block."""
    command = [sys.executable, "-m", "bezoar_ray.cli", "review", str(store.root)]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        address = httpx.URL(process.stdout.readline().strip())
        yield SimpleNamespace(address=address, process=process)
    finally:
        process.kill()
        process.communicate()


def review(
    page: httpx.Client, confirmed: dict[str, str], verdicts: dict[str, str]
) -> None:
    """Decide on all that is left, as long as the server answers."""
    while row := page.get("next", params={"reviewer": "ada"}).json()["row"]:
        wanted = verdicts[row["id"]]
        if decide(page, row["id"], wanted).status_code == 200:
            confirmed[row["id"]] = wanted


def kill_after(
    process: subprocess.Popen, confirmed: dict[str, str], count: int, seconds: float
) -> None:
    """Kill a server some time after so many decisions are confirmed."""
    while len(confirmed) < min(count, 200):
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()


@pytest.mark.slow
def test_200_decisions_outlive_20_kills_of_the_server(tmp_path):
    """The kills come at any moment, also while a decision is written."""
    rows = make_rows(120, 80)
    store = write_run(tmp_path, rows)
    verdicts = {row.id: ("accept", "reject")[i % 2] for i, row in enumerate(rows)}
    confirmed: dict[str, str] = {}
    draw = random.Random(0)
    for _ in range(20):
        with (
            server(store, "--rows", "200") as running,
            httpx.Client(base_url=running.address, trust_env=False) as page,
        ):
            page.get("")  # the first request loads what later ones use
            kill = threading.Thread(
                target=kill_after,
                args=(
                    running.process,
                    confirmed,
                    len(confirmed) + draw.randint(1, 5),
                    draw.uniform(0, 0.02),
                ),
            )
            kill.start()
            with contextlib.suppress(httpx.HTTPError):
                review(page, confirmed, verdicts)
            kill.join()
            assert running.process.wait() == -signal.SIGKILL
    assert 20 <= len(confirmed) < 200
    kept = by_row(read_own_decisions(store))
    assert confirmed.items() <= {id: one.decision for id, one in kept.items()}.items()
    with (
        server(store, "--rows", "200") as running,
        httpx.Client(base_url=running.address, trust_env=False) as page,
    ):
        review(page, confirmed, verdicts)
    found = by_row(read_own_decisions(store))
    assert {id: one.decision for id, one in found.items()} == verdicts


def test_the_server_listens_on_this_machine_only(run_store):
    with server(run_store) as running:
        address = running.address
        assert address.host == "127.0.0.1" and len(address.path) > 20
        assert httpx.get(address, trust_env=False).status_code == 200
        other = address.copy_with(path="/")
        assert httpx.get(other, trust_env=False).status_code == 403
        with pytest.raises(httpx.ConnectError):
            httpx.get(address.copy_with(host="127.0.0.2"), trust_env=False)
