"""The ledger: every model call of a run directory, and the account of its costs.

An answer is durable before it is used. `ledger/<role>/<session>-<writer>.jsonl` is one
append-only segment per writer (ledger_files.py). Its lines are:

- `intent`: before an attempt that is paid for or runs in an engine of this process,
- `reply`: an answer and its cost,
- `failed`: an attempt that ended without an answer,
- `hit`: an answer taken from the ledger.

A torn last line is dropped. An intent without a `reply` or `failed` line counts as
spent. If its writer died, its call was in flight.

The file `session` names the command that owns the run directory. A process of an
earlier command, on a node that lost its driver, writes nothing more and makes no call.
"""

import asyncio
import hashlib
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError
from bezoar_ray.llm import ledger_files
from bezoar_ray.llm.chat import Messages, Reply, Sampling
from bezoar_ray.llm.ledger_index import OFFSET_BITS, LedgerIndex, earlier_segments
from bezoar_ray.runtime.metrics import MetricSet
from bezoar_ray.store import Store

ROLES = {
    "teacher": "generate",
    "judge": "filter",
    "steerer": "align",
    "candidate": "evaluate",
    "mt_bench_judge": "evaluate",
}
"""The stage of each role: who is called, and where."""
SESSION = "session"
"""The file that names the command which owns the run directory."""
_TOKEN_COUNTS = ("tokens_in", "tokens_out", "tokens_reasoning")
_OWNER_CHECK_SECONDS = 1.0  # the file is read again after this time
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
    """Return the key of a call; equal keys are the same call.

    Endpoint, API key, prices and concurrency are left out: they change no answer.
    """
    # `row` and `attempt` are part of it: equal prompts of two rows, or a repeated
    # question after an unreadable verdict, need answers of their own.
    call = [identity, messages, _parameters(sampling), row, step, sample, attempt]
    canonical = orjson.dumps(call, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).hexdigest()[:32]


@cache
def _parameters(sampling: Sampling) -> dict[str, object]:
    parameters = {}
    for name, value in asdict(sampling).items():
        # Without a schema, keys are those from before there were schemas.
        if value != "":
            parameters[name] = value
    return parameters


class Ledger:
    """The calls of one role: earlier segments, and a segment of this process.

    Memory holds the locations of the answers: some 150 bytes for each answer of this
    session, and an index for earlier ones.

    Args:
        root: The run directory.
        role: Who is called, a key of `ROLES`.
        session: The command that owns the run directory.
        index: Of the earlier sessions' answers; read here if it is not given.

    Raises:
        BezoarError: A segment that is in the index is missing.
    """

    def __init__(
        self,
        root: str | Path,
        role: str,
        session: str,
        index: LedgerIndex | None = None,
    ):
        self._store = Store(root)
        self._session = session
        self._owner_checked_at = 0.0
        self._locations: dict[bytes, int] = {}
        self._deaths: Counter[bytes] = Counter()
        self._fruitless_deaths = 0

        folder = layout.ledger(role)
        segments = dict(ledger_files.open_segments(self._store, folder))
        if index is None:
            index = LedgerIndex.of(earlier_segments(segments, session))
        self._index = index
        # New segments are expected, since other actors have begun. A lost one is not.
        missing = set(index.writers) - segments.keys()
        if missing:
            raise BezoarError(
                f"{self._store.root}/{folder}: the segment {min(missing)} is missing, "
                "or this node does not see it. Its answers would be paid for again. "
                "Put it back, and run the same command again"
            )
        # A segment's position in this list is the number in its answers' locations.
        self._segments = [segments.pop(writer) for writer in index.writers]
        for writer, segment in segments.items():
            # Not in the index: written since the driver made it, by
            # actors of this command.
            self._read_segment(segment, is_of_session=writer.startswith(session))
            self._segments.append(segment)
        # A name of its own for each writer: no file has two, so
        # that appends need no lock.
        writer = f"{session}-{uuid.uuid4().hex[:8]}"
        self._segment = ledger_files.create_segment(self._store, f"{folder}/{writer}")
        self._segments.append(self._segment.reader)
        self._number = len(self._segments) - 1

        self.metrics = MetricSet(run=self._store.name, stage=ROLES[role], role=role)
        self._unwritten: list[tuple[bytes, asyncio.Future[int]]] = []
        self._last_line: asyncio.Future[int] | None = None
        self._writer: asyncio.Task[None] | None = None

    def __contains__(self, key: str) -> bool:
        return self._locate(key) is not None

    @property
    def has_answers(self) -> bool:
        """Whether any call was answered in this run directory."""
        return bool(self._locations) or len(self._index) > 0

    def find(self, key: str) -> Reply | None:
        """Return an answer that was paid for before, if there is one."""
        location = self._locate(key)
        if location is None:
            return None
        # Not awaited: a lost `hit` costs a count in the summary, and no money.
        self._append({"hit": key})
        segment = self._segments[location >> OFFSET_BITS]
        segment.seek(location & _OFFSET_MASK)
        entry = orjson.loads(segment.readline())
        self.metrics.add("bezoar_calls", model=entry["model"], outcome="found")
        return Reply(**entry["answer"])

    def deaths(self, key: str) -> int:
        """Count the writers of this session that died with this call in flight."""
        return self._deaths[bytes.fromhex(key)]

    @property
    def fruitless_deaths(self) -> int:
        """How many writers of this session left calls in flight and no answer.

        Writers that are alive count, too, until their first answer.
        """
        return self._fruitless_deaths

    async def check_owner(self) -> None:
        """Check that this session owned the run directory at most a second ago.

        Raises:
            BezoarError: Another command has taken it over.
        """
        if time.monotonic() - self._owner_checked_at > _OWNER_CHECK_SECONDS:
            await asyncio.to_thread(self._check_owner)

    async def intend(self, key: str, usd: float) -> None:
        """Record, durably, that an attempt of at most `usd` dollars is about to go out."""
        await self._append({"intent": key, "usd": usd})

    async def record_usage(
        self, key: str, model: str, reply: Reply, usd: float
    ) -> None:
        """Record an answer and its cost, durably. Only then may it be used."""
        line = {"reply": key, "model": model, "answer": reply, "usd": usd}
        offset = await self._append(line)
        # After the fsync: a location that `find` sees is that of a durable answer.
        self._locations[bytes.fromhex(key)] = self._number << OFFSET_BITS | offset

        add = self.metrics.add
        add("bezoar_calls", model=model, outcome="answered")
        add("bezoar_tokens", reply.tokens_in, model=model, direction="in")
        add("bezoar_tokens", reply.tokens_out, model=model, direction="out")
        add("bezoar_dollars", usd, model=model)

    def fail(self, key: str, model: str, error: str, usd: float) -> None:
        """Record an attempt without an answer and its cost; durable after `flushed`."""
        self.metrics.add("bezoar_calls", model=model, outcome="failed")
        self.metrics.add("bezoar_dollars", usd, model=model)
        # Not awaited, since it is called in `except`: the client awaits `flushed`
        # later. If the line is lost, the open intent counts as spent.
        self._append({"failed": key, "model": model, "error": error, "usd": usd})

    async def flushed(self) -> None:
        """Wait until all lines so far are durable, or known not to be."""
        if self._last_line:
            # `wait` does not raise: calls whose lines are lost learn of it by their own
            # futures. Lines are written in order, so the last one stands for all.
            await asyncio.wait([self._last_line])

    async def close(self) -> None:
        """Write the last lines and end the segment."""
        self.metrics.tell()
        if self._writer:
            # What is queued was paid for, so it is written before the segment ends.
            await asyncio.wait([self._writer])
        self._segment.close()
        for segment in self._segments:
            segment.close()

    def _locate(self, key: str) -> int | None:
        key_bytes = bytes.fromhex(key)
        location = self._locations.get(key_bytes)
        if location is None:
            return self._index.find(key_bytes)
        return location

    def _read_segment(self, segment: BinaryIO, is_of_session: bool) -> None:
        """Read a segment that is not in the index, before it joins `_segments`."""
        number = len(self._segments)
        offset = 0
        has_answers = False
        in_flight = Counter[bytes]()
        for line, entry in ledger_files.entries(segment):
            if "reply" in entry:
                key = bytes.fromhex(entry["reply"])
                self._locations[key] = number << OFFSET_BITS | offset
                has_answers = True
                in_flight[key] -= 1
            elif "failed" in entry:
                in_flight[bytes.fromhex(entry["failed"])] -= 1
            elif "intent" in entry:
                in_flight[bytes.fromhex(entry["intent"])] += 1
            offset += len(line)
        if not is_of_session:
            return
        died_with = +in_flight  # unary plus keeps the counts above zero
        self._deaths.update(died_with)
        # A writer that answered something can work: its death
        # says nothing of the model.
        if died_with and not has_answers:
            self._fruitless_deaths += 1

    def _append(self, entry: dict[str, object]) -> asyncio.Future[int]:
        """Queue a line for the next commit; the future becomes its offset.

        This is a group commit: all lines that are queued while one commit is written
        share the next one and its fsync.
        """
        line = orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)
        written = asyncio.get_running_loop().create_future()
        self._unwritten.append((line, written))
        self._last_line = written
        # No task waits while there is nothing to write, so none
        # is left over at the end.
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_lines())
        return written

    async def _write_lines(self) -> None:
        """Commit queued lines until there are none."""
        loop = asyncio.get_running_loop()
        while self._unwritten:
            # Taken before the first await: lines that come during the
            # fsync form the next batch.
            batch = self._unwritten
            self._unwritten = []
            data = b"".join(line for line, _ in batch)
            try:
                # In a thread: an fsync takes milliseconds, a PUT tenths of a second,
                # and the event loop serves all other calls meanwhile.
                offset = await loop.run_in_executor(None, self._commit, data)
            except Exception as error:
                for _, written in batch:
                    if not written.done():  # cancelled calls are done
                        written.set_exception(error)
                continue
            for line, written in batch:
                if not written.done():
                    written.set_result(offset)
                offset += len(line)
            # After the futures: callers go on at once, and only the next PUT waits.
            await asyncio.sleep(self._segment.pause)

    def _commit(self, data: bytes) -> int:
        """Write lines durably if this session still owns the run directory."""
        # Also after the last check a second ago: an actor that a lost driver left
        # behind would write into the ledger of the command that took over.
        self._check_owner()
        return self._segment.append(data)

    def _check_owner(self) -> None:
        try:
            owner = self._store.read(SESSION).decode()
        except FileNotFoundError:
            # The orchestrator writes the file; a ledger that is
            # opened by itself has none.
            owner = self._session
        if owner != self._session:
            raise BezoarError(
                f"{self._store.root} is now owned by another command ({owner}), so "
                "this one ends"
            )
        self._owner_checked_at = time.monotonic()


KnownAccounts = dict[tuple[str, str], tuple[int, "_Account"]]
"""By folder and writer of a segment: its size when it was counted, and its account."""


def accounts(
    root: str | Path, session: str, known: KnownAccounts | None = None
) -> dict[str, dict[str, Any]]:
    """Return `calls` of summary.json: totals by role, with `last_run` of one session.

    Args:
        root: The run directory.
        session: The command whose calls are `last_run`.
        known: Keep it between calls, so that only segments that grew are read again.
    """
    if known is None:
        known = {}
    store = Store(root)
    by_role = {}
    for role in ROLES:
        by_role[role] = _account_of_role(store, role, session, known)
    return by_role


def _account_of_role(
    store: Store, role: str, session: str, known: KnownAccounts
) -> dict[str, Any]:
    folder = layout.ledger(role)
    total = _Account()
    last_run = _Account()
    for writer, segment in ledger_files.open_segments(store, folder):
        with segment:
            account = _account_of_segment(segment, known, (folder, writer))
        total.merge(account)
        if writer.startswith(session):
            last_run.merge(account)
    # A batch in progress has no lines in a segment yet, but its money is reserved.
    for batch in store.list(f"{folder}/batches", ".json"):
        total.add_batch(store.read_json(batch)["calls"])
    summary: dict[str, Any] = total.summary()
    summary["by_model"] = total.by_model
    summary["last_run"] = last_run.summary()
    return summary


def _account_of_segment(
    segment: BinaryIO, known: KnownAccounts, key: tuple[str, str]
) -> "_Account":
    size = segment.seek(0, os.SEEK_END)
    if key in known:
        known_size, account = known[key]
        # Segments only grow, so an equal size means equal content.
        if size == known_size:
            return account
    segment.seek(0)
    account = _Account()
    account.add_segment(entry for _, entry in ledger_files.entries(segment))
    known[key] = (size, account)
    return account


class _Account:
    """Attempts, tokens and dollars, in all and by model."""

    def __init__(self) -> None:
        self.counts: dict[str, float] = {"attempts": 0, "sent": 0, "from_ledger": 0}
        for name in _TOKEN_COUNTS:
            self.counts[name] = 0
        self.usd = 0.0
        self.by_model: dict[str, dict[str, float]] = {}

    def add_segment(self, entries: Iterable[dict[str, Any]]) -> None:
        """Add the entries of one segment; its open intents count as spent."""
        open_intents: dict[str, float] = {}
        for entry in entries:
            if "intent" in entry:
                open_intents[entry["intent"]] = entry["usd"]
            elif "hit" in entry:
                self.counts["from_ledger"] += 1
            else:
                key = entry.get("reply") or entry["failed"]
                # Calls without a price have written no intent.
                open_intents.pop(key, None)
                self._add_attempt(entry)
        # The provider may have charged for calls whose answers were lost in a crash.
        self.usd += sum(open_intents.values())
        self.counts["attempts"] += len(open_intents)

    def add_batch(self, calls: dict[str, float]) -> None:
        """Add a batch in progress: for each call, its key and upper bound in dollars."""
        self.usd += sum(calls.values())
        self.counts["attempts"] += len(calls)

    def merge(self, other: "_Account") -> None:
        """Add another account."""
        self.usd += other.usd
        _add_counts(self.counts, other.counts)
        for model, counts in other.by_model.items():
            if model not in self.by_model:
                self.by_model[model] = dict.fromkeys(counts, 0)
            _add_counts(self.by_model[model], counts)

    def summary(self) -> dict[str, float]:
        """Return the totals as they are in summary.json."""
        # Dollars to the millionth: a sum of floats would end in noise.
        return self.counts | {"usd": round(self.usd, 6)}

    def _add_attempt(self, entry: dict[str, Any]) -> None:
        """Add a `reply` or `failed` entry."""
        name = entry["model"]
        if name not in self.by_model:
            tokens = dict.fromkeys(_TOKEN_COUNTS, 0)
            self.by_model[name] = {"sent": 0, **tokens, "usd": 0.0}
        of_model = self.by_model[name]
        self.counts["attempts"] += 1
        self.usd += entry["usd"]
        of_model["usd"] += entry["usd"]
        answer = entry.get("answer")
        if not answer:
            return
        for counts in (self.counts, of_model):
            counts["sent"] += 1
            for name in _TOKEN_COUNTS:
                # Ledgers from before reasoning was counted lack its tokens.
                counts[name] += answer.get(name, 0)


def _add_counts(total: dict[str, float], counts: dict[str, float]) -> None:
    for name, count in counts.items():
        total[name] += count
