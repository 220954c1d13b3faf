"""Decisions as files: our own lines, and files of Label Studio and Argilla.

Neither tool is needed here. Rows go to them without the judge's verdict, and with the
decisions that exist already as predictions (Label Studio) or suggestions (Argilla).
Formats: labelstud.io/guide/task_format, and `Record.to_dict` of Argilla 2.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from bezoar_ray.data.decision import (
    Decision,
    encode_decision,
    latest,
    now,
    parse_decision,
    read_decision_files,
    read_own_decisions,
)
from bezoar_ray.data.sample_io import iter_samples
from bezoar_ray.data.schema import Sample
from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import Recipe
from bezoar_ray.review.decisions import DecisionLog
from bezoar_ray.review.queue import judge_fingerprint, rubric_fingerprint
from bezoar_ray.review.sample import STATUSES, draw_rows, iter_reviewable
from bezoar_ray.store import Store, at

TEXTS = ("instruction", "input", "response")
_EDIT = "{}_edit"
"""The field of a new text in both tools."""

Row = dict[str, Any]


def export_decisions(
    store: Store, recipe: Recipe, file: str, kind: str, count: int
) -> int:
    """Write the decisions that count, or rows to decide on, to a file.

    Args:
        store: the run directory.
        recipe: its recipe.
        file: path or URL of the file, which is replaced.
        kind: `jsonl` for decisions alone, or one of `TOOLS` for rows.
        count: how many rows to draw for a tool.

    Returns:
        The number of decisions or rows in the file.
    """
    decisions = list(latest(read_own_decisions(store)).values())
    if kind == "jsonl":
        data = b"".join(map(encode_decision, decisions))
        entries = len(decisions)
    else:
        samples = draw_rows(
            iter_reviewable(store, recipe),
            recipe.seed,
            recipe.filter.accept_rating,
            count,
        )
        write, _ = TOOLS[kind]
        rows = [
            write(sample, recipe, [one for one in decisions if one.id == sample.id])
            for sample in samples
        ]
        data = orjson.dumps(rows, option=orjson.OPT_INDENT_2)
        entries = len(rows)
    target, name = at(Path(file).absolute() if "://" not in file else file)
    target.replace(name, data)
    return entries


def import_decisions(
    store: Store, recipe: Recipe, file: str, kind: str
) -> tuple[int, int]:
    """Add the decisions in a file to those of a run directory.

    A decision that the reviewer has made here already is not added again. So a file can
    be imported twice.

    Args:
        store: the run directory.
        recipe: its recipe.
        file: path or glob.
        kind: of the file, as in `export_decisions`.

    Returns:
        How many decisions were added, and how many are on rows that the run lacks.

    Raises:
        RecipeError: The file cannot be read, or holds something else.
    """
    effective = latest(_read_file(file, kind))
    schemes = _schemes_of({id for id, _ in effective}, store, recipe)
    present = latest(read_own_decisions(store))
    added = []
    for key, decision in effective.items():
        is_known = decision.id in schemes
        if is_known and not _is_same(decision, present.get(key)):
            added.append(_completed(decision, schemes[decision.id], recipe))
    DecisionLog(store).append(*added)
    return len(added), sum(id not in schemes for id, _ in effective)


def _is_same(decision: Decision, other: Decision | None) -> bool:
    if other is None:
        return False
    return (decision.decision, decision.reason, decision.edits) == (
        other.decision,
        other.reason,
        other.edits,
    )


def _completed(decision: Decision, scheme: str, recipe: Recipe) -> Decision:
    """Return a decision with the fingerprints that a tool does not know."""
    rubric = rubric_fingerprint(recipe.filter.rubric(scheme))
    return replace(
        decision,
        scheme=scheme,
        rubric=decision.rubric or rubric,
        judge=decision.judge or judge_fingerprint(recipe),
    )


def _schemes_of(ids: set[str], store: Store, recipe: Recipe) -> dict[str, str]:
    """Return the schemes of those of the rows that the run has, by row id."""
    schemes = {}
    for scheme in recipe.schemes:
        for status in STATUSES:
            for sample in iter_samples(store, scheme, status):
                if sample.id in ids:
                    schemes[sample.id] = scheme
    return schemes


def _read_file(file: str, kind: str) -> Iterator[Decision]:
    if kind == "jsonl":
        yield from read_decision_files(file, "--import")
        return
    _, read = TOOLS[kind]
    try:
        entries = orjson.loads(Path(file).read_bytes())
    except OSError as error:
        raise RecipeError(
            f"--import: cannot read {file!r}: {error.strerror}"
        ) from error
    except orjson.JSONDecodeError as error:
        raise RecipeError(f"--import: {file} is not valid JSON: {error}") from error
    if not isinstance(entries, list):
        raise RecipeError(f"--import: {file} is not a list, as {kind} exports it")
    for number, entry in enumerate(entries, 1):
        where = f"--import: {file}, entry {number}"
        try:
            rows = list(read(entry))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise RecipeError(
                f"{where}: not as {kind} exports it: {error!r}"
            ) from error
        for row in rows:
            yield parse_decision(row, where)


def _texts(sample: Sample, recipe: Recipe) -> Row:
    """Return what a reviewer sees of a row: nothing that tells the judge's verdict."""
    return {
        "system": sample.system,
        "instruction": sample.instruction,
        "input": sample.input,
        "response": sample.response,
        "rubric": recipe.filter.rubric(sample.scheme),
    }


def _answers(decision: Decision) -> dict[str, str]:
    """Return a decision as answers to questions, without empty ones."""
    answers = {"decision": decision.decision, "reason": decision.reason}
    for name, text in decision.edits.items():
        answers[_EDIT.format(name)] = text
    return {name: text for name, text in answers.items() if text}


def _decision_row(
    id: str, reviewer: str, answers: dict[str, str], time: str | None
) -> Row:
    """Return the fields of a decision from answers to questions."""
    edits = {name: answers.get(_EDIT.format(name)) or None for name in TEXTS}
    is_edit = answers["decision"] == "accept"
    return {
        "id": id,
        "scheme": "",
        "decision": answers["decision"],
        "reviewer": reviewer,
        "time": time or now(),
        "reason": answers.get("reason", ""),
        **(edits if is_edit else {}),
    }


def _label_studio_task(
    sample: Sample, recipe: Recipe, decisions: Iterable[Decision]
) -> Row:
    data = {"id": sample.id, "scheme": sample.scheme} | _texts(sample, recipe)
    predictions = []
    for decision in decisions:
        results = [
            _label_studio_result(name, text)
            for name, text in _answers(decision).items()
        ]
        predictions.append({"model_version": decision.reviewer, "result": results})
    return {"data": data, "predictions": predictions}


def _label_studio_result(name: str, text: str) -> Row:
    kind, field = ("choices", "choices") if name == "decision" else ("textarea", "text")
    return {
        "from_name": name,
        "to_name": "response",
        "type": kind,
        "value": {field: [text]},
    }


def _label_studio_decisions(task: Row) -> Iterator[Row]:
    for annotation in task["annotations"]:
        answers = {}
        for result in annotation["result"]:
            values = result["value"].get("choices") or result["value"].get("text")
            answers[result["from_name"]] = "\n".join(values or [])
        if annotation.get("was_cancelled"):
            answers = {"decision": "skip"}
        person = annotation["completed_by"]
        if isinstance(person, dict):
            person = person.get("email") or person["id"]
        time = annotation.get("updated_at") or annotation.get("created_at")
        row = _decision_row(task["data"]["id"], str(person), answers, time)
        yield row | {"seconds": annotation.get("lead_time") or 0.0}


def _argilla_record(
    sample: Sample, recipe: Recipe, decisions: Iterable[Decision]
) -> Row:
    suggestions: Row = {}
    # Argilla has one suggestion for a question: the last decision's.
    for decision in decisions:
        suggestions = {
            name: {"value": text, "score": None, "agent": decision.reviewer}
            for name, text in _answers(decision).items()
        }
    return {
        "id": sample.id,
        "fields": _texts(sample, recipe),
        "metadata": {"scheme": sample.scheme},
        "suggestions": suggestions,
        "responses": {},
        "vectors": {},
    }


def _argilla_decisions(record: Row) -> Iterator[Row]:
    by_user: dict[str, dict[str, str]] = {}
    for question, responses in record["responses"].items():
        for response in responses:
            answers = by_user.setdefault(str(response["user_id"]), {})
            answers[question] = response["value"] or ""
    for user, answers in by_user.items():
        # Somebody who has answered other questions only has not decided yet.
        if answers.get("decision"):
            yield _decision_row(record["id"], user, answers, None)


TOOLS: dict[
    str,
    tuple[
        Callable[[Sample, Recipe, Iterable[Decision]], Row],
        Callable[[Row], Iterator[Row]],
    ],
] = {
    "label-studio": (_label_studio_task, _label_studio_decisions),
    "argilla": (_argilla_record, _argilla_decisions),
}
"""For each tool: how a row is written for it, and how its decisions are read."""
