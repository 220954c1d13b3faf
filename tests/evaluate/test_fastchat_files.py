"""MT-Bench's files: FastChat's questions and references in, FastChat's answers and judgments out."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bezoar_ray.errors import RecipeError
from bezoar_ray.evaluate.mt_bench.answers import Answer
from bezoar_ray.evaluate.mt_bench.fastchat_files import (
    ANSWERS,
    COMPARISONS,
    JUDGMENTS,
    save,
)
from bezoar_ray.evaluate.mt_bench.judging import Judgment
from bezoar_ray.evaluate.mt_bench.pairwise import Comparison, Game
from bezoar_ray.recipe import MtBench
from bezoar_ray.sources.mt_bench_files import (
    load_answers,
    load_grades,
    load_questions,
    load_verdicts,
)
from bezoar_ray.store import Store

ROWS = [
    {
        "question_id": 1,
        "category": "writing",
        "turns": ["Write.", "Again."],
        "reference": ["never", "shown"],
    },
    {"question_id": 2, "category": "math", "turns": ["2+2?", "Doubled?"]},
    {
        "question_id": 3,
        "category": "coding",
        "turns": ["Sort.", "Faster."],
        "reference": ["own 1", "own 2"],
    },
    {
        "question_id": 4,
        "category": "coding",
        "turns": ["Sort.", "Faster."],
        "reference": ["own 1", " "],
    },
    {
        "question_id": 5,
        "category": "puns",
        "turns": ["A pun.", "More."],
        "reference": ["own 3", "own 4"],
    },
]
REFERENCES = [
    {
        "question_id": 2,
        "model_id": "gpt-4",
        "choices": [{"index": 0, "turns": ["4", "8"]}],
        "tstamp": 1.0,
    }
]


def write(path, rows):
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    )
    return str(path)


def test_references_come_from_the_file_or_the_question_and_only_where_judging_uses_them(
    tmp_path,
):
    part = MtBench(
        questions=write(tmp_path / "q.jsonl", ROWS),
        references=write(tmp_path / "r.jsonl", REFERENCES),
    )
    shown = [question.references for question in load_questions(part)]
    assert shown == [None, ("4", "8"), ("own 1", "own 2"), None, ("own 3", "own 4")]


def test_limit_keeps_the_first_questions(tmp_path):
    part = MtBench(questions=write(tmp_path / "q.jsonl", ROWS), limit=2)
    assert [question.id for question in load_questions(part)] == [1, 2]


@pytest.mark.parametrize(
    "row", ['{"question_id": 1', '{"question_id": 1, "category": "math"}']
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path, row):
    with pytest.raises(RecipeError, match=r"q\.jsonl:2: not"):
        load_questions(MtBench(questions=write(tmp_path / "q.jsonl", [ROWS[0], row])))


def test_a_missing_file_is_named_with_its_field(tmp_path):
    with pytest.raises(RecipeError, match="evaluate.mt_bench.questions: cannot read"):
        load_questions(MtBench(questions=str(tmp_path / "absent.jsonl")))


def test_the_real_questions_load_with_their_references(real_data):
    folder = real_data / "mt_bench"
    part = MtBench(
        questions=str(folder / "question.jsonl"),
        references=str(folder / "reference_answer/gpt-4.jsonl"),
    )
    questions = load_questions(part)
    assert len(questions) == 80
    assert sum(question.references is not None for question in questions) == 30


@pytest.fixture
def saved(tmp_path) -> Path:
    """A run directory with the files of two models."""
    questions = load_questions(MtBench(questions=write(tmp_path / "q.jsonl", ROWS)))
    answers = [
        Answer(questions[0], "sft", ("a", "b")),
        Answer(questions[0], "org/other", ("c", "d")),
    ]
    judgments = [
        Judgment(1, "writing", "sft", "tiny-judge", 1, 7.0, "[[7]]", "p"),
        Judgment(1, "writing", "sft", "tiny-judge", 2, None, "?"),
        Judgment(1, "writing", "sft", "org/judge", 1, 3.0, "[[3]]"),
    ]
    games = Game("sft", "[[A]]", "p"), Game(None, "?", "p")
    comparisons = [
        Comparison(1, "writing", ("sft", "org/other"), "tiny-judge", 2, games)
    ]
    save(Store(tmp_path), questions, answers, judgments, comparisons)
    return tmp_path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_and_grades_are_in_fastchats_formats(saved):
    answer = rows(saved / ANSWERS)[0]
    assert answer["choices"] == [{"index": 0, "turns": ["a", "b"]}]
    assert (answer["question_id"], answer["model_id"]) == (1, "sft")
    first, second, _ = rows(saved / JUDGMENTS)
    assert first["judge"] == ["tiny-judge", "single-v1"] and second["judge"] == [
        "tiny-judge",
        "single-v1-multi-turn",
    ]
    assert (first["turn"], first["score"], second["score"]) == (1, 7.0, None)
    assert {"user_prompt", "judgment", "model", "tstamp"} <= first.keys()


def test_comparisons_are_in_fastchats_format(saved):
    (found,) = rows(saved / COMPARISONS)
    assert (found["model_1"], found["model_2"]) == ("sft", "org/other")
    assert (found["g1_winner"], found["g2_winner"]) == ("model_1", "error")
    assert (
        found["judge"] == ["tiny-judge", "pair-v2-multi-turn"]
        and found["g1_judgment"] == "[[A]]"
    )


def test_fastchats_tools_find_a_file_of_each_judge_with_minus_one_where_there_is_no_grade(
    saved,
):
    """They take the mean of all that is in a file, but for -1."""
    folder = saved / "eval/mt_bench/model_judgment"
    assert sorted(path.name for path in folder.iterdir()) == [
        "org--judge_single.jsonl",
        "tiny-judge_pair.jsonl",
        "tiny-judge_single.jsonl",
    ]
    assert [row["score"] for row in rows(folder / "tiny-judge_single.jsonl")] == [
        7.0,
        -1,
    ]
    assert [row["score"] for row in rows(folder / "org--judge_single.jsonl")] == [3.0]


def test_questions_and_answers_can_be_read_again(saved):
    folder = saved / "eval/mt_bench"
    part = MtBench(
        questions=str(folder / "question.jsonl"),
        answers=(str(folder / "model_answer/*.jsonl"),),
    )
    assert load_questions(part) == load_questions(
        MtBench(questions=str(saved / "q.jsonl"))
    )
    assert load_answers(part) == {"sft": {1: ("a", "b")}, "org/other": {1: ("c", "d")}}


def test_grades_of_others_are_read_and_minus_one_is_none(tmp_path):
    row = {
        "question_id": 1,
        "model": "sft",
        "judge": ["gpt-4", "single-v1"],
        "turn": 1,
        "judgment": "x",
    }
    path = write(
        tmp_path / "gpt-4_single.jsonl",
        [row | {"score": 8}, row | {"turn": 2, "score": -1}],
    )
    found = list(load_grades(MtBench(questions="tiny", judgments=(path,))))
    assert [(grade["judge"], grade["turn"], grade["score"]) for grade in found] == [
        ("gpt-4", 1, 8),
        ("gpt-4", 2, None),
    ]


def test_comparisons_are_read_again_beside_grades(saved):
    folder = saved / "eval/mt_bench"
    part = MtBench(
        questions="tiny",
        judgments=(str(folder / "judgments.jsonl"), str(folder / "comparisons.jsonl")),
    )
    assert len(list(load_grades(part))) == 3
    assert list(load_verdicts(part)) == [
        {
            "question_id": 1,
            "turn": 2,
            "models": ("sft", "org/other"),
            "judge": "tiny-judge",
            "winners": ("sft", None),
        }
    ]


def votes(winners: list[str], judge="expert_{}", **fields) -> list[dict]:
    """Rows of lmsys/mt_bench_human_judgments."""
    row = {"question_id": 81, "model_a": "gpt-4", "model_b": "alpaca-13b", "turn": 1}
    return [
        row
        | {"winner": winner, "judge": judge.format(number), "conversation_a": []}
        | fields
        for number, winner in enumerate(winners)
    ]


def test_votes_of_people_are_counted_for_each_pair_of_answers(tmp_path):
    rows = votes(["model_a", "tie", "model_a"])
    # The same two models in the other order, at another turn.
    rows += votes(["model_a"], turn=2, model_a="alpaca-13b", model_b="gpt-4")
    rows += votes(["model_a", "model_b"], question_id=82)
    text = write(tmp_path / "human.jsonl", rows)
    table = tmp_path / "human.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    models = ("alpaca-13b", "gpt-4")
    for path in (text, str(table)):
        part = MtBench(questions="tiny", judgments=(path,))
        found = {
            (one["question_id"], one["turn"]): one["winners"]
            for one in load_verdicts(part)
            if one["models"] == models and one["judge"] == "people"
        }
        assert found == {
            (81, 1): ("gpt-4", "gpt-4"),
            (81, 2): ("alpaca-13b", "alpaca-13b"),
            (82, 1): ("tie", "tie"),
        }
        assert list(load_grades(part)) == []


def test_a_models_verdicts_in_the_form_of_votes_keep_its_name(tmp_path):
    rows = votes(["model_b", "tie (inconsistent)"])
    rows = [row | {"judge": ["gpt-4", "pair-v2"]} for row in rows]
    path = write(tmp_path / "gpt4.jsonl", rows)
    (found,) = load_verdicts(MtBench(questions="tiny", judgments=(path,)))
    assert found["judge"] == "gpt-4" and found["winners"] == ("tie", "tie")


def test_a_damaged_vote_or_table_is_named(tmp_path):
    path = write(tmp_path / "v.jsonl", [{"model_a": "x", "model_b": "y"}])
    with pytest.raises(RecipeError, match=r"v\.jsonl:1: not a comparison"):
        list(load_verdicts(MtBench(questions="tiny", judgments=(path,))))
    table = tmp_path / "v.parquet"
    table.write_text("no table")
    with pytest.raises(RecipeError, match=r"judgments: cannot read '.*v\.parquet'"):
        list(load_verdicts(MtBench(questions="tiny", judgments=(str(table),))))


def test_a_damaged_answer_or_grade_is_named_by_file_and_line(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"question_id": 1}])
    with pytest.raises(RecipeError, match=r"x\.jsonl:1: not an answer"):
        load_answers(MtBench(questions="tiny", answers=(path,)))
    with pytest.raises(RecipeError, match=r"x\.jsonl:1: not a single grade"):
        list(load_grades(MtBench(questions="tiny", judgments=(path,))))
    with pytest.raises(RecipeError, match=r"y\.jsonl:1: not a comparison"):
        verdicts = write(tmp_path / "y.jsonl", [{"g1_winner": "model_1"}])
        list(load_verdicts(MtBench(questions="tiny", judgments=(verdicts,))))
    with pytest.raises(RecipeError, match=r"evaluate\.mt_bench\.answers: no file"):
        load_answers(
            MtBench(questions="tiny", answers=(str(tmp_path / "absent*.jsonl"),))
        )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"turns": "Is it legal?"}, "expected a list of texts, found 'Is it legal"),
        ({"turns": []}, "turns is empty"),
        ({"turns": ["Is it legal?", 2]}, "expected a list of texts"),
        (
            {"turns": ["Is it legal?"], "reference": "Only on Sundays."},
            "expected a list of texts, found 'Only on Sundays",
        ),
    ],
)
def test_a_question_whose_turns_are_no_list_of_texts_is_named(tmp_path, row, said):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"question_id": 1, "category": "law"} | row))
    with pytest.raises(RecipeError, match=f"own.jsonl:1: not a question.*{said}"):
        load_questions(MtBench(questions=str(path)))


def test_a_question_id_that_stands_twice_is_named(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(
        "\n".join(
            [
                json.dumps(
                    {"question_id": 1, "category": "law", "turns": ["Is it legal?"]}
                )
            ]
            * 2
        )
    )
    with pytest.raises(RecipeError, match="own.jsonl:2: question_id 1 appears twice"):
        load_questions(MtBench(questions=str(path)))
