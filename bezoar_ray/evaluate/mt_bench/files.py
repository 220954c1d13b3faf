"""Answers and judgments in FastChat's formats, so that its tools read them."""

import time
from typing import Any

import orjson

from bezoar_ray.evaluate.mt_bench.judging import Judgment
from bezoar_ray.evaluate.mt_bench.loop import Answer
from bezoar_ray.rows import row_id
from bezoar_ray.store import Store

ANSWERS = "eval/mt_bench/answers.jsonl"
JUDGMENTS = "eval/mt_bench/judgments.jsonl"


def save(store: Store, answers: list[Answer], judgments: list[Judgment], judge: str) -> list[str]:
    """Write both files whole; returns their names."""
    store.replace(ANSWERS, _lines([_answer_row(answer) for answer in answers]))
    store.replace(JUDGMENTS, _lines([_judgment_row(judgment, judge) for judgment in judgments]))
    return [ANSWERS, JUDGMENTS]


def _answer_row(answer: Answer) -> dict[str, Any]:
    return {
        "question_id": answer.question.id,
        "answer_id": row_id("mt_bench", answer.model, answer.question.id),
        "model_id": answer.model,
        "choices": [{"index": 0, "turns": list(answer.turns)}],
        "tstamp": time.time(),
    }


def _judgment_row(judgment: Judgment, judge: str) -> dict[str, Any]:
    """FastChat writes -1 for a reply without a grade; here it is null, which no mean takes for a number."""
    kind = ("single-math" if judgment.with_reference else "single") + ("-multi-turn" if judgment.turn > 1 else "")
    return {
        "question_id": judgment.question_id,
        "model": judgment.model,
        "judge": [judge, kind],
        "user_prompt": judgment.user_prompt,
        "judgment": judgment.text,
        "score": judgment.score,
        "turn": judgment.turn,
        "tstamp": time.time(),
    }


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)
