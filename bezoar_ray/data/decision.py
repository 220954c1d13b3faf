"""People's decisions on rows, as lines of JSON.

A decision is never changed. A later line of the same reviewer on the same row takes its
place, also where it is in the file of another session.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Literal

import orjson
from pydantic import TypeAdapter, ValidationError

from bezoar_ray import layout
from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe.section import matches
from bezoar_ray.store import Store

Action = Literal["accept", "reject", "skip", "undo"]
"""`undo` withdraws the reviewer's earlier decision on the row."""


@dataclass(frozen=True)
class Decision:
    """What one reviewer decided on one row."""

    id: str
    """Id of the row."""
    scheme: str
    decision: Action
    reviewer: str
    time: str
    """ISO 8601, in UTC with microseconds, so that texts sort by time."""
    reason: str = ""
    """Why the row is rejected."""
    instruction: str | None = None
    """The new text, in an accepted row that the reviewer edited. Null where the text
    stays as it is."""
    input: str | None = None
    response: str | None = None
    seconds: float = 0.0
    """How long the row was shown before the decision."""
    rubric: str = ""
    """Fingerprint of the rubric that the reviewer saw."""
    judge: str = ""
    """Fingerprint of the judges whose verdicts the row had."""

    @property
    def edits(self) -> dict[str, str]:
        """The new texts of the row, by column."""
        texts = {
            "instruction": self.instruction,
            "input": self.input,
            "response": self.response,
        }
        return {name: text for name, text in texts.items() if text is not None}

    @property
    def approves(self) -> bool:
        """Whether the row is good as it was generated.

        A row that had to be edited was not.
        """
        return self.decision == "accept" and not self.edits


def now() -> str:
    """The time of a decision that is made now."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def encode_decision(decision: Decision) -> bytes:
    """Return a decision as one line of JSON, with the line break."""
    return orjson.dumps(asdict(decision)) + b"\n"


def decode_decisions(data: bytes, origin: str) -> Iterator[Decision]:
    """Yield the decisions in a file's bytes.

    A last line without its end was torn by a crash, and is left out.

    Args:
        data: the bytes of the file.
        origin: name of the file, for errors.

    Raises:
        RecipeError: a line is not a decision.
    """
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        where = f"{origin}:{number}"
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if not line.strip() or not line.endswith(b"\n"):
                continue
            raise RecipeError(f"{where}: not valid JSON: {error}") from error
        yield parse_decision(row, where)


def parse_decision(row: object, where: str) -> Decision:
    """Return the decision in an object that was read from JSON.

    Fields that a decision does not have are passed over.

    Args:
        row: the object.
        where: file and line, for errors.

    Raises:
        RecipeError: it is no decision.
    """
    try:
        decision = _adapter().validate_python(row)
        time = datetime.fromisoformat(decision.time).astimezone(UTC)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"])) or "the line"
        raise RecipeError(
            f"{where}: not a decision: {field}: {fault['msg']}. "
            "See docs/how-to/human-review.md for the fields"
        ) from error
    except ValueError as error:
        raise RecipeError(
            f"{where}: not a decision: time: {error}. Write it in ISO 8601, such as "
            "2026-01-31T12:00:00+00:00"
        ) from error
    for name in ("instruction", "response"):
        if not decision.edits.get(name, "text").strip():
            raise RecipeError(
                f"{where}: not a decision: {name} is empty. Set it to null where the "
                "text stays as it is, or reject the row"
            )
    return replace(decision, time=time.isoformat(timespec="microseconds"))


@cache
def _adapter() -> TypeAdapter[Decision]:
    return TypeAdapter(Decision)


def read_own_decisions(store: Store) -> list[Decision]:
    """Read the decisions of a run directory, those of all sessions together."""
    found: list[Decision] = []
    for name in store.list(layout.DECISIONS, ".jsonl"):
        found.extend(decode_decisions(store.read(name), f"{store.root}/{name}"))
    return found


def read_decision_files(pattern: str, field: str) -> list[Decision]:
    """Read the decisions in the files that a path or glob names.

    Args:
        pattern: the path or glob.
        field: the recipe's field or the option that names it, for errors.

    Raises:
        RecipeError: there is no such file, or a line is not a decision.
    """
    paths = [path for path in matches(pattern) if path.is_file()]
    if not paths:
        raise RecipeError(f"{field}: no file {pattern!r} (looked from {Path.cwd()})")
    found: list[Decision] = []
    for path in paths:
        found.extend(decode_decisions(path.read_bytes(), str(path)))
    return found


def latest(decisions: Iterable[Decision]) -> dict[tuple[str, str], Decision]:
    """Return the decision of each reviewer on each row that counts: the last one.

    Rows whose decision was undone are left out.

    Returns:
        Decisions by row id and reviewer, in the order of time.
    """
    last: dict[tuple[str, str], Decision] = {}
    # Sorting is stable: at the same time, the later line of a file counts.
    for decision in sorted(decisions, key=lambda decision: decision.time):
        key = (decision.id, decision.reviewer)
        last.pop(key, None)
        if decision.decision != "undo":
            last[key] = decision
    return last


def decisions_fingerprint(store: Store) -> str:
    """Return a fingerprint of what the decisions of a run directory do to its rows.

    Who decided, and when, does not enter: the same decision again changes nothing.
    """
    effects = []
    for id, decision in sorted(by_row(read_own_decisions(store)).items()):
        effects.append([id, decision.decision, decision.reason, decision.edits])
    return hashlib.sha256(orjson.dumps(effects)).hexdigest()[:16]


def by_row(decisions: Iterable[Decision]) -> dict[str, Decision]:
    """Return the decision on each row that somebody accepted or rejected, by row id.

    Where reviewers differ, the last of them decides.
    """
    rows = {}
    for (id, _), decision in latest(decisions).items():
        if decision.decision != "skip":
            rows[id] = decision
    return rows
