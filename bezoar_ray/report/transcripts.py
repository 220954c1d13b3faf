"""MT-Bench to read: each question with all models' answers side by side, and what the judges said of them."""

from collections import defaultdict
from typing import Any

import orjson

from bezoar_ray import layout
from bezoar_ray.report.page import environment
from bezoar_ray.report.plots import COLOURS
from bezoar_ray.store import Store

_FOLDER = layout.MT_BENCH


def write_conversations(store: Store) -> list[str]:
    """Write the page from FastChat's files in the run directory, where there are any; its name."""
    if not store.exists(f"{_FOLDER}/question.jsonl"):
        return []
    answers = {
        (row["question_id"], row["model_id"]): row["choices"][0]["turns"]
        for row in _rows(store, "answers")
    }
    page = (
        environment()
        .get_template("mt_bench.html")
        .render(
            questions=_rows(store, "question"),
            models=list(dict.fromkeys(model for _, model in answers)),
            answers=answers,
            grades=_grouped(_rows(store, "judgments"), "question_id", "model", "turn"),
            comparisons=_grouped(_rows(store, "comparisons"), "question_id", "turn"),
            colours=COLOURS,
        )
    )
    store.replace(layout.CONVERSATIONS, page)
    return [layout.CONVERSATIONS]


def _rows(store: Store, name: str) -> list[dict[str, Any]]:
    return [
        orjson.loads(line)
        for line in store.read(f"{_FOLDER}/{name}.jsonl").splitlines()
    ]


def _grouped(
    rows: list[dict[str, Any]], *keys: str
) -> dict[tuple[object, ...], list[dict[str, Any]]]:
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    return groups
