"""FastChat's files for MT-Bench: questions, references, answers and judgments."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import MtBench
from bezoar_ray.recipe.section import matches
from bezoar_ray.runtime.embedded_world import find_world

WITHOUT_REFERENCE = ("writing", "roleplay", "extraction", "stem", "humanities")
"""MT-Bench's categories whose judge sees no reference, even where a question has
one."""
IDS = range(81, 161)
"""Ids of MT-Bench's own questions."""
GUIDED = ("math", "reasoning", "coding")
"""MT-Bench's categories whose judge sees a reference."""
KNOWN = WITHOUT_REFERENCE + GUIDED
"""All of MT-Bench's categories."""

PEOPLE = "people"
"""The name of all people together, as a judge."""
_TIE = "tie"

Texts = tuple[str, ...]


class _Match(NamedTuple):
    """The answers of two models to one turn, and who compares them."""

    question_id: int | str
    turn: int
    models: tuple[str, str]
    judge: str


@dataclass(frozen=True)
class Question:
    """One conversation to hold with a model."""

    id: int | str
    category: str
    turns: Texts
    """What the user says in each turn."""
    references: Texts | None = None
    """Reference answer of each turn; None where the judge sees none."""


def load_questions(section: MtBench) -> list[Question]:
    """Load the questions, with references for the categories whose judge sees one.

    These are math, reasoning, coding, and all categories that MT-Bench does not have.

    Raises:
        RecipeError: a file cannot be read, or a row is malformed; the message names
            file and line.
    """
    questions_path, references_path = _paths(section)
    references = {}
    if references_path:
        references = _load_references(references_path)
    questions: dict[int | str, Question] = {}
    for where, row in read_rows(questions_path, "evaluate.mt_bench.questions"):
        question = _question(where, row, references)
        if question.id in questions:
            raise RecipeError(
                f"{where}: question_id {question.id!r} appears twice. Verdicts are "
                "stored by question, so give each one an id of its own"
            )
        questions[question.id] = question
    known_ids = {str(id) for id in questions}
    for id in section.references_skip:
        if str(id) not in known_ids:
            raise RecipeError(
                "evaluate.mt_bench.references_skip: "
                f"{str(questions_path)!r} has no question {id!r}"
            )
    return list(questions.values())[: section.limit]


def load_answers(section: MtBench) -> dict[str, dict[int | str, Texts]]:
    """Load the published answers of other models.

    Returns:
        The turns of each answer, by model and question id.

    Raises:
        RecipeError: as `load_questions` does.
    """
    answers: dict[str, dict[int | str, Texts]] = {}
    for where, row in _read_all(section.answers, "evaluate.mt_bench.answers"):
        try:
            model = row["model_id"]
            question_id = row["question_id"]
            turns = _texts(row["choices"][0]["turns"])
            answers.setdefault(model, {})[question_id] = turns
        except (KeyError, IndexError, TypeError) as error:
            raise RecipeError(
                f"{where}: not an answer (needs question_id, model_id, choices): "
                f"{error!r}"
            ) from error
    return answers


def load_grades(section: MtBench) -> Iterator[dict[str, Any]]:
    """Load single grades by other judges.

    Each row has model, question_id, turn, score and judge. A score below 1 (FastChat
    writes -1) means that the judge gave none; it becomes None.

    Raises:
        RecipeError: as `load_questions` does.
    """
    for where, row in _read_all(section.judgments, "evaluate.mt_bench.judgments"):
        if "g1_winner" in row or "model_a" in row:
            continue  # a comparison
        try:
            score = row["score"]
            if score is not None and score < 1:
                score = None
            fields = {name: row[name] for name in ("model", "question_id", "turn")}
            yield fields | {"score": score, "judge": row["judge"][0]}
        except (KeyError, IndexError, TypeError) as error:
            raise RecipeError(
                f"{where}: not a single grade (needs question_id, model, judge, turn, "
                f"score): {error!r}"
            ) from error


def load_verdicts(section: MtBench) -> Iterator[dict[str, Any]]:
    """Load comparisons of two models by other judges.

    Each row has question_id, turn, models, judge, and the winners of both games (the
    two orders of the answers): a model's name, "tie", or None where there is no
    verdict. Votes of people, as in lmsys/mt_bench_human_judgments, are counted for each
    pair of answers.

    Raises:
        RecipeError: as `load_questions` does.
    """
    votes: dict[_Match, Counter[str]] = {}
    for where, row in _read_all(section.judgments, "evaluate.mt_bench.judgments"):
        try:
            if "model_a" in row:
                match, winner = _vote(row)
                votes.setdefault(match, Counter())[winner] += 1
            elif "g1_winner" in row:  # Otherwise it is a single grade.
                yield _verdict(row)
        except (KeyError, IndexError, TypeError) as error:
            raise RecipeError(
                f"{where}: not a comparison (needs question_id, model_1, model_2, "
                f"judge, turn, g1_winner, g2_winner): {error!r}"
            ) from error
    for match, counts in votes.items():
        yield _count_votes(match, counts)


def _vote(row: dict[str, Any]) -> tuple[_Match, str]:
    """Return what a vote is on, and its winner."""
    first, second = row["model_a"], row["model_b"]
    winners = {"model_a": first, "model_b": second}
    # The data set also has "tie (inconsistent)", of a judge that contradicts itself.
    winner = winners.get(row["winner"], _TIE)
    # A person's name is a text such as expert_17, and a model's begins a list.
    judge = PEOPLE if isinstance(row["judge"], str) else row["judge"][0]
    models = (min(first, second), max(first, second))
    return _Match(row["question_id"], row["turn"], models, judge), winner


def _count_votes(match: _Match, counts: Counter[str]) -> dict[str, Any]:
    """Return the verdict with most votes, or a tie where several have as many."""
    most = max(counts.values())
    leaders = [winner for winner, count in counts.items() if count == most]
    winner = leaders[0] if len(leaders) == 1 else _TIE
    return match._asdict() | {"winners": (winner, winner)}


def _verdict(row: dict[str, Any]) -> dict[str, Any]:
    models = (row["model_1"], row["model_2"])
    winner_names = {
        "model_1": models[0],
        "model_2": models[1],
        _TIE: _TIE,
        "error": None,
    }
    first_winner = winner_names[row["g1_winner"]]
    second_winner = winner_names[row["g2_winner"]]
    return {
        "question_id": row["question_id"],
        "turn": row["turn"],
        "models": models,
        "judge": row["judge"][0],
        "winners": (first_winner, second_winner),
    }


def read_rows(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    """Read the rows of a .jsonl file.

    Args:
        path: the file.
        field: the recipe's field that names it, for errors.

    Yields:
        "file:line" and the row's value.

    Raises:
        RecipeError: the file cannot be read, or a line is not JSON.
    """
    try:
        # As bytes: a text would also be split at characters that
        # JSON may hold, as U+2028.
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise RecipeError(
            f"{field}: cannot read {str(path)!r}: {error.strerror}"
        ) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise RecipeError(f"{where}: not valid JSON: {error}") from error
        yield where, value


def _read_all(
    patterns: tuple[str, ...], field: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    for pattern in patterns:
        paths = matches(pattern)
        if not paths:
            raise RecipeError(
                f"{field}: no file {pattern!r} (looked from {Path.cwd()})"
            )
        for path in paths:
            if path.suffix == ".parquet":
                yield from _parquet_rows(path, field)
            else:
                yield from read_rows(path, field)


def _parquet_rows(path: Path, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RecipeError(f"{field}: cannot read {str(path)!r}: {error}") from error
    for number, row in enumerate(rows, 1):
        yield f"{path}:{number}", row


def _paths(section: MtBench) -> tuple[Path, Path | None]:
    """The files of the questions and of their reference answers."""
    references = Path(section.references) if section.references else None
    if section.questions != "tiny":
        return Path(section.questions), references
    world = find_world()
    return world.questions, references or world.references


def _question(
    where: str, row: dict[str, Any], references: dict[str, Texts]
) -> Question:
    """Convert a row to a question.

    References of the references file, by question id, take precedence over the row's
    own.
    """
    try:
        turns = _texts(row["turns"])
        category = row["category"]
        own_references = _texts(row.get("reference") or [])
        if not turns:
            raise TypeError("turns is empty")
        question_id = row["question_id"]
        # As text, since one file may write an id as a number and
        # another one as a string.
        answers = references.get(str(question_id), own_references)
        if category in WITHOUT_REFERENCE or not _covers(answers, turns):
            return Question(question_id, category, turns)
        return Question(question_id, category, turns, answers)
    except (KeyError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"{where}: not a question (needs question_id, category, turns): {error!r}"
        ) from error


def _covers(references: Texts, turns: Texts) -> bool:
    """Whether there is a reference that is not blank for every turn."""
    for_turns = references[: len(turns)]
    if len(for_turns) < len(turns):
        return False
    return all(text.strip() for text in for_turns)


def _texts(value: object) -> Texts:
    """Check that a value is a list of texts.

    Raises:
        TypeError: it is not. A single text would pass for a list of its letters.
    """
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return tuple(value)
    raise TypeError(f"expected a list of texts, found {value!r:.60}")


def _load_references(path: Path) -> dict[str, Texts]:
    """Load the reference answers by question id, as text."""
    references = {}
    for where, row in read_rows(path, "evaluate.mt_bench.references"):
        try:
            turns = _texts(row["choices"][0]["turns"])
            references[str(row["question_id"])] = turns
        except (KeyError, IndexError, TypeError) as error:
            raise RecipeError(
                f"{where}: not a reference answer (needs question_id, choices): "
                f"{error!r}"
            ) from error
    return references
