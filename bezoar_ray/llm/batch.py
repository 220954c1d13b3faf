"""Calls through a provider's batch interface (OpenAI's `/v1/batches`): half the price, answers within a day.

A call that the ledger holds is answered at once; any other is put down for the next batch, and `Deferred` ends its
row's chain until then. A batch is recorded in `ledger/<role>/batches/` before it is created, and carries that record's
name as metadata: a process that comes after a crash finds it at the provider and takes its answers, instead of paying
again.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError, BudgetReached
from bezoar_ray.llm.breaker import REFUSED_FIRST
from bezoar_ray.llm.chat import (
    CallFailed,
    Deferred,
    Messages,
    Refused,
    Reply,
    Sampling,
    TryAgain,
)
from bezoar_ray.llm.client import LedgerClient, cost_at_most, cost_of
from bezoar_ray.llm.endpoint import fault, open_client, parameters, redacted
from bezoar_ray.llm.ledger import Ledger
from bezoar_ray.llm.model_identity import identity
from bezoar_ray.llm.quota import Cost, QuotaClient
from bezoar_ray.llm.responses import read_fault, read_reply, to_exception
from bezoar_ray.recipe import ModelSection
from bezoar_ray.store import Store

if TYPE_CHECKING:
    from openai.types import Batch

T = TypeVar("T")

_LINES, _BYTES = 50_000, 190 * 2**20  # OpenAI takes 50,000 requests and 200 MB
_POLL = 30.0  # seconds
_TRIES = 60  # of one request, about half an hour of an outage
_AT_ONCE = 1_000  # answers that share an fsync
_OVER = ("completed", "failed", "expired", "cancelled")
_METADATA = "bezoar_ray"


class BatchClient(LedgerClient):
    """One model's calls, put down and sent together. One process at a time talks to a run directory so."""

    def __init__(self, part: ModelSection, root: str, role: str, session: str):
        super().__init__(identity(part), Ledger(root, role, session), part)
        self._client = open_client(part)
        self._store, self._folder = Store(root), f"{layout.ledger(role)}/batches"
        self._who = f"{self._identity} at {part.base_url}"  # teachers, or judges, share a folder
        self._asked: dict[str, tuple[bytes, Cost]] = {}
        self._size = 0
        self._on_their_way: list[asyncio.Task[None]] = []
        self._tries: dict[str, int] = {}
        self._failed: dict[str, str] = {}
        self._attempted: set[str] = set()

    def set_quota(self, permits: QuotaClient | None) -> None:
        """From now on, calls wait for these."""
        self._permits = permits

    async def close(self) -> None:
        """End the ledger's segment, and close the connections."""
        await self._client.close()
        await super().close()

    async def _ask(self, key: str, messages: Messages, sampling: Sampling) -> Reply:
        if key in self._failed:
            raise CallFailed(self._failed[key])
        body = {
            "model": self._part.model,
            "messages": messages,
            **parameters(self._part.model, sampling),
        }
        line = {
            "custom_id": key,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body,
        }
        self._put_down(
            key,
            orjson.dumps(line) + b"\n",
            cost_at_most(messages, sampling, self._part),
        )
        raise Deferred

    async def collect_unfinished(self) -> None:
        """Take the answers of batches that an earlier process has left on their way; forget those never created."""
        records = {
            name: self._store.read_json(name)
            for name in self._store.list(self._folder, ".json")
        }
        mine = {
            Path(name).stem: r["calls"]
            for name, r in records.items()
            if r["who"] == self._who and not r["over"]
        }
        found = await self._patiently(self._found) if mine else {}
        for name, calls in mine.items():
            if name in found:
                await self._collect(name, found[name], calls)
            else:
                self._record(name, {}, over=True)

    async def send_and_wait(self) -> None:
        """Send what is left to be sent, and wait for all answers.

        Raises:
            BudgetReached: not all of it may go out; what could is answered by then.
        """
        self._dispatch()
        on_their_way, self._on_their_way = self._on_their_way, []
        ended = await asyncio.gather(*on_their_way, return_exceptions=True)
        faults = [error for error in ended if isinstance(error, BaseException)]
        if faults:
            raise min(faults, key=lambda error: isinstance(error, BudgetReached))

    def _put_down(self, key: str, line: bytes, most: Cost) -> None:
        if len(self._asked) == _LINES or self._size + len(line) > _BYTES:
            self._dispatch()
        self._asked[key] = line, most
        self._size += len(line)

    def _dispatch(self) -> None:
        """What was put down goes on its way."""
        calls, self._asked, self._size = self._asked, {}, 0
        if calls:
            self._on_their_way.append(asyncio.create_task(self._carry_out(calls)))

    async def _carry_out(self, calls: dict[str, tuple[bytes, Cost]]) -> None:
        name, most, reached = uuid.uuid4().hex, dict[str, Cost](), None
        try:
            for key, (_, need_of_call) in calls.items():
                if self._permits:
                    await self._permits.take(need_of_call, patient=False)
                most[key] = need_of_call
        except BudgetReached as error:
            reached = error
        if most:
            data = b"".join(calls[key][0] for key in most)
            calls.clear()
            used = await self._sent(
                name, data, {key: bound.usd for key, bound in most.items()}
            )
            if self._permits:
                for key, bound in most.items():
                    self._permits.record_usage(bound, used.get(key, Cost()))
        if reached:
            raise reached

    async def _sent(
        self, name: str, data: bytes, bounds: dict[str, float]
    ) -> dict[str, Cost]:
        await self._ledger.check_held()
        self._record(name, bounds, over=False)
        upload = partial(
            self._client.files.create, file=(f"{name}.jsonl", data), purpose="batch"
        )
        file = await self._patiently(upload)
        return await self._collect(
            name, await self._patiently(partial(self._created, name, file.id)), bounds
        )

    async def _created(self, name: str, file: str) -> str:
        """The id of a batch: of the one that an attempt whose answer was lost has made, where there is one."""
        await self._ledger.check_held()
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
        return {
            batch.metadata[_METADATA]: batch.id
            for batch in batches
            if batch.metadata and _METADATA in batch.metadata
        }

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """A call that changes nothing where it is made again, until it is answered: a batch outlives an outage."""
        import openai

        tries = 0
        while True:
            try:
                return await call()
            except openai.APIStatusError as error:
                passing = fault(error, self._part)
                if not isinstance(passing, TryAgain) or tries == _TRIES:
                    raise (
                        BezoarError(str(passing))
                        if isinstance(passing, CallFailed | TryAgain)
                        else passing
                    ) from error
            except (openai.APIError, ValueError) as error:
                if tries == _TRIES:
                    said = redacted(str(error), self._part)
                    raise BezoarError(
                        f"{self._part.base_url}: {said}. Run the same command again to go on"
                    ) from error
            await asyncio.sleep(min(_POLL, 0.5 * 2**tries))
            tries += 1

    async def _collect(
        self, name: str, id: str, calls: dict[str, float]
    ) -> dict[str, Cost]:
        """Wait for a batch; record its answers, and what each took."""
        while (
            batch := await self._patiently(partial(self._client.batches.retrieve, id))
        ).status not in _OVER:
            await asyncio.sleep(_POLL)
        used: dict[str, Cost] = {}
        faults: dict[str, Exception] = {}
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            for lines in _in_parts(
                await self._patiently(partial(self._lines_of, file))
            ):
                read = {line["custom_id"]: self._read(line) for line in lines}
                answered = {
                    key: reply
                    for key, reply in read.items()
                    if isinstance(reply, Reply)
                }
                faults |= {
                    key: error
                    for key, error in read.items()
                    if isinstance(error, Exception)
                }
                settled = await asyncio.gather(
                    *(self._settle(key, answered[key], calls) for key in answered)
                )
                used |= dict(zip(answered, settled, strict=True))
        self._record(name, {}, over=True)
        if batch.status == "failed" and not used:
            said = redacted(_errors(batch), self._part)
            raise BezoarError(f"{self._part.model}: batch {id} was refused: {said}")
        if not self._ledger.has_answers:
            _check_some_taken(calls, faults)
        for key in calls.keys() - used.keys():
            self._fail(
                key,
                faults.get(key) or TryAgain(f"batch {batch.status} without an answer"),
            )
        return used

    def _read(self, line: dict[str, Any]) -> Reply | Exception:
        """What a line of an output or error file says of its call."""
        where, key_name = (
            f"{self._part.model} at {self._part.base_url}",
            self._part.api_key_env,
        )
        response = line.get("response") or {}
        status, body = response.get("status_code") or 0, response.get("body") or {}
        if status != 200:
            return to_exception(
                read_fault(status, line if line.get("error") else body), where, key_name
            )
        try:
            return read_reply(body, where, key_name)
        except Exception as error:
            return error

    async def _settle(self, key: str, reply: Reply, calls: dict[str, float]) -> Cost:
        used = cost_of(reply, Cost(usd=calls.get(key, 0.0)), self._part)
        if (
            key not in self._ledger
        ):  # where a process died while it recorded a batch, some of it is there
            await self._ledger.record_usage(key, self._part.model, reply, used.usd)
        return used

    async def _lines_of(self, file: str) -> list[dict[str, Any]]:
        content = (await self._client.files.content(file)).content
        text = redacted(content.decode(errors="replace"), self._part)
        return [orjson.loads(line) for line in text.split("\n") if line.strip()]

    def _fail(self, key: str, error: Exception) -> None:
        """A batch without an answer to this call: it goes out again as often as the recipe says, if that can help.

        Raises:
            BezoarError: no call would be answered.
        """
        if isinstance(error, BezoarError):
            raise error
        self._tries[key] = self._tries.get(key, 0) + 1
        if isinstance(error, CallFailed) or self._tries[key] > self._part.retries:
            self._failed[key] = f"no answer in {self._tries[key]} batches: {error}"

    def _record(self, name: str, calls: dict[str, float], over: bool) -> None:
        record = {"who": self._who, "over": over, "calls": calls}
        self._store.replace_json(f"{self._folder}/{name}.json", record)


def _check_some_taken(calls: dict[str, float], faults: dict[str, Exception]) -> None:
    """Whether the lines of a batch were refused for what they have in common.

    Raises:
        BezoarError: all were refused in the same way.
    """
    refused = [error for error in faults.values() if isinstance(error, Refused)]
    if (
        len(refused) == len(calls) >= REFUSED_FIRST
        and len({error.alike for error in refused}) == 1
    ):
        raise BezoarError(
            f"all {len(refused)} calls were refused in the same way, so the recipe is at fault and not the rows: "
            f"{refused[0]}. Correct it, and run the same command again"
        )


def _errors(batch: "Batch") -> str:
    found = (batch.errors and batch.errors.data) or []
    return (
        "; ".join(f"{error.code}: {error.message}" for error in found)
        or "no reason given"
    )


def _in_parts(lines: list[T]) -> Iterator[list[T]]:
    rest = iter(lines)
    while part := list(islice(rest, _AT_ONCE)):
        yield part
