"""The data of a run, with ids and Arrow schemas.

These are seeds, samples, verdicts, pairs, preferences and rated answers.
"""

import hashlib
import re
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from typing import Any, get_args

import pyarrow as pa

from bezoar_ray.data.row import StageRow
from bezoar_ray.recipe.model_sections import Attribute

ATTRIBUTES: tuple[Attribute, ...] = get_args(Attribute)
"""The attributes of an answer, in the order of `Rating.ratings`."""
HIGHEST_RATING = 4.0
"""The highest rating of an attribute. The lowest is 0."""

_PERSON_RANK = 6.0
"""Above the highest rating of a judge, which is 5."""
_END = re.compile(r"[\s.!?]+$")


def row_id(*lineage: object) -> str:
    """Return 16 hex digits that depend on the origin of a row, never on its text.

    An interrupted run therefore has the same ids as an undisturbed one, although
    sampled replies differ from run to run.
    """
    # ASCII's unit separator, so that ("ab", "c") and ("a", "bc") stay apart.
    key = "\x1f".join(str(part) for part in lineage)
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def task_text(instruction: str, context: str) -> str:
    """Return an instruction and its input as one message of a user."""
    if not context:
        return instruction
    return f"{instruction}\n\nInput:\n{context}"


def normalize(text: str) -> str:
    """Return a text without case, extra spacing and punctuation at its end.

    Punctuation within the text stays: "3 + 4" is not "3 - 4".
    """
    single_spaced = " ".join(text.casefold().split())
    return _END.sub("", single_spaced)


@dataclass(frozen=True)
class Seed:
    """One row of human-written data from which generation starts."""

    id: str
    source: str
    license: str
    instruction: str
    input: str = ""
    response: str = ""
    category: str = ""
    task_source: str = ""
    task_name: str = ""
    template_type: str = ""

    @property
    def task(self) -> str:
        """Instruction and input as one text."""
        return task_text(self.instruction, self.input)


@dataclass(frozen=True)
class Verdict:
    """One judge's verdict on one sample."""

    judge: str
    status: str
    """`accepted`, `rejected` or `failed`."""
    rating: float | None = None
    """Null where the reply holds no readable rating."""
    reason: str = ""


@dataclass(frozen=True)
class Sample(StageRow):
    """One synthetic instruction and its answer, with its whole provenance."""

    id: str
    scheme: str
    operation: str
    round: int = 0
    system: str = ""
    history: list[dict[str, str]] = field(default_factory=list)
    """Turns before the instruction. Only custom rows have any."""
    instruction: str = ""
    input: str = ""
    response: str = ""
    finish_reason: str = ""
    tokens_in: int = 0
    """Tokens of the prompt of the call that wrote the response."""
    tokens_out: int = 0
    """Tokens of the reply to that call."""
    seed_ids: list[str] = field(default_factory=list)
    seed_sources: list[str] = field(default_factory=list)
    seed_licenses: list[str] = field(default_factory=list)
    teacher: str = ""
    teacher_license: str = ""
    prompt_hash: str = ""
    status: str = "generated"
    """First `generated`, in the end `accepted`, `rejected` or `failed`."""
    reason: str = ""
    """The gate, the judge or the error that took the row."""
    verdicts: list[Verdict] = field(default_factory=list)
    task_source: str = ""
    task_name: str = ""
    person: str = ""
    """What a person decided: `accepted`, `rejected`, or `edited` where the texts are
    the person's. Empty where gates and judges decided."""

    @property
    def task(self) -> str:
        """Instruction and input as one text, the user's turn in training."""
        return task_text(self.instruction, self.input)

    @property
    def rating(self) -> float:
        """The mean of the judges' ratings, or 0 where there is no rating."""
        ratings = [
            verdict.rating for verdict in self.verdicts if verdict.rating is not None
        ]
        if not ratings:
            return 0.0
        return sum(ratings) / len(ratings)

    @property
    def rank(self) -> float:
        """The number by which the best of several rows is chosen: the rating.

        A row that a person accepted is above all others.
        """
        if self.person in ("accepted", "edited"):
            return _PERSON_RANK
        return self.rating

    @property
    def gate(self) -> str:
        """The gate that took the row: `reason` without the details after a colon."""
        return self.reason.partition(":")[0]

    def conversation(self) -> list[dict[str, str]]:
        """Return the messages with the response, on which sft trains.

        Without a system message, the template inserts its own.
        """
        system = []
        if self.system:
            system.append({"role": "system", "content": self.system})
        last_turn = [
            {"role": "user", "content": self.task},
            {"role": "assistant", "content": self.response},
        ]
        return [*system, *self.history, *last_turn]

    def ended(self, status: str, reason: str) -> "Sample":
        """Return a copy of the sample with its final status."""
        return replace(self, status=status, reason=reason)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Sample":
        """Build the sample from a row of a Parquet file, or from a decoded row.

        Files of earlier versions may lack columns, and may have columns of their own.
        """
        values = {name: row[name] for name in _sample_fields() if name in row}
        values["verdicts"] = [Verdict(**verdict) for verdict in row["verdicts"]]
        values["history"] = row.get("history") or []
        return cls(**values)

    def to_row(self) -> dict[str, object]:
        """Return the sample as a row for a Parquet file."""
        return asdict(self)


@cache
def _sample_fields() -> tuple[str, ...]:
    return tuple(field.name for field in fields(Sample))


@dataclass(frozen=True)
class Pair:
    """A conversation up to the last user turn, with a preferred and another answer."""

    id: str
    source: str
    license: str
    prompt: list[dict[str, str]]
    chosen: str
    rejected: str

    def conversation(self) -> list[dict[str, str]]:
        """Return the messages with the chosen answer, on which hh-sft trains."""
        return [*self.prompt, {"role": "assistant", "content": self.chosen}]


@dataclass(frozen=True)
class Preference(Pair):
    """A pair, and how much better the chosen answer is."""

    strength: float = 1.0
    """In HelpSteer2-Preference 1 (slightly better), 2 or 3 (much better). 0 where
    neither answer is preferred. Never negative."""


@dataclass(frozen=True)
class Rating:
    """An answer to a conversation, rated by the five attributes."""

    id: str
    source: str
    license: str
    prompt: list[dict[str, str]]
    """The messages up to the last user turn."""
    response: str
    ratings: list[float | None]
    """A rating from 0 to 4 for each of `ATTRIBUTES`; None where there is none."""

    def conversation(self) -> list[dict[str, str]]:
        """Return the messages with the rated answer."""
        return [*self.prompt, {"role": "assistant", "content": self.response}]


@cache
def sample_schema() -> pa.Schema:
    """Return the Arrow schema of `data/<scheme>/<status>/*.parquet`."""
    verdict = pa.struct(
        [
            ("judge", pa.string()),
            ("status", pa.string()),
            ("rating", pa.float64()),
            ("reason", pa.string()),
        ]
    )
    types = {
        "round": pa.int64(),
        "history": _messages_type(),
        "tokens_in": pa.int64(),
        "tokens_out": pa.int64(),
        "seed_ids": pa.list_(pa.string()),
        "seed_sources": pa.list_(pa.string()),
        "seed_licenses": pa.list_(pa.string()),
        "verdicts": pa.list_(verdict),
    }
    return pa.schema(
        [(name, types.get(name, pa.string())) for name in _sample_fields()]
    )


@cache
def pair_schema() -> pa.Schema:
    """Return the Arrow schema of `data/hh_rlhf/{sft,pairs,heldout}/*.parquet`."""
    types = {"prompt": _messages_type()}
    names = [field.name for field in fields(Pair)]
    return pa.schema([(name, types.get(name, pa.string())) for name in names])


@cache
def preference_schema() -> pa.Schema:
    """Return the Arrow schema of preferences: that of pairs, and the strength."""
    return pair_schema().append(pa.field("strength", pa.float64()))


@cache
def rating_schema() -> pa.Schema:
    """Return the Arrow schema of rated answers."""
    types = {"prompt": _messages_type(), "ratings": pa.list_(pa.float64())}
    names = [field.name for field in fields(Rating)]
    return pa.schema([(name, types.get(name, pa.string())) for name in names])


def _messages_type() -> pa.DataType:
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.list_(message)


def sample_table(samples: list[Sample]) -> pa.Table:
    """Return samples as an Arrow table in `sample_schema`."""
    rows = [sample.to_row() for sample in samples]
    return pa.Table.from_pylist(rows, schema=sample_schema())


def pair_table(pairs: list[Pair]) -> pa.Table:
    """Return pairs as an Arrow table in `pair_schema`."""
    rows = [asdict(pair) for pair in pairs]
    return pa.Table.from_pylist(rows, schema=pair_schema())


def preference_table(preferences: list[Preference]) -> pa.Table:
    """Return preferences as an Arrow table in `preference_schema`."""
    rows = [asdict(preference) for preference in preferences]
    return pa.Table.from_pylist(rows, schema=preference_schema())


def rating_table(ratings: list[Rating]) -> pa.Table:
    """Return rated answers as an Arrow table in `rating_schema`."""
    rows = [asdict(rating) for rating in ratings]
    return pa.Table.from_pylist(rows, schema=rating_schema())
