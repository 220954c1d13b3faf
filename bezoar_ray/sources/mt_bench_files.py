"""MT-Bench's questions, reference answers, and what others have answered and judged, in FastChat's files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import MtBench
from bezoar_ray.recipe.section import matches

WITHOUT_REFERENCE = ("writing", "roleplay", "extraction", "stem", "humanities")
"""MT-Bench's categories whose judge sees no reference, also where a question brings one."""
IDS = range(81, 161)
"""MT-Bench's own questions."""
GUIDED = ("math", "reasoning", "coding")
"""Those whose judge sees one."""
KNOWN = WITHOUT_REFERENCE + GUIDED
"""All of MT-Bench's categories."""


@dataclass(frozen=True)
class Question:
    """One conversation to hold: what the user says in each turn, and the reference answers where there are any."""

    id: int | str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...] | None = None


def load_questions(part: MtBench) -> list[Question]:
    """The questions, with references for math, reasoning, coding and categories that MT-Bench does not know.

    Raises:
        RecipeError: a file that cannot be read, or a row that is no question; the message names file and line.
    """
    questions, references = _files(part)
    answers = (
        {str(id): turns for id, turns in _references(references)} if references else {}
    )
    found: dict[int | str, Question] = {}
    for where, row in read_rows(questions, "evaluate.mt_bench.questions"):
        question = _question(where, row, answers)
        if question.id in found:
            raise RecipeError(
                f"{where}: question_id {question.id!r} stands twice; verdicts are kept by it"
            )
        found[question.id] = question
    known = set(map(str, found))
    if unknown := next(
        (id for id in part.references_skip if str(id) not in known), None
    ):
        raise RecipeError(
            f"evaluate.mt_bench.references_skip: {str(questions)!r} has no question {unknown!r}"
        )
    return list(found.values())[: part.limit]


def load_answers(part: MtBench) -> dict[str, dict[int | str, tuple[str, ...]]]:
    """The turns of further models by model and question. Raises as `load_questions` does."""
    found: dict[str, dict[int | str, tuple[str, ...]]] = {}
    for where, row in _all_rows(part.answers, "evaluate.mt_bench.answers"):
        try:
            found.setdefault(row["model_id"], {})[row["question_id"]] = _texts(
                row["choices"][0]["turns"]
            )
        except (KeyError, IndexError, TypeError) as error:
            raise RecipeError(
                f"{where}: not an answer (needs question_id, model_id, choices): {error!r}"
            ) from error
    return found


def load_grades(part: MtBench) -> Iterator[dict[str, Any]]:
    """Single grades by other judges: rows with model, question_id, turn, score and judge; -1 is no score."""
    for where, row in _all_rows(part.judgments, "evaluate.mt_bench.judgments"):
        if "g1_winner" in row:
            continue
        try:
            score = (
                row["score"] if row["score"] is not None and row["score"] >= 1 else None
            )
            fields = {name: row[name] for name in ("model", "question_id", "turn")}
            yield fields | {"score": score, "judge": row["judge"][0]}
        except (KeyError, IndexError, TypeError) as error:
            raise RecipeError(
                f"{where}: not a single grade (needs question_id, model, judge, turn, score): {error!r}"
            ) from error


def load_verdicts(part: MtBench) -> Iterator[dict[str, Any]]:
    """Comparisons by other judges: rows with models, question_id, turn, judge and the winners of both games, by name;
    None is no verdict."""
    for where, row in _all_rows(part.judgments, "evaluate.mt_bench.judgments"):
        if "g1_winner" not in row:
            continue
        try:
            models = row["model_1"], row["model_2"]
            names = {
                "model_1": models[0],
                "model_2": models[1],
                "tie": "tie",
                "error": None,
            }
            winners = tuple(names[row[game]] for game in ("g1_winner", "g2_winner"))
            fields = {name: row[name] for name in ("question_id", "turn")}
            yield fields | {
                "models": models,
                "judge": row["judge"][0],
                "winners": winners,
            }
        except (KeyError, IndexError, TypeError) as error:
            raise RecipeError(
                f"{where}: not a comparison (needs question_id, model_1, model_2, judge, turn, g1_winner, g2_winner): "
                f"{error!r}"
            ) from error


def read_rows(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    """The rows of a .jsonl file, each with the place that it stands at; `field` of the recipe names the file.

    Raises:
        RecipeError: the file cannot be read, or a line is no JSON.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise RecipeError(
            f"{field}: cannot read {str(path)!r}: {error.strerror}"
        ) from error
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if line.strip():
            try:
                yield where, orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise RecipeError(f"{where}: not valid JSON: {error}") from error


def _all_rows(
    patterns: tuple[str, ...], field: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    for pattern in patterns:
        paths = matches(pattern)
        if not paths:
            raise RecipeError(
                f"{field}: no file {pattern!r} (looked from {Path.cwd()})"
            )
        for path in paths:
            yield from read_rows(path, field)


def _files(part: MtBench) -> tuple[Path, Path | None]:
    if part.questions != "tiny":
        return Path(part.questions), Path(part.references) if part.references else None
    from bezoar_ray.tiny import world

    return world().questions, Path(
        part.references
    ) if part.references else world().references


def _question(
    where: str, row: dict[str, Any], answers: dict[str, tuple[str, ...]]
) -> Question:
    try:
        turns, category = _texts(row["turns"]), row["category"]
        own = _texts(row.get("reference") or []) or None
        if not turns:
            raise TypeError("turns is empty")
        references = (
            None
            if category in WITHOUT_REFERENCE
            else answers.get(str(row["question_id"]), own)
        )
        said = references and [
            text for text in references[: len(turns)] if text.strip()
        ]
        complete = references if said and len(said) == len(turns) else None
        return Question(row["question_id"], category, turns, complete)
    except (KeyError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"{where}: not a question (needs question_id, category, turns): {error!r}"
        ) from error


def _texts(found: object) -> tuple[str, ...]:
    """Raises TypeError where it is no list of texts; a text alone would pass for a list of its letters."""
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise TypeError(f"a list of texts is wanted, not {found!r:.60}")
    return tuple(found)


def _references(path: Path) -> Iterator[tuple[int | str, tuple[str, ...]]]:
    for where, row in read_rows(path, "evaluate.mt_bench.references"):
        try:
            yield row["question_id"], _texts(row["choices"][0]["turns"])
        except (KeyError, IndexError, TypeError) as error:
            raise RecipeError(
                f"{where}: not a reference answer (needs question_id, choices): {error!r}"
            ) from error
