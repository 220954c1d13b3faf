"""Answers and judgments in FastChat's formats, so that its tools can read them.

The four files of a run are:

- `question.jsonl`: the questions.
- `answers.jsonl`: all answers.
- `judgments.jsonl`: all grades.
- `comparisons.jsonl`: all pairwise comparisons.

FastChat's tools expect one file for each model or judge, so these are written, too:
`model_answer/<model>.jsonl` and `model_judgment/<judge>_{single,pair}.jsonl`.
"""

import time
from collections.abc import Callable
from typing import Any

import orjson

from bezoar_ray import layout
from bezoar_ray.data.schema import row_id
from bezoar_ray.evaluate.mt_bench.answers import Answer
from bezoar_ray.evaluate.mt_bench.judge_prompts import kind
from bezoar_ray.evaluate.mt_bench.judging import Judgment
from bezoar_ray.evaluate.mt_bench.pairwise import Comparison, Game
from bezoar_ray.sources.mt_bench_files import Question
from bezoar_ray.store import Store

Row = dict[str, Any]

_FOLDER = layout.MT_BENCH
QUESTIONS = f"{_FOLDER}/question.jsonl"
ANSWERS = f"{_FOLDER}/answers.jsonl"
JUDGMENTS = f"{_FOLDER}/judgments.jsonl"
COMPARISONS = f"{_FOLDER}/comparisons.jsonl"


def save(
    store: Store,
    questions: list[Question],
    answers: list[Answer],
    judgments: list[Judgment],
    comparisons: list[Comparison],
) -> list[str]:
    """Write all files, each as a whole, and return their names."""
    answer_rows = [_answer_row(answer) for answer in answers]
    judgment_rows = [_judgment_row(judgment) for judgment in judgments]
    comparison_rows = [_comparison_row(comparison) for comparison in comparisons]
    files = {
        QUESTIONS: [_question_row(question) for question in questions],
        ANSWERS: answer_rows,
        JUDGMENTS: judgment_rows,
        COMPARISONS: comparison_rows,
    }
    # A model or judge may have left the recipe since the last time.
    store.remove(f"{_FOLDER}/model_answer")
    store.remove(f"{_FOLDER}/model_judgment")
    files |= _split("model_answer/{}.jsonl", answer_rows, _model_of)
    fastchat_grades = [_with_fastchat_score(row) for row in judgment_rows]
    files |= _split("model_judgment/{}_single.jsonl", fastchat_grades, _judge_of)
    files |= _split("model_judgment/{}_pair.jsonl", comparison_rows, _judge_of)
    for name, rows in files.items():
        lines = [orjson.dumps(row) + b"\n" for row in rows]
        store.replace(name, b"".join(lines))
    return list(files)


def _split(
    pattern: str, rows: list[Row], key: Callable[[Row], str]
) -> dict[str, list[Row]]:
    """Sort rows into one file for each model or judge."""
    files: dict[str, list[Row]] = {}
    for row in rows:
        file_stem = key(row).replace("/", "--")
        name = f"{_FOLDER}/{pattern.format(file_stem)}"
        files.setdefault(name, []).append(row)
    return files


def _model_of(row: Row) -> str:
    model: str = row["model_id"]
    return model


def _judge_of(row: Row) -> str:
    judge: str = row["judge"][0]
    return judge


def _with_fastchat_score(row: Row) -> Row:
    """Replace a missing score by FastChat's -1.

    Our own file has null there, which no mean can take for a score.
    """
    score = -1 if row["score"] is None else row["score"]
    return row | {"score": score}


def _question_row(question: Question) -> Row:
    row: Row = {
        "question_id": question.id,
        "category": question.category,
        "turns": list(question.turns),
    }
    if question.references:
        row["reference"] = list(question.references)
    return row


def _answer_row(answer: Answer) -> Row:
    return {
        "question_id": answer.question.id,
        "answer_id": row_id("mt_bench", answer.model, answer.question.id),
        "model_id": answer.model,
        "choices": [{"index": 0, "turns": list(answer.turns)}],
        "tstamp": time.time(),
    }


def _judgment_row(judgment: Judgment) -> Row:
    prompt_name = kind("single", judgment.with_reference, judgment.turn)
    return {
        "question_id": judgment.question_id,
        "model": judgment.model,
        "judge": [judgment.judge, prompt_name],
        "user_prompt": judgment.user_prompt,
        "judgment": judgment.text,
        "score": judgment.score,
        "turn": judgment.turn,
        "tstamp": time.time(),
    }


def _comparison_row(comparison: Comparison) -> Row:
    prompt_name = kind("pair", comparison.with_reference, comparison.turn)
    first_game, second_game = comparison.games
    return {
        "question_id": comparison.question_id,
        "model_1": comparison.models[0],
        "model_2": comparison.models[1],
        "judge": [comparison.judge, prompt_name],
        **_game_fields("g1", first_game, comparison),
        **_game_fields("g2", second_game, comparison),
        "turn": comparison.turn,
        "tstamp": time.time(),
    }


def _game_fields(prefix: str, game: Game, comparison: Comparison) -> Row:
    first, second = comparison.models
    winners: dict[str | None, str] = {
        first: "model_1",
        second: "model_2",
        None: "error",
    }
    return {
        f"{prefix}_winner": winners.get(game.winner, game.winner),  # or "tie"
        f"{prefix}_user_prompt": game.user_prompt,
        f"{prefix}_judgment": game.text,
    }
