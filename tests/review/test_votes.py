"""People compare the answers of two checkpoints, and do not see whose they are."""

from collections import Counter
from pathlib import Path

import httpx
import orjson
import pytest
from fastapi.testclient import TestClient

from bezoar_ray import cli
from bezoar_ray.evaluate.mt_bench import fastchat_files
from bezoar_ray.evaluate.mt_bench.answers import Answer
from bezoar_ray.evaluate.mt_bench.bench import Bench
from bezoar_ray.recipe import MtBench
from bezoar_ray.review.votes import VoteQueue, read_votes
from bezoar_ray.review.web import pair_app
from bezoar_ray.sources.mt_bench_files import Question
from bezoar_ray.store import Store
from tests.browser import browser
from tests.review.conftest import ATTACK, write_run
from tests.review.test_web import server

QUESTIONS = 12


@pytest.fixture
def store(tmp_path) -> Store:
    """A run whose sft and dpo have answered 12 questions; dpo failed at one second turn."""
    found = write_run(tmp_path / "run", [])
    questions = [
        Question(81 + number, "writing", (f"Ask {number}", f"More {number}"))
        for number in range(QUESTIONS)
    ]
    answers = []
    for model in ("base", "sft", "dpo"):
        for question in questions:
            turns = tuple(f"{model} {question.id} {ATTACK}" for _ in question.turns)
            if (model, question.id) == ("dpo", 81):
                turns = turns[:1]
            answers.append(Answer(question, model, turns))
    fastchat_files.save(found, questions, answers, [], [])
    return found


def client(store: Store, models=("sft", "dpo")) -> TestClient:
    app = pair_app(VoteQueue(store, models, 0), "ada", "token")
    return TestClient(app, base_url="http://127.0.0.1/token/")


def next_pair(page, reviewer="ada") -> dict:
    return page.get("next", params={"reviewer": reviewer}).json()


def vote(page, id: str, choice: str, reviewer="ada") -> dict:
    body = {"id": id, "choice": choice, "reviewer": reviewer, "seconds": 2.0}
    response = page.post("votes", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def preferring(model: str, pair: dict) -> str:
    """The choice of somebody who knows whose answers these are."""
    return "left" if pair["left"][0].startswith(model) else "right"


def published(store: Store, reviewer="ada"):
    """The reviewer's verdicts as evaluate reads them."""
    path = Path(store.root) / f"review/model_judgment/{reviewer}_pair.jsonl"
    section = MtBench(questions="tiny", judgments=(str(path),))
    return Bench(section, ("sft", "dpo")).published_comparisons


def test_votes_are_read_as_the_verdicts_of_a_judge(store):
    page = client(store)
    sides = Counter()
    while pair := next_pair(page)["pair"]:
        choice = preferring("dpo", pair)
        sides[choice] += 1
        seen = vote(page, pair["id"], choice)
        assert {seen["left"], seen["right"]} == {"sft", "dpo"} and seen[choice] == "dpo"
    comparisons = published(store)
    # dpo has one answer less.
    assert len(comparisons) == 2 * QUESTIONS - 1
    assert {comparison.winner for comparison in comparisons} == {"dpo"}
    assert {comparison.judge for comparison in comparisons} == {"ada"}
    # The sides are drawn: neither model is always on the left.
    assert min(sides.values()) >= 5


def test_both_good_and_both_bad_are_ties_that_can_be_told_apart(store):
    page = client(store)
    for choice in ("both_good", "both_bad", "skip"):
        vote(page, next_pair(page)["pair"]["id"], choice)
    assert [comparison.winner for comparison in published(store)] == ["tie", "tie"]
    path = Path(store.root) / "review/model_judgment/ada_pair.jsonl"
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert [row["choice"] for row in rows] == ["both_good", "both_bad"]
    assert rows[0].keys() >= {"question_id", "model_1", "model_2", "g1_winner", "turn"}


def test_names_are_hidden_until_the_vote(store):
    page = client(store)
    state = page.get("next", params={"reviewer": "ada"}).json()
    assert set(state) == {"pair", "done", "total"}
    assert set(state["pair"]) == {"id", "user", "left", "right"}


def test_the_sides_stay_for_a_reviewer_and_differ_between_reviewers(store):
    def lefts(reviewer: str) -> list[str]:
        pairs = VoteQueue(store, ("sft", "dpo"), 0).pairs(reviewer)
        return [pair.left for pair in pairs]

    assert lefts("ada") == lefts("ada") != lefts("bob")


def test_undo_shows_the_pair_again_and_removes_its_vote(store):
    page = client(store)
    first = next_pair(page)["pair"]
    vote(page, first["id"], "left")
    state = page.post("undo", json={"reviewer": "ada"}).json()
    assert state["pair"] == first and state["done"] == 0
    assert published(store) == [] and read_votes(store) == []
    vote(page, first["id"], "both_bad")
    assert len(published(store)) == 1


def test_sessions_go_on_and_reviewers_have_files_of_their_own(store):
    first, second = client(store), client(store)
    pair = next_pair(first)["pair"]
    vote(first, pair["id"], "left")
    assert next_pair(second)["pair"]["id"] != pair["id"]
    vote(second, next_pair(second, "bob/x")["pair"]["id"], "left", "bob/x")
    assert len(published(store)) == 1 and len(published(store, "bob%2Fx")) == 1
    # Another pair of models has votes of its own.
    assert next_pair(client(store, ("base", "dpo")))["done"] == 0


@pytest.mark.parametrize(
    ("models", "match"),
    [
        (["sft", "orpo"], "--pairs sft orpo: name two different models that have"),
        (["sft", "sft"], "answered: base, dpo, sft"),
    ],
)
def test_models_without_answers_are_refused(store, models, match, capsys):
    assert cli.main(["review", str(store.root), "--pairs", *models]) == 2
    assert match in capsys.readouterr().err


def test_a_run_without_answers_says_what_to_do(tmp_path, capsys):
    write_run(tmp_path, [])
    assert cli.main(["review", str(tmp_path), "--pairs", "sft", "dpo"]) == 2
    assert "has no answers to compare. Carry out its stage" in capsys.readouterr().err


def test_a_request_that_makes_no_sense_is_refused(store):
    page = client(store)
    body = {"id": "none/1", "choice": "left", "reviewer": "ada"}
    assert page.post("votes", json=body).status_code == 400
    nobody = body | {"id": next_pair(page)["pair"]["id"], "reviewer": ""}
    assert page.post("votes", json=nobody).status_code == 400
    assert page.post("votes", json=body | {"choice": "x"}).status_code == 422
    other = TestClient(page.app, base_url="http://127.0.0.1")
    assert other.get("/wrong/").status_code == 403
    assert read_votes(store) == []


@pytest.mark.slow
def test_in_a_browser_answers_are_compared_by_keys_and_scripts_in_them_do_nothing(
    store,
):
    options = ("--pairs", "sft", "dpo", "--reviewer", "ada")
    with server(store, *options) as running, browser() as tab:
        tab.open(str(running.address))
        keys = ("ArrowLeft", "ArrowRight", "g", "b", "s")
        tab.wait("!document.getElementById('pair').hidden")
        assert ATTACK in tab.text("turns")
        for done, key in enumerate(keys, 1):
            tab.press(key)
            tab.wait(
                "document.getElementById('progress').textContent"
                f".startsWith('{done} of 23')"
            )
        assert "Left was" in tab.text("models")
        tab.press("u")
        tab.wait("document.getElementById('progress').textContent.startsWith('4 of')")
        assert tab.value("document.title") == "Compare answers · bezoar_ray"
        assert tab.value("document.images.length") == 0
        tab.open(str(httpx.URL(running.address).copy_with(path="/wrong/")))
        assert "Wrong or missing token" in tab.value("document.body.innerText")
    choices = [one.choice for one in read_votes(store)]
    assert choices == ["left", "right", "both_good", "both_bad"]
