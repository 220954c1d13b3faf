"""Judges asked in the words of a file in the form of FastChat's judge_prompts.jsonl."""

import asyncio
import json
from pathlib import Path

import pytest

from bezoar_ray.errors import RecipeError
from bezoar_ray.evaluate.mt_bench.answers import Answer
from bezoar_ray.evaluate.mt_bench.fastchat_prompts import load_prompts
from bezoar_ray.evaluate.mt_bench.judge_prompts import kind
from bezoar_ray.evaluate.mt_bench.judging import judge_turn
from bezoar_ray.evaluate.mt_bench.pairwise import compare_turn
from bezoar_ray.sources.mt_bench_files import Question
from tests.evaluate.test_mt_bench import Script

GUIDED = Question(111, "math", ("What is 2+2?", "And doubled?"), ("4", "8"))
FREE = Question(81, "writing", ("Write.", "Again."))
ANSWERS = {"single": ("answer",), "pair": ("answer_a", "answer_b")}


def template(way: str, guided: bool, turn: int) -> str:
    """A prompt that names each place beside what stands there, in the order of FastChat's."""
    if turn == 1:
        places = ["question", *(["ref_answer_1"] if guided else []), *ANSWERS[way]]
    else:
        references = ["ref_answer_1", "ref_answer_2"] if guided else []
        said = [f"{name}_{n}" for name in ANSWERS[way] for n in (1, 2)]
        places = ["question_1", "question_2", *references, *said]
    return "; ".join(f"{place} is {{{place}}}" for place in places)


def rows() -> list[dict[str, str]]:
    """The eight prompts that FastChat's file has."""
    found = []
    for way in ANSWERS:
        for guided in (False, True):
            for turn in (1, 2):
                name = kind(way, guided, turn)
                found.append(
                    {
                        "name": name,
                        "type": way,
                        "system_prompt": f"Judge, {name}.",
                        "category": "general",
                        "prompt_template": template(way, guided, turn),
                        "output_format": "[[rating]]",
                    }
                )
    return found


def write(path: Path, found: list[dict[str, str]]) -> Path:
    path.write_text("\n".join(map(json.dumps, found)) + "\n")
    return path


@pytest.fixture
def prompts(tmp_path):
    return load_prompts(write(tmp_path / "judge_prompts.jsonl", rows()))


def asked_to_grade(prompts, question, turn):
    chat = Script("Rating: [[7]]")
    found = asyncio.run(
        judge_turn(
            Answer(question, "sft", ("Four {x}.", "Eight.")),
            turn,
            "judge",
            chat,
            prompts,
        )
    )
    assert (
        found.score == 7.0
        and found.user_prompt == chat.calls[0]["messages"][1]["content"]
    )
    return [message["content"] for message in chat.calls[0]["messages"]]


def test_names_are_those_of_fastchats_file():
    assert [row["name"] for row in rows()] == [
        "single-v1",
        "single-v1-multi-turn",
        "single-math-v1",
        "single-math-v1-multi-turn",
        "pair-v2",
        "pair-v2-multi-turn",
        "pair-math-v1",
        "pair-math-v1-multi-turn",
    ]


@pytest.mark.parametrize(
    ("question", "turn", "name", "shown"),
    [
        (FREE, 1, "single-v1", "question is Write.; answer is Four {x}."),
        (
            FREE,
            2,
            "single-v1-multi-turn",
            "question_1 is Write.; question_2 is Again.; answer_1 is Four {x}.; answer_2 is Eight.",
        ),
        (
            GUIDED,
            1,
            "single-math-v1",
            "question is What is 2+2?; ref_answer_1 is 4; answer is Four {x}.",
        ),
        (
            GUIDED,
            2,
            "single-math-v1-multi-turn",
            "question_1 is What is 2+2?; question_2 is And doubled?; ref_answer_1 is 4; ref_answer_2 is 8; "
            "answer_1 is Four {x}.; answer_2 is Eight.",
        ),
    ],
)
def test_a_turn_is_graded_in_the_words_for_its_kind(
    prompts, question, turn, name, shown
):
    assert asked_to_grade(prompts, question, turn) == [f"Judge, {name}.", shown]


@pytest.mark.parametrize(
    ("question", "turn", "name"),
    [(FREE, 1, "pair-v2"), (GUIDED, 2, "pair-math-v1-multi-turn")],
)
def test_two_are_compared_in_both_orders(prompts, question, turn, name):
    chat = Script("[[A]]", "[[B]]")
    sides = (
        Answer(question, "sft", ("one", "two")),
        Answer(question, "base", ("eins", "zwei")),
    )
    found = asyncio.run(compare_turn(*sides, turn, "judge", chat, prompts))
    assert found.winner == "sft"
    first, second = (call["messages"] for call in chat.calls)
    assert first[0]["content"] == second[0]["content"] == f"Judge, {name}."
    said, theirs = ("one", "eins") if turn == 1 else ("two", "zwei")
    last = "" if turn == 1 else "_2"
    assert (
        f"answer_a{last} is {said}" in first[1]["content"]
        and f"answer_b{last} is {theirs}" in first[1]["content"]
    )
    assert f"answer_a{last} is {theirs}" in second[1]["content"]


def test_words_that_are_not_fastchats_are_called_by_their_file(prompts):
    assert prompts.whose == "those of judge_prompts.jsonl"


def test_fastchats_own_file_is_known(real_data, tmp_path):
    """Where the folder of real data holds it."""
    path = real_data / "mt_bench/judge_prompts.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    assert load_prompts(path).whose == "FastChat's"
    (tmp_path / "mine.jsonl").write_text(
        path.read_text().replace("impartial", "strict")
    )
    assert load_prompts(tmp_path / "mine.jsonl").whose == "those of mine.jsonl"


def without(name):
    return [row for row in rows() if row["name"] != name]


def changed(**fields):
    first, *rest = rows()
    return [first | fields, *rest]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            without("pair-math-v1"),
            "has no prompt 'pair-math-v1'. Use FastChat's complete file",
        ),
        ([], "has no prompt 'single-v1'"),
        (
            changed(prompt_template="{question} {answer} {mood}"),
            r"prompt 'single-v1': its placeholders are .*\{mood\}",
        ),
        (
            changed(prompt_template="{question}"),
            r"its placeholders are \{question\}. They must be \{answer\}, \{question\}",
        ),
        (
            changed(prompt_template="{question} {answer.__class__}"),
            "its placeholders are",
        ),
        (changed(prompt_template="{question} {answer} {"), "prompt 'single-v1': "),
        (
            changed(prompt_template=None),
            ":1: not a FastChat judge prompt: 'prompt_template' must be a string",
        ),
        (changed(name=3), "'name' must be a string, not 3"),
        ([["a list"]], "not a FastChat judge prompt"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, found, message):
    with pytest.raises(RecipeError, match=message):
        load_prompts(write(tmp_path / "prompts.jsonl", found))


def test_a_file_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("{not json\n")
    with pytest.raises(RecipeError, match="prompts.jsonl:1: not valid JSON"):
        load_prompts(tmp_path / "prompts.jsonl")
