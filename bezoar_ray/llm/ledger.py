"""The ledger: every model call of a run directory, durable before it is used, and the account of what was spent.

`ledger/<role>/<session>-<writer>.jsonl` is one append-only segment per writer (segments.py). Lines are `intent` (before
an attempt that is paid for or runs in an engine here), `reply` (an answer and what it cost), `failed` (an attempt that
ended without one) and `hit` (an answer taken from the ledger). A torn last line is dropped. An intent that nothing
settles counts as spent, and as in flight when its writer died. The file `session` names the command that holds the run
directory: what an earlier one left running, on a node that lost its driver, writes nothing more and makes no call.
"""

import asyncio
import hashlib
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError
from bezoar_ray.llm import ledger_files
from bezoar_ray.llm.chat import Messages, Reply, Sampling
from bezoar_ray.llm.ledger_index import OFFSET_BITS, Index, before
from bezoar_ray.runtime.metrics import MetricSet
from bezoar_ray.store import Store

ROLES = {
    "teacher": "generate",
    "judge": "filter",
    "candidate": "evaluate",
    "mt_bench_judge": "evaluate",
}
"""Who is called, and in which stage."""
SESSION = "session"  # the file that names the command which holds the run directory
_TOKENS = ("tokens_in", "tokens_out", "tokens_reasoning")
_LOOK = 1.0  # seconds for which its content is believed
_OFFSET_MASK = (1 << OFFSET_BITS) - 1


def call_key(
    identity: str,
    messages: Messages,
    sampling: Sampling,
    row: str,
    step: str,
    sample: int,
    attempt: int,
) -> str:
    """What makes two calls the same call. Endpoint, key, prices and concurrency are left out: they change no answer."""
    call = [identity, messages, _parameters(sampling), row, step, sample, attempt]
    return hashlib.sha256(orjson.dumps(call, option=orjson.OPT_SORT_KEYS)).hexdigest()[
        :32
    ]


@cache
def _parameters(sampling: Sampling) -> dict[str, object]:
    return {name: value for name, value in asdict(sampling).items() if value != ""}


class Ledger:
    """The calls of one role: what earlier writers recorded, and a segment of our own.

    In memory are only the places of the answers: of this session some 150 bytes each, of earlier ones an index, which
    is read here where none is given.
    """

    def __init__(
        self, root: str | Path, role: str, session: str, index: Index | None = None
    ):
        self._store, folder = Store(root), layout.ledger(role)
        self._session, self._looked = session, 0.0
        self._places: dict[bytes, int] = {}
        self._deaths: Counter[bytes] = Counter()
        self._fruitless = 0
        there = dict(ledger_files.earlier(self._store, folder))
        self._earlier = Index.of(before(there, session)) if index is None else index
        if unseen := set(self._earlier.writers) - there.keys():
            raise BezoarError(
                f"{self._store.root}/{folder}: the segment {min(unseen)} is not there, or this node does not see it. "
                "What it holds would be paid for again. Put it back, and run the same command again"
            )
        self._segments: list[BinaryIO] = [
            there.pop(writer) for writer in self._earlier.writers
        ]
        for writer, segment in there.items():
            self._add(
                len(self._segments), segment, count_deaths=writer.startswith(session)
            )
            self._segments.append(segment)
        self._own = ledger_files.own(
            self._store, f"{folder}/{session}-{uuid.uuid4().hex[:8]}"
        )
        self._segments.append(self._own.reader)
        self.figures = MetricSet(run=self._store.name, stage=ROLES[role], role=role)
        self._waiting: list[tuple[bytes, asyncio.Future[int]]] = []
        self._last: asyncio.Future[int] | None = None
        self._committing: asyncio.Task[None] | None = None

    def __contains__(self, key: str) -> bool:
        return self._place(key) is not None

    @property
    def has_answers(self) -> bool:
        """Whether any call was answered in this run directory."""
        return bool(self._places or len(self._earlier))

    def find(self, key: str) -> Reply | None:
        """An answer that was paid for before."""
        place = self._place(key)
        if place is None:
            return None
        self._queue({"hit": key})
        segment = self._segments[place >> OFFSET_BITS]
        segment.seek(place & _OFFSET_MASK)
        entry = orjson.loads(segment.readline())
        self.figures.add("bezoar_calls", model=entry["model"], outcome="found")
        return Reply(**entry["answer"])

    def deaths(self, key: str) -> int:
        """How many writers of this session have died with this attempt in flight."""
        return self._deaths[bytes.fromhex(key)]

    @property
    def fruitless(self) -> int:
        """How many writers of this session had calls in flight when they died, or have now, and no answer to any."""
        return self._fruitless

    async def check_held(self) -> None:
        """See that the run directory is still this session's, or was a second ago.

        Raises:
            BezoarError: another command has taken it over.
        """
        if time.monotonic() - self._looked > _LOOK:
            await asyncio.to_thread(self._look)

    async def intend(self, key: str, usd: float) -> None:
        """Record, durably, that an attempt which may cost `usd` is about to go out."""
        await self._queue({"intent": key, "usd": usd})

    async def record_usage(
        self, key: str, model: str, reply: Reply, usd: float
    ) -> None:
        """Record an answer, durably; only then may it be used."""
        offset = await self._queue(
            {"reply": key, "model": model, "answer": reply, "usd": usd}
        )
        self._places[bytes.fromhex(key)] = (
            len(self._segments) - 1
        ) << OFFSET_BITS | offset
        self.figures.add("bezoar_calls", model=model, outcome="answered")
        self.figures.add("bezoar_tokens", reply.tokens_in, model=model, direction="in")
        self.figures.add(
            "bezoar_tokens", reply.tokens_out, model=model, direction="out"
        )
        self.figures.add("bezoar_dollars", usd, model=model)

    def fail(self, key: str, model: str, error: str, usd: float) -> None:
        """Record an attempt that ended without an answer, and what it may have cost. Durable after `flushed`."""
        self.figures.add("bezoar_calls", model=model, outcome="failed")
        self.figures.add("bezoar_dollars", usd, model=model)
        self._queue({"failed": key, "model": model, "error": error, "usd": usd})

    async def flushed(self) -> None:
        """Wait until all that was recorded so far is durable."""
        if self._last:
            await asyncio.wait([self._last])

    async def close(self) -> None:
        """Wait for what is being written, and end the segment."""
        self.figures.tell()
        if self._committing:
            await asyncio.wait([self._committing])
        self._own.close()
        for segment in self._segments:
            segment.close()

    def _place(self, key: str) -> int | None:
        digits = bytes.fromhex(key)
        place = self._places.get(digits)
        return self._earlier.find(digits) if place is None else place

    def _add(self, number: int, segment: BinaryIO, count_deaths: bool) -> None:
        offset, answered, in_flight = 0, False, Counter[bytes]()
        for line, entry in ledger_files.entries(segment):
            key = bytes.fromhex(
                entry.get("reply") or entry.get("failed") or entry.get("intent") or ""
            )
            if "reply" in entry:
                self._places[key] = number << OFFSET_BITS | offset
                answered = True
            if count_deaths and "hit" not in entry:
                in_flight[key] += 1 if "intent" in entry else -1
            offset += len(line)
        died_with = +in_flight  # those above 0
        self._deaths.update(died_with)
        self._fruitless += bool(died_with) and not answered

    def _queue(self, line: dict[str, object]) -> asyncio.Future[int]:
        """Group commit: all lines that gather while one is made share the next. The future is the line's offset."""
        self._last = done = asyncio.get_running_loop().create_future()
        self._waiting.append((orjson.dumps(line) + b"\n", done))
        if self._committing is None or self._committing.done():
            self._committing = asyncio.create_task(self._flush())
        return done

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                offset = await asyncio.to_thread(
                    self._append, b"".join(line for line, _ in batch)
                )
            except Exception as error:
                for _, written in batch:
                    if (
                        not written.done()
                    ):  # done: a cancelled call, which nobody waits for any more
                        written.set_exception(error)
                continue
            for line, written in batch:
                if not written.done():
                    written.set_result(offset)
                offset += len(line)
            await asyncio.sleep(self._own.pause)

    def _look(self) -> None:
        try:
            holder = self._store.read(SESSION).decode()
        except FileNotFoundError:
            holder = self._session
        if holder != self._session:
            raise BezoarError(
                f"{self._store.root} is held by another command by now ({holder}); this one ends"
            )
        self._looked = time.monotonic()

    def _append(self, data: bytes) -> int:
        self._look()
        return self._own.append(data)


Counted = dict[tuple[str, str], tuple[int, "_Account"]]
"""By folder and writer of a segment: its size when it was counted, and its account."""


def accounts(
    root: str | Path, session: str, counted: Counted | None = None
) -> dict[str, dict[str, Any]]:
    """`calls` of summary.json: totals of the directory by role, and of one session in `last_run`.

    `counted` is kept between calls, so that a segment is read again only after it has grown.
    """
    counted = {} if counted is None else counted
    return {
        role: _account(Store(root), layout.ledger(role), session, counted)
        for role in ROLES
    }


def _account(
    store: Store, folder: str, session: str, counted: Counted
) -> dict[str, Any]:
    total = _Account()
    last = _Account()
    for writer, segment in ledger_files.earlier(store, folder):
        with segment:
            account = _counted(segment, counted, (folder, writer))
        total.merge(account)
        if writer.startswith(session):
            last.merge(account)
    for batch in store.list(f"{folder}/batches", ".json"):
        total.add_batch(store.read_json(batch)["calls"])
    return total.summary() | {"by_model": total.by_model, "last_run": last.summary()}


def _counted(segment: BinaryIO, counted: Counted, key: tuple[str, str]) -> "_Account":
    """The account of one segment."""
    size = segment.seek(0, os.SEEK_END)
    known_size, account = counted.get(key, (-1, _Account()))
    if size == known_size:
        return account
    segment.seek(0)
    account = _Account()
    account.add(entry for _, entry in ledger_files.entries(segment))
    counted[key] = (size, account)
    return account


class _Account:
    def __init__(self) -> None:
        self.numbers: dict[str, float] = {
            "attempts": 0,
            "sent": 0,
            "from_ledger": 0,
            **dict.fromkeys(_TOKENS, 0),
        }
        self.usd = 0.0
        self.by_model: dict[str, dict[str, float]] = {}

    def add(self, lines: Iterator[dict[str, Any]]) -> None:
        """Add one segment, in which unsettled intents count as spent."""
        open_intents: dict[str, float] = {}
        for line in lines:
            if "intent" in line:
                open_intents[line["intent"]] = line["usd"]
            elif "hit" in line:
                self.numbers["from_ledger"] += 1
            else:
                open_intents.pop(line.get("reply") or line["failed"], None)
                self._settle(line)
        self.usd += sum(open_intents.values())
        self.numbers["attempts"] += len(open_intents)

    def merge(self, other: "_Account") -> None:
        """Add another account's numbers."""
        self.usd += other.usd
        _add_numbers(self.numbers, other.numbers)
        for model, numbers in other.by_model.items():
            _add_numbers(
                self.by_model.setdefault(model, dict.fromkeys(numbers, 0)), numbers
            )

    def add_batch(self, calls: dict[str, float]) -> None:
        """Add a batch that is on its way: a call by its key, and what it may cost."""
        self.usd += sum(calls.values())
        self.numbers["attempts"] += len(calls)

    def _settle(self, line: dict[str, Any]) -> None:
        model = self.by_model.setdefault(
            line["model"], {"sent": 0} | dict.fromkeys(_TOKENS, 0) | {"usd": 0.0}
        )
        answer = line.get("answer")
        self.numbers["attempts"] += 1
        self.usd += line["usd"]
        model["usd"] += line["usd"]
        if answer:
            for counts in (self.numbers, model):
                counts["sent"] += 1
                for name in _TOKENS:
                    counts[name] += answer.get(
                        name, 0
                    )  # older ledgers do not know reasoning

    def summary(self) -> dict[str, float]:
        return self.numbers | {"usd": round(self.usd, 6)}


def _add_numbers(into: dict[str, float], more: dict[str, float]) -> None:
    for name, number in more.items():
        into[name] += number
