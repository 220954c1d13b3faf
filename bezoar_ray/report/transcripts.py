"""A page of MT-Bench's conversations: all models' answers, with the judges' verdicts."""

from collections import defaultdict
from typing import Any

import orjson

from bezoar_ray import layout
from bezoar_ray.evaluate.mt_bench.fastchat_files import (
    ANSWERS,
    COMPARISONS,
    JUDGMENTS,
    QUESTIONS,
)
from bezoar_ray.report.page import environment
from bezoar_ray.report.plots import COLORS
from bezoar_ray.store import Store


def write_conversations(store: Store) -> list[str]:
    """Write the page from FastChat's files in the run directory.

    Returns:
        The name of the page, or nothing if there are no such files.
    """
    if not store.exists(QUESTIONS):
        return []
    answers = {}
    for row in _rows(store, ANSWERS):
        turns = row["choices"][0]["turns"]
        answers[row["question_id"], row["model_id"]] = turns
    models = dict.fromkeys(model for _, model in answers)
    grades = _group(_rows(store, JUDGMENTS), "question_id", "model", "turn")
    comparisons = _group(_rows(store, COMPARISONS), "question_id", "turn")
    template = environment().get_template("mt_bench.html")
    page = template.render(
        questions=_rows(store, QUESTIONS),
        models=list(models),
        answers=answers,
        grades=grades,
        comparisons=comparisons,
        colors=COLORS,
    )
    store.replace(layout.CONVERSATIONS, page)
    return [layout.CONVERSATIONS]


def _rows(store: Store, name: str) -> list[dict[str, Any]]:
    lines = store.read(name).splitlines()
    return [orjson.loads(line) for line in lines]


def _group(
    rows: list[dict[str, Any]], *keys: str
) -> dict[tuple[object, ...], list[dict[str, Any]]]:
    groups = defaultdict(list)
    for row in rows:
        values = tuple(row[key] for key in keys)
        groups[values].append(row)
    return groups
