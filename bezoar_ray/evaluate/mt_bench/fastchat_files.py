"""Answers and judgments in FastChat's formats, so that its tools read them.

`answers.jsonl` holds all answers, `judgments.jsonl` single grades, `comparisons.jsonl` pairs, `question.jsonl` the
questions that all of them belong to. FastChat wants a file for each: `model_answer/<model>.jsonl`,
`model_judgment/<judge>_{single,pair}.jsonl`.
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
QUESTIONS, ANSWERS, JUDGMENTS, COMPARISONS = (
    f"{_FOLDER}/{name}.jsonl"
    for name in ("question", "answers", "judgments", "comparisons")
)


def save(
    store: Store,
    questions: list[Question],
    answers: list[Answer],
    judgments: list[Judgment],
    comparisons: list[Comparison],
) -> list[str]:
    """Write all files whole; returns their names."""
    files = {
        QUESTIONS: list(map(_question_row, questions)),
        ANSWERS: list(map(_answer_row, answers)),
        JUDGMENTS: list(map(_judgment_row, judgments)),
        COMPARISONS: list(map(_comparison_row, comparisons)),
    }
    store.remove(f"{_FOLDER}/model_answer")
    store.remove(f"{_FOLDER}/model_judgment")
    files |= _apart(
        "model_answer/{}.jsonl", files[ANSWERS], lambda row: row["model_id"]
    )
    grades = [
        row | {"score": -1 if row["score"] is None else row["score"]}
        for row in files[JUDGMENTS]
    ]
    files |= _apart(
        "model_judgment/{}_single.jsonl", grades, lambda row: row["judge"][0]
    )
    files |= _apart(
        "model_judgment/{}_pair.jsonl", files[COMPARISONS], lambda row: row["judge"][0]
    )
    for name, found in files.items():
        store.replace(name, b"".join(orjson.dumps(row) + b"\n" for row in found))
    return list(files)


def _apart(
    name: str, rows: list[Row], whose: Callable[[Row], str]
) -> dict[str, list[Row]]:
    """A file for each model or judge."""
    files: dict[str, list[Row]] = {}
    for row in rows:
        files.setdefault(
            f"{_FOLDER}/{name.format(whose(row).replace('/', '--'))}", []
        ).append(row)
    return files


def _question_row(question: Question) -> dict[str, object]:
    references = {"reference": list(question.references)} if question.references else {}
    return {
        "question_id": question.id,
        "category": question.category,
        "turns": list(question.turns),
        **references,
    }


def _answer_row(answer: Answer) -> dict[str, object]:
    return {
        "question_id": answer.question.id,
        "answer_id": row_id("mt_bench", answer.model, answer.question.id),
        "model_id": answer.model,
        "choices": [{"index": 0, "turns": list(answer.turns)}],
        "tstamp": time.time(),
    }


def _judgment_row(judgment: Judgment) -> dict[str, object]:
    """FastChat's files have -1 for a reply without a grade; here it is null, which no mean takes for a number."""
    return {
        "question_id": judgment.question_id,
        "model": judgment.model,
        "judge": [
            judgment.judge,
            kind("single", judgment.with_reference, judgment.turn),
        ],
        "user_prompt": judgment.user_prompt,
        "judgment": judgment.text,
        "score": judgment.score,
        "turn": judgment.turn,
        "tstamp": time.time(),
    }


def _comparison_row(comparison: Comparison) -> dict[str, object]:
    games = zip(("g1", "g2"), comparison.games, strict=True)
    return {
        "question_id": comparison.question_id,
        "model_1": comparison.models[0],
        "model_2": comparison.models[1],
        "judge": [
            comparison.judge,
            kind("pair", comparison.with_reference, comparison.turn),
        ],
        **{
            key: value
            for game, found in games
            for key, value in _game_fields(game, found, comparison).items()
        },
        "turn": comparison.turn,
        "tstamp": time.time(),
    }


def _game_fields(name: str, game: Game, comparison: Comparison) -> dict[str, object]:
    winners = dict(zip(comparison.models, ("model_1", "model_2"), strict=True)) | {
        None: "error"
    }
    return {
        f"{name}_winner": winners.get(game.winner, game.winner),
        f"{name}_user_prompt": game.user_prompt,
        f"{name}_judgment": game.text,
    }
