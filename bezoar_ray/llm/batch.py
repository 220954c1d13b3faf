"""Calls through a provider's batch interface (OpenAI's `/v1/batches`): half the price, answers within a day.

A call that the ledger holds is answered at once; any other is put down for the next batch, and `Deferred` ends its
row's chain until then. A batch is recorded in `ledger/<role>/batches/` before it is created, and carries that record's
name as metadata: a process that comes after a crash finds it at the provider and takes its answers, instead of paying
again.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from itertools import count, islice, starmap
from pathlib import Path
from typing import Any, TypeVar

import orjson

from bezoar_ray.errors import BezoarError, BudgetReached
from bezoar_ray.llm.chat import CallFailed, Chat, Messages, Reply, Sampling, TryAgain
from bezoar_ray.llm.client import need
from bezoar_ray.llm.endpoint import fault, open_client, parameters, read_reply
from bezoar_ray.llm.ledger import Ledger, call_key
from bezoar_ray.llm.meter import Need, Permits
from bezoar_ray.llm.models import identity
from bezoar_ray.recipe import ModelPart
from bezoar_ray.store import Store

T = TypeVar("T")

_LINES, _BYTES = 50_000, 190 * 2**20  # OpenAI takes 50,000 requests and 200 MB
_POLL = 30.0  # seconds
_TRIES = 60  # of one request, about half an hour of an outage
_AT_ONCE = 1_000  # answers that share an fsync
_OVER = ("completed", "failed", "expired", "cancelled")
_METADATA = "bezoar_ray"


class Deferred(Exception):
    """The answer comes with the next batch; the row's chain is taken up again after it."""


class Batches:
    """One model's calls, put down and sent together. One process at a time talks to a run directory so."""

    def __init__(
        self,
        part: ModelPart,
        root: str,
        role: str,
        session: str,
    ):
        self._part = part
        self._permits: Permits | None = None
        self._identity, self._client = identity(part), open_client(part)
        self._store, self._folder = Store(root), f"ledger/{role}/batches"
        self._ledger = Ledger(root, role, session)
        self._sampling = Sampling(part.temperature, part.top_p, part.max_tokens)
        self._asked: dict[str, tuple[bytes, Need]] = {}
        self._tries: dict[str, int] = {}
        self._failed: dict[str, str] = {}
        self._attempted: set[str] = set()

    def limit(self, permits: Permits | None) -> None:
        """From now on, calls wait for these."""
        self._permits = permits

    def for_row(self, row: str) -> Chat:
        """The `Chat` of one row."""
        return partial(self._answer, row)

    async def close(self) -> None:
        """End the ledger's segment, and close the connections."""
        await self._client.close()
        if self._permits:
            await self._permits.close()
        await self._ledger.close()

    async def _answer(
        self,
        row: str,
        messages: Messages,
        *,
        step: str,
        sample: int = 0,
        attempt: int = 0,
        sampling: Sampling | None = None,
    ) -> Reply:
        sampling = sampling or self._sampling
        key = call_key(self._identity, messages, sampling, row, step, sample, attempt)
        if reply := self._ledger.find(key):
            return reply
        if key in self._failed:
            raise CallFailed(self._failed[key])
        body = {"model": self._part.model, "messages": messages, **parameters(self._part.model, sampling)}
        line = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
        self._asked[key] = orjson.dumps(line) + b"\n", need(messages, sampling, self._part)
        raise Deferred

    async def adopt(self) -> None:
        """Take the answers of batches that an earlier process has left on their way; forget those never created."""
        records = {name: self._store.read_json(name) for name in self._store.list(self._folder, ".json")}
        left = {Path(name).stem: record["calls"] for name, record in records.items() if not record["over"]}
        if not left:
            return
        found = await self._patiently(self._found)
        for name, calls in left.items():
            if name in found:
                await self._collect(name, found[name], calls)
            else:
                self._record(name, calls, over=True)

    async def send(self) -> None:
        """Send what was put down, and wait for the answers.

        Raises:
            BudgetReached: not all of it may go out; what could is answered by then.
        """
        asked, self._asked = self._asked, {}
        reached = None
        batches: list[dict[str, tuple[bytes, Need]]] = []
        for key, (line, most) in asked.items():
            try:
                if self._permits:
                    await self._permits.take(most, patient=False)
            except BudgetReached as error:
                reached = error
                break
            if not batches or len(batches[-1]) == _LINES or _size(batches[-1]) + len(line) > _BYTES:
                batches.append({})
            batches[-1][key] = line, most
        await asyncio.gather(*map(self._carry_out, batches))
        if reached:
            raise reached

    async def _carry_out(self, calls: dict[str, tuple[bytes, Need]]) -> None:
        name = uuid.uuid4().hex
        bounds = {key: most.usd for key, (_, most) in calls.items()}
        self._record(name, bounds, over=False)
        data = b"".join(line for line, _ in calls.values())
        upload = partial(self._client.files.create, file=(f"{name}.jsonl", data), purpose="batch")
        file = await self._patiently(upload)
        used = await self._collect(name, await self._patiently(partial(self._created, name, file.id)), bounds)
        for key, (_, most) in calls.items():
            if self._permits:
                self._permits.settle(most, used.get(key, Need()))

    async def _created(self, name: str, file: str) -> str:
        """The id of a batch: of the one that an attempt whose answer was lost has made, where there is one."""
        if name in self._attempted and (id := (await self._found()).get(name)):
            return id
        self._attempted.add(name)
        batch = await self._client.batches.create(
            input_file_id=file,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={_METADATA: name},
        )
        return batch.id

    async def _found(self) -> dict[str, str]:
        """The provider's batches that carry a record's name."""
        batches = [batch async for batch in self._client.batches.list(limit=100)]
        return {batch.metadata[_METADATA]: batch.id for batch in batches if _METADATA in (batch.metadata or {})}

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """A call that changes nothing where it is made again, until it is answered: a batch outlives an outage."""
        import openai

        for tries in count():
            try:
                return await call()
            except openai.APIStatusError as error:
                passing = fault(error, self._part)
                if not isinstance(passing, TryAgain) or tries == _TRIES:
                    raise (
                        BezoarError(str(passing)) if isinstance(passing, CallFailed | TryAgain) else passing
                    ) from error
            except (openai.APIError, ValueError) as error:
                if tries == _TRIES:
                    raise BezoarError(f"{self._part.base_url}: {error}. Run the same command again to go on") from error
            await asyncio.sleep(min(_POLL, 0.5 * 2**tries))

    async def _collect(self, name: str, id: str, calls: dict[str, float]) -> dict[str, Need]:
        """Wait for a batch; record its answers, and what each took."""
        while (batch := await self._patiently(partial(self._client.batches.retrieve, id))).status not in _OVER:
            await asyncio.sleep(_POLL)
        used: dict[str, Need] = {}
        faults = dict.fromkeys(calls, f"batch {batch.status} without an answer")
        for lines in _in_parts([line async for line in self._lines_of(batch)]):
            answered = {line["custom_id"]: reply for line in lines if (reply := _reply(line))}
            faults |= {line["custom_id"]: _fault(line) for line in lines}
            used |= dict(zip(answered, await asyncio.gather(*starmap(self._settle, answered.items())), strict=True))
        self._record(name, calls, over=True)
        if batch.status == "failed" and not used:
            raise BezoarError(f"{self._part.model}: batch {id} was refused: {_errors(batch)}")
        for key in calls.keys() - used.keys():
            self._fail(key, faults[key])
        return used

    async def _settle(self, key: str, reply: Reply) -> Need:
        usd = self._part.usd(reply.tokens_in, reply.tokens_out)
        await self._ledger.settle(key, self._part.model, reply, usd)
        return Need(reply.tokens_in + reply.tokens_out, usd)

    async def _lines_of(self, batch: Any) -> AsyncIterator[dict[str, Any]]:
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = await self._patiently(partial(self._client.files.content, file))
            for text in content.text.splitlines():
                yield orjson.loads(text)

    def _fail(self, key: str, reason: str) -> None:
        """One more batch without an answer to this call: it goes out again, as often as the recipe says."""
        self._tries[key] = self._tries.get(key, 0) + 1
        if self._tries[key] > self._part.retries:
            self._failed[key] = f"no answer in {self._tries[key]} batches: {reason}"

    def _record(self, name: str, calls: dict[str, float], over: bool) -> None:
        self._store.replace_json(f"{self._folder}/{name}.json", {"over": over, "calls": {} if over else calls})


def _reply(line: dict[str, Any]) -> Reply | None:
    """The answer in a line of an output file, where it holds one."""
    from openai.types.chat import ChatCompletion

    response = line.get("response") or {}
    if response.get("status_code") != 200:
        return None
    try:
        return read_reply(ChatCompletion.construct(**response["body"]))
    except ValueError:
        return None


def _fault(line: dict[str, Any]) -> str:
    response = line.get("response") or {}
    error = line.get("error") or (response.get("body") or {}).get("error") or {}
    return f"{response.get('status_code', '')} {error.get('code') or ''} {error.get('message') or ''}".strip()


def _errors(batch: Any) -> str:
    found = (batch.errors and batch.errors.data) or []
    return "; ".join(f"{error.code}: {error.message}" for error in found) or "no reason given"


def _in_parts(lines: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rest = iter(lines)
    while part := list(islice(rest, _AT_ONCE)):
        yield part


def _size(batch: dict[str, tuple[bytes, Need]]) -> int:
    return sum(len(line) for line, _ in batch.values())
