"""What flows between the stages: seeds, samples, verdicts and pairs, with their ids and Arrow schemas."""

import hashlib
import re
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from typing import Any

import pyarrow as pa

_END = re.compile(r"[\s.!?]+$")


def row_id(*lineage: object) -> str:
    """16 hex digits that depend on where a row comes from, never on its text.

    An interrupted and an undisturbed run therefore have the same ids, although sampling does not repeat.
    """
    return hashlib.sha256("\x1f".join(map(str, lineage)).encode()).hexdigest()[:16]


def task_text(instruction: str, context: str) -> str:
    """An instruction with its input, as a user would send it."""
    return f"{instruction}\n\nInput:\n{context}" if context else instruction


def normal(text: str) -> str:
    """A text without case, spacing and the mark at its end. Signs within stay: 3 + 4 is not 3 - 4."""
    return _END.sub("", " ".join(text.casefold().split()))


@dataclass(frozen=True)
class Seed:
    """One row of human-made data that generation starts from."""

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
    """What one judge said of one sample. `rating` is null where it could not be read."""

    judge: str
    status: str  # accepted, rejected or failed
    rating: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Sample:
    """One synthetic instruction and its answer, with its whole provenance.

    `status` goes from `generated` to `accepted`, `rejected` or `failed`; `reason` then names the gate, the judge or
    the error. Token counts are those of the call that wrote the response.
    """

    id: str
    scheme: str
    operation: str
    round: int = 0
    system: str = ""
    history: list[dict[str, str]] = field(
        default_factory=list
    )  # turns before the instruction, in rows of one's own
    instruction: str = ""
    input: str = ""
    response: str = ""
    finish_reason: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    seed_ids: list[str] = field(default_factory=list)
    seed_sources: list[str] = field(default_factory=list)
    seed_licenses: list[str] = field(default_factory=list)
    teacher: str = ""
    teacher_license: str = ""
    prompt_hash: str = ""
    status: str = "generated"
    reason: str = ""
    verdicts: list[Verdict] = field(default_factory=list)
    task_source: str = ""
    task_name: str = ""

    @property
    def task(self) -> str:
        """Instruction and input as one text: the user's turn in judging and training."""
        return task_text(self.instruction, self.input)

    @property
    def rating(self) -> float:
        """The mean of the judges' ratings; 0 where there is none."""
        rated = [
            verdict.rating for verdict in self.verdicts if verdict.rating is not None
        ]
        return sum(rated) / len(rated) if rated else 0.0

    @property
    def gate(self) -> str:
        """What took it: a reason may go on, after a colon, about this row alone."""
        return self.reason.partition(":")[0]

    def ended(self, status: str, reason: str) -> "Sample":
        """The same sample, at the end of its way."""
        return replace(self, status=status, reason=reason)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Sample":
        """The sample that a row of a Parquet file holds."""
        known = {f.name for f in fields(cls)}
        values = {name: value for name, value in row.items() if name in known}
        lists = {
            "verdicts": [Verdict(**v) for v in row["verdicts"]],
            "history": row.get("history") or [],
        }
        return cls(**values | lists)  # files of earlier versions have no history

    def to_row(self) -> dict[str, object]:
        """The sample as a row for a Parquet file."""
        return asdict(self)


@dataclass(frozen=True)
class Pair:
    """A conversation up to the last user turn, with a preferred and a dispreferred answer."""

    id: str
    source: str
    license: str
    prompt: list[dict[str, str]]
    chosen: str
    rejected: str

    def conversation(self) -> list[dict[str, str]]:
        """The messages with the chosen answer, as hh-sft trains on them."""
        return [*self.prompt, {"role": "assistant", "content": self.chosen}]


@cache
def sample_schema() -> pa.Schema:
    """Arrow schema of `data/<scheme>/<status>/*.parquet`."""
    strings, whole = pa.list_(pa.string()), {"round", "tokens_in", "tokens_out"}
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    verdict = pa.struct(
        [
            ("judge", pa.string()),
            ("status", pa.string()),
            ("rating", pa.float64()),
            ("reason", pa.string()),
        ]
    )
    special = {"seed_ids": strings, "seed_sources": strings, "seed_licenses": strings}
    special |= {"verdicts": pa.list_(verdict), "history": pa.list_(message)}
    return pa.schema(
        [
            (
                f.name,
                special.get(f.name, pa.int64() if f.name in whole else pa.string()),
            )
            for f in fields(Sample)
        ]
    )


@cache
def pair_schema() -> pa.Schema:
    """Arrow schema of `data/hh_rlhf/{sft,pairs,heldout}/*.parquet`."""
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema(
        [
            (f.name, pa.list_(message) if f.name == "prompt" else pa.string())
            for f in fields(Pair)
        ]
    )


def sample_table(samples: list[Sample]) -> pa.Table:
    """Samples as an Arrow table in `sample_schema`."""
    return pa.Table.from_pylist(
        [sample.to_row() for sample in samples], schema=sample_schema()
    )


def pair_table(pairs: list[Pair]) -> pa.Table:
    """Pairs as an Arrow table in `pair_schema`."""
    return pa.Table.from_pylist([asdict(pair) for pair in pairs], schema=pair_schema())
