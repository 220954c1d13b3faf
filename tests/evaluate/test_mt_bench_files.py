"""MT-Bench's files: FastChat's questions and references in, FastChat's answers and judgments out."""

import json

import pytest

from bezoar_ray.errors import RecipeError
from bezoar_ray.evaluate.mt_bench.files import ANSWERS, JUDGMENTS, save
from bezoar_ray.evaluate.mt_bench.judging import Judgment
from bezoar_ray.evaluate.mt_bench.loop import Answer
from bezoar_ray.recipe import MtBench
from bezoar_ray.sources.mt_bench import load_questions
from bezoar_ray.store import Store

ROWS = [
    {"question_id": 1, "category": "writing", "turns": ["Write.", "Again."], "reference": ["never", "shown"]},
    {"question_id": 2, "category": "math", "turns": ["2+2?", "Doubled?"]},
    {"question_id": 3, "category": "coding", "turns": ["Sort.", "Faster."], "reference": ["own 1", "own 2"]},
]
REFERENCES = [{"question_id": 2, "model_id": "gpt-4", "choices": [{"index": 0, "turns": ["4", "8"]}], "tstamp": 1.0}]


def write(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def test_references_come_from_the_file_or_the_question_and_only_where_judging_uses_them(tmp_path):
    part = MtBench(questions=write(tmp_path / "q.jsonl", ROWS), references=write(tmp_path / "r.jsonl", REFERENCES))
    assert [question.references for question in load_questions(part)] == [None, ("4", "8"), ("own 1", "own 2")]


def test_limit_keeps_the_first_questions(tmp_path):
    part = MtBench(questions=write(tmp_path / "q.jsonl", ROWS), limit=2)
    assert [question.id for question in load_questions(part)] == [1, 2]


@pytest.mark.parametrize("row", ['{"question_id": 1', '{"question_id": 1, "category": "math"}'])
def test_a_malformed_row_is_named_by_file_and_line(tmp_path, row):
    with pytest.raises(RecipeError, match=r"q\.jsonl:2: not"):
        load_questions(MtBench(questions=write(tmp_path / "q.jsonl", [ROWS[0], row])))


def test_a_missing_file_is_named_with_its_field(tmp_path):
    with pytest.raises(RecipeError, match="evaluate.mt_bench.questions: cannot read"):
        load_questions(MtBench(questions=str(tmp_path / "absent.jsonl")))


def test_the_real_questions_load_with_their_references(real_data):
    folder = real_data / "mt_bench"
    part = MtBench(questions=str(folder / "question.jsonl"), references=str(folder / "reference_answer/gpt-4.jsonl"))
    questions = load_questions(part)
    assert len(questions) == 80
    assert sum(question.references is not None for question in questions) == 30


def test_answers_and_judgments_are_in_fastchats_formats(tmp_path):
    question = load_questions(MtBench(questions=write(tmp_path / "q.jsonl", ROWS)))[0]
    judgments = [Judgment(1, "writing", "sft", 1, 7.0, "[[7]]", "p"), Judgment(1, "writing", "sft", 2, None, "?")]
    save(Store(tmp_path), [Answer(question, "sft", ("a", "b"))], judgments, "tiny-judge")
    (answer,) = map(json.loads, (tmp_path / ANSWERS).read_text().splitlines())
    assert answer["choices"] == [{"index": 0, "turns": ["a", "b"]}]
    assert (answer["question_id"], answer["model_id"]) == (1, "sft")
    first, second = map(json.loads, (tmp_path / JUDGMENTS).read_text().splitlines())
    assert first["judge"] == ["tiny-judge", "single"] and second["judge"] == ["tiny-judge", "single-multi-turn"]
    assert (first["turn"], first["score"], second["score"]) == (1, 7.0, None)
    assert {"user_prompt", "judgment", "model", "tstamp"} <= first.keys()
