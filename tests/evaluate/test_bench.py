"""MT-Bench as a whole: scripted checkpoints and judges behind real HTTP servers."""

import asyncio
import hashlib
import threading
import time
from collections import Counter
from statistics import fmean

import orjson
import pytest

from bezoar_ray.errors import BudgetReached, RecipeError
from bezoar_ray.evaluate.mt_bench.bench import Bench, mt_bench
from bezoar_ray.evaluate.served_endpoint import Endpoint
from bezoar_ray.llm.ledger import accounts
from bezoar_ray.recipe import load_recipe
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from tests.endpoint import serving
from tests.engine import CONTEXT, hosting
from tests.evaluate.test_fastchat_prompts import rows as prompt_rows
from tests.evaluate.test_fastchat_prompts import write
from tests.family import family_recipe, read_lines
from tests.scripted import says

REFUSED = "I would rather not say."
NAMES = ("base", "sft", "hh-sft", "dpo")


@pytest.fixture
def engine():
    with hosting(list(NAMES)) as found:
        yield found


@pytest.fixture
def tokenizer(tiny_world, tmp_path) -> str:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(tiny_world.base)
    found.chat_template = family_recipe().template
    found.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def judged(folder, engine, tokenizer, *sets, marks=None, judges):
    """The scores, and how often a step was counted."""
    parts = [
        {
            "model": f"judge-{n}",
            "base_url": judge.url,
            "prices": {"input": 1, "output": 1},
        }
        for n, judge in enumerate(judges)
    ]
    recipe = load_recipe(
        "tiny", [f"evaluate.mt_bench.judges={orjson.dumps(parts).decode()}", *sets]
    )
    bench, steps = Bench(recipe.evaluate.mt_bench, NAMES), []
    context = StageContext(
        recipe,
        Store(folder / "run"),
        f"s{len(list(folder.rglob('*.jsonl')))}",
        Progress(),
    )
    marks = marks or {name: f"weights of {name}" for name in NAMES}
    endpoint = Endpoint(engine.url, tokenizer, CONTEXT)
    scores, _ = asyncio.run(
        mt_bench(context, bench, endpoint, marks, lambda: steps.append(1))
    )
    assert len(steps) == bench.total
    return scores


def question(messages) -> bytes:
    """What a judge is asked, without what is added after a reply that could not be read."""
    *before, last = messages
    return orjson.dumps(
        [*before, last["content"].partition("\n\nYour last reply could not be used")[0]]
    )


def garbles(messages) -> str:
    """A judge of whose replies about a third cannot be read, each time they are asked for."""
    digest = hashlib.sha256(question(messages)).digest()
    return REFUSED if digest[0] % 3 == 0 else says(messages)


def test_unreadable_verdicts_are_counted_and_enter_no_score(
    engine, tokenizer, tmp_path
):
    with serving(garbles) as judge:
        scores = judged(tmp_path, engine, tokenizer, judges=[judge])
    grades = read_lines(Store(tmp_path / "run"), "eval/mt_bench/judgments.jsonl")
    assert all(
        (grade["score"] is None) == (grade["judgment"] == REFUSED) for grade in grades
    )
    for name, part in scores.items():
        mine = [grade["score"] for grade in grades if grade["model"] == name]
        assert (
            part["unscored"] == mine.count(None)
            and part["scored"] + part["unscored"] == len(mine) == 32
        )
        assert part["score"] == pytest.approx(
            fmean(score for score in mine if score is not None)
        )
    unread = sum(part["unscored"] for part in scores.values())
    assert 0.2 < unread / 128 < 0.5
    assert (
        max(Counter(map(question, judge.requests)).values()) == 2
    )  # once more, and no more
    assert (
        max(Counter(map(orjson.dumps, judge.requests)).values()) == 1
    )  # and otherwise


def test_garbage_is_counted_on_the_real_questions_too(
    engine, tokenizer, tmp_path, real_data
):
    with serving(garbles) as judge:
        questions = f"evaluate.mt_bench.questions={real_data}/mt_bench/question.jsonl"
        scores = judged(tmp_path, engine, tokenizer, questions, judges=[judge])
    assert {part["scored"] + part["unscored"] for part in scores.values()} == {160}
    assert 0.2 < sum(part["unscored"] for part in scores.values()) / 640 < 0.5


def test_a_second_score_leaves_questions_with_disputed_references_out(
    engine, tokenizer, tmp_path
):
    with serving(says) as judge:
        scores = judged(
            tmp_path,
            engine,
            tokenizer,
            "evaluate.mt_bench.references_skip=[1003, '1005']",
            judges=[judge],
        )
    grades = read_lines(Store(tmp_path / "run"), "eval/mt_bench/judgments.jsonl")
    for name, part in scores.items():
        mine = [grade for grade in grades if grade["model"] == name]
        assert part["scored"] == len(mine) == 32
        rest = [
            grade["score"] for grade in mine if grade["question_id"] not in (1003, 1005)
        ]
        assert part["without_skipped"]["scored"] == len(rest) == 28
        assert part["without_skipped"]["score"] == pytest.approx(fmean(rest))


def test_a_judge_is_asked_in_the_words_of_a_file(engine, tokenizer, tmp_path):
    prompts = write(tmp_path / "judge_prompts.jsonl", prompt_rows())
    with serving(lambda messages: "Rating: [[6]] [[C]]") as judge:
        scores = judged(
            tmp_path,
            engine,
            tokenizer,
            f"evaluate.mt_bench.prompts={prompts}",
            judges=[judge],
        )
    assert {part["score"] for part in scores.values()} == {6.0}
    assert {part["prompts"] for part in scores.values()} == {
        "those of judge_prompts.jsonl"
    }
    assert {messages[0]["content"] for messages in judge.requests} == {
        row["system_prompt"] for row in prompt_rows()
    }


def test_each_checkpoint_is_compared_with_its_parent_and_knows_its_judges(
    engine, tokenizer, tmp_path
):
    with (
        serving(says) as judge,
        serving(lambda messages: "Rating: [[5]] [[C]]") as other,
    ):
        scores = judged(tmp_path, engine, tokenizer, judges=[judge, other])
    assert {name: list(part["pairwise"]) for name, part in scores.items()} == {
        "base": ["sft"],
        "sft": ["base", "hh-sft"],
        "hh-sft": ["sft", "dpo"],
        "dpo": ["hh-sft"],
    }
    for part in scores.values():
        record = next(iter(part["pairwise"].values()))
        assert record["wins"] + record["ties"] + record["losses"] == 32
        assert (
            part["judge"] == "judge-0"
            and part["bias"]["judges"]["judge-1"]["score"] == 5.0
        )
        assert 0 < part["bias"]["flip_rate"] < 1  # this judge draws: it knows no order


def test_two_revisions_of_one_model_are_two_judges(engine, tokenizer, tmp_path):
    with serving(says) as one, serving(lambda messages: "Rating: [[5]] [[C]]") as other:
        parts = [
            {"model": "m", "revision": name, "base_url": judge.url}
            for name, judge in (("a", one), ("b", other))
        ]
        sets = f"evaluate.mt_bench.judges={orjson.dumps(parts).decode()}"
        scores = judged(tmp_path, engine, tokenizer, sets, judges=[])
    assert {part["judge"] for part in scores.values()} == {"m@a"}
    assert {part["bias"]["judges"]["m@b"]["score"] for part in scores.values()} == {5.0}


def test_all_conversations_are_under_way_at_once(tokenizer, tmp_path):
    with hosting(list(NAMES), slowest=1.0) as engine, serving(says) as judge:
        judged(tmp_path, engine, tokenizer, judges=[judge])
    assert engine.most > 48  # of 4 x 16, each of which waits for its own first turn


def test_questions_and_categories_of_your_own_are_asked_graded_and_told_apart(
    engine, tokenizer, tmp_path
):
    own = [
        {
            "question_id": "one",
            "category": "puns",
            "turns": ["A pun on bees?", "And on wasps?", "And on ants?"],
        },
        {
            "question_id": "two",
            "category": "law",
            "turns": ["Is it legal?"],
            "reference": ["Only on Sundays."],
        },
    ]
    (tmp_path / "own.jsonl").write_bytes(b"\n".join(map(orjson.dumps, own)))
    sets = [
        f"evaluate.mt_bench.questions={tmp_path}/own.jsonl",
        "evaluate.mt_bench.temperatures={puns: 1.0}",
    ]
    with serving(says) as judge:
        scores = judged(tmp_path, engine, tokenizer, *sets, judges=[judge])
    for part in scores.values():
        assert part["scored"] == 4 and set(part["by_category"]) == {"puns", "law"}
        assert set(part["bias"]["by_turn"]) == {1, 2, 3}
    shown = [messages[-1]["content"] for messages in judge.requests]
    assert {"Is it legal?" in text for text in shown if "Only on Sundays." in text} == {
        True
    }
    assert engine.chats.total() == 4 * 4


def test_published_answers_are_judged_beside_ours_and_their_grades_read(
    engine, tokenizer, tmp_path
):
    questions = Bench(load_recipe("tiny").evaluate.mt_bench, NAMES).questions
    answers = [
        {
            "question_id": q.id,
            "model_id": "gpt-3.5",
            "choices": [{"index": 0, "turns": ["a", "b"]}],
        }
        for q in questions
    ]
    grades = [
        {
            "question_id": q.id,
            "model": "gpt-3.5",
            "judge": ["gpt-4", "single-v1"],
            "turn": 1,
            "score": 9,
        }
        for q in questions
    ]
    for name, rows in (("answers", answers), ("grades", grades)):
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    files = [
        f"evaluate.mt_bench.answers=[{tmp_path}/answers.jsonl]",
        f"evaluate.mt_bench.judgments=[{tmp_path}/grades.jsonl]",
        "evaluate.mt_bench.pairwise=[[dpo, gpt-3.5]]",
    ]
    with serving(says) as judge:
        scores = judged(tmp_path, engine, tokenizer, *files, judges=[judge])
    assert scores["gpt-3.5"]["scored"] == 32 and list(scores["dpo"]["pairwise"]) == [
        "gpt-3.5"
    ]
    assert scores["gpt-3.5"]["bias"]["judges"]["gpt-4"]["score"] == 9
    with (
        pytest.raises(
            RecipeError,
            match="no model 'gpt-5'. Known models: asft, base, dpo, gpt-3.5, hh-sft",
        ),
        serving(says) as judge,
    ):
        judged(
            tmp_path,
            engine,
            tokenizer,
            *files,
            "evaluate.mt_bench.pairwise=[[dpo, gpt-5]]",
            judges=[judge],
        )


def test_checkpoints_that_say_the_same_have_grades_of_their_own(
    engine, tokenizer, tmp_path
):
    """One grade for both would be asked for by both at once, and the later one would replace the earlier."""
    published = tmp_path / "published.jsonl"
    with serving(says) as judge:
        judged(tmp_path, engine, tokenizer, judges=[judge])
        rows = read_lines(Store(tmp_path / "run"), "eval/mt_bench/answers.jsonl")
        mine = [row | {"model_id": "twin"} for row in rows if row["model_id"] == "dpo"]
        published.write_bytes(b"\n".join(map(orjson.dumps, mine)))
        asked = len(judge.requests)
        twins = f"evaluate.mt_bench.answers=[{published}]"
        scores = judged(tmp_path, engine, tokenizer, twins, judges=[judge])
    assert (
        len(judge.requests) == asked + 32
        and scores["twin"]["score"] == scores["dpo"]["score"]
    )


def test_a_retrained_checkpoint_is_asked_anew_and_the_others_are_not(
    engine, tokenizer, tmp_path
):
    with serving(says) as judge:
        judged(tmp_path, engine, tokenizer, judges=[judge])
        before = engine.chats.copy()
        marks = {name: f"weights of {name}" for name in NAMES} | {"dpo": "trained anew"}
        judged(tmp_path, engine, tokenizer, judges=[judge], marks=marks)
    again = {orjson.loads(key)[0] for key in engine.chats - before}
    assert again == {"dpo"} and (engine.chats - before).total() == 32


def test_judges_share_a_budget_and_what_they_said_is_kept(engine, tokenizer, tmp_path):
    with serving(says) as judge, serving(says) as other:
        with pytest.raises(BudgetReached, match="evaluate.budget_usd"):
            judged(
                tmp_path,
                engine,
                tokenizer,
                "evaluate.budget_usd=0.003",
                judges=[judge, other],
            )
        spent = accounts(tmp_path / "run", "")["mt_bench_judge"]["usd"]
        first = len(judge.requests) + len(other.requests)
        assert first > 0 and spent <= 0.003
        assert engine.chats.total() == 4 * 32  # every answer is there
        judged(
            tmp_path, engine, tokenizer, "evaluate.budget_usd=50", judges=[judge, other]
        )
    assert engine.chats.total() == 4 * 32
    times = Counter(map(orjson.dumps, [*judge.requests, *other.requests]))
    assert max(times.values()) <= 2  # by each judge once


def test_what_a_judge_is_answering_when_it_refuses_another_call_is_kept(
    engine, tokenizer, tmp_path
):
    under_way, refuses = threading.Event(), True

    def of_second_turn(messages) -> bool:
        return "<question_2>" in messages[-1]["content"]

    def judges(messages):
        if refuses and of_second_turn(messages):
            under_way.wait(60)
            return 401
        under_way.set()
        time.sleep(0.5 * refuses)
        return says(messages)

    with serving(judges) as judge:
        with pytest.raises(RecipeError, match="answers 401"):
            judged(tmp_path, engine, tokenizer, judges=[judge])
        refuses = False
        judged(tmp_path, engine, tokenizer, judges=[judge])
    times = Counter(
        orjson.dumps(messages)
        for messages in judge.requests
        if not of_second_turn(messages)
    )
    assert max(times.values()) == 1
