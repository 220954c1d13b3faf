"""Calls through a provider's batch interface (OpenAI's `/v1/batches`).

It costs half the price, and answers come within a day. A call that the ledger holds is
answered at once. Any other call is queued for the next batch, and `Deferred` ends its
row's chain until then.

A batch is recorded in `ledger/<role>/batches/` before it is created, and has the
record's name as metadata. After a crash, the next process finds the batch at the
provider and takes its answers, instead of paying for them again.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import orjson

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError, BudgetReached
from bezoar_ray.llm.breaker import REFUSALS_AT_START
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
from bezoar_ray.llm.endpoint import (
    open_openai_client,
    redact_key,
    sampling_parameters,
    status_exception,
)
from bezoar_ray.llm.ledger import Ledger
from bezoar_ray.llm.model_identity import identity
from bezoar_ray.llm.quota import Cost, QuotaClient
from bezoar_ray.llm.responses import read_fault, read_reply, to_exception
from bezoar_ray.recipe import ModelSection
from bezoar_ray.store import Store

if TYPE_CHECKING:
    from openai.types import Batch

T = TypeVar("T")

# OpenAI accepts 50,000 requests and 200 MB per batch.
_MAX_REQUESTS = 50_000
# 190 MiB are 199.2 of the provider's decimal megabytes.
_MAX_BYTES = 190 * 2**20
_ENDPOINT: Final = "/v1/chat/completions"
_POLL_SECONDS = 30.0
_MAX_RETRIES = 60  # of one request: they span an outage of about half an hour
_REPLIES_PER_FSYNC = 1_000
_FINAL_STATUSES = ("completed", "failed", "expired", "cancelled")
_METADATA = "bezoar_ray"


@dataclass(frozen=True)
class _Request:
    """One call of a batch."""

    line: bytes
    """Its line in the input file."""
    most: Cost
    """The most that it can cost."""


class BatchClient(LedgerClient):
    """One model's calls, queued and sent together.

    Only one process at a time may use it on a run directory.
    """

    def __init__(self, section: ModelSection, root: str, role: str, session: str):
        super().__init__(identity(section), Ledger(root, role, session), section)
        self._client = open_openai_client(section)
        self._store = Store(root)
        self._folder = f"{layout.ledger(role)}/batches"
        # Several teachers, or several judges, share the folder.
        self._owner = f"{self._identity} at {section.base_url}"
        self._endpoint_name = f"{section.model} at {section.base_url}"
        self._queue: dict[str, _Request] = {}
        self._queued_bytes = 0
        self._sending: list[asyncio.Task[None]] = []
        self._tries: dict[str, int] = {}
        self._failed: dict[str, str] = {}
        self._attempted: set[str] = set()

    def set_quota(self, quota: QuotaClient | None) -> None:
        """Make the calls of later batches wait for this quota."""
        self._quota = quota

    async def close(self) -> None:
        """Close the ledger's segment and the connections."""
        await self._client.close()
        await super().close()

    async def _request(self, key: str, messages: Messages, sampling: Sampling) -> Reply:
        if key in self._failed:
            # A row's chain is run again after each batch, and asks for the same key.
            raise CallFailed(self._failed[key])
        body = {
            "model": self._section.model,
            "messages": messages,
            **sampling_parameters(self._section.model, sampling),
        }
        # The key as `custom_id`, so that an answer finds its call even after a crash.
        line = {"custom_id": key, "method": "POST", "url": _ENDPOINT, "body": body}
        most = cost_at_most(messages, sampling, self._section)
        self._enqueue(key, _Request(orjson.dumps(line) + b"\n", most))
        raise Deferred

    async def collect_unfinished(self) -> None:
        """Take the answers of batches that an earlier process left in flight.

        The records of batches that were never created are closed.
        """
        unfinished: dict[str, dict[str, float]] = {}
        for path in self._store.list(self._folder, ".json"):
            record = self._store.read_json(path)
            if record["who"] == self._owner and not record["over"]:
                unfinished[Path(path).stem] = record["calls"]
        if not unfinished:
            return
        batch_ids = await self._retry(self._batch_ids)
        for name, calls in unfinished.items():
            if name in batch_ids:
                await self._collect(name, batch_ids[name], calls)
            else:
                # The process died between record and creation: nothing was sent, so
                # nothing is owed.
                self._write_record(name, {}, over=True)

    async def send_and_wait(self) -> None:
        """Send the queued calls, and wait for the answers of all batches.

        Raises:
            BudgetReached: Not all calls fit the budget. Those that fit are answered.
        """
        self._send_queue()
        sending = self._sending
        self._sending = []
        # All of them: a batch whose sibling failed is paid for, so
        # its answers are taken.
        results = await asyncio.gather(*sending, return_exceptions=True)
        faults = [result for result in results if isinstance(result, BaseException)]
        if not faults:
            return
        # Another fault says more than a budget that is reached.
        for fault in faults:
            if not isinstance(fault, BudgetReached):
                raise fault
        raise faults[0]

    def _enqueue(self, key: str, request: _Request) -> None:
        size = len(request.line)
        is_full = len(self._queue) == _MAX_REQUESTS
        if is_full or self._queued_bytes + size > _MAX_BYTES:
            self._send_queue()
        self._queue[key] = request
        self._queued_bytes += size

    def _send_queue(self) -> None:
        """Start to send the queued calls as one batch."""
        requests = self._queue
        self._queue = {}
        self._queued_bytes = 0
        if requests:
            self._sending.append(asyncio.create_task(self._run_batch(requests)))

    async def _run_batch(self, requests: dict[str, _Request]) -> None:
        """Reserve the calls' costs, send those that fit, and collect the answers.

        Raises:
            BudgetReached: Some calls were not sent.
        """
        reserved: dict[str, Cost] = {}
        budget_reached = None
        try:
            for key, request in requests.items():
                if self._quota:
                    # Not patient: what would be waited for is the money that
                    # this batch itself holds.
                    await self._quota.take(request.most, patient=False)
                reserved[key] = request.most
        except BudgetReached as error:
            budget_reached = error
        if reserved:
            data = b"".join(requests[key].line for key in reserved)
            requests.clear()  # up to 190 MB, which `data` holds once more
            used = await self._send(data, reserved)
            if self._quota:
                for key, most in reserved.items():
                    # Calls without an answer in either file are not billed.
                    self._quota.record_usage(most, used.get(key, Cost()))
        if budget_reached:
            raise budget_reached

    async def _send(self, data: bytes, reserved: dict[str, Cost]) -> dict[str, Cost]:
        """Send one batch, and return the cost of each call that it answers."""
        name = uuid.uuid4().hex
        calls = {key: most.usd for key, most in reserved.items()}
        # A batch of a command that was replaced would be paid for and never read.
        await self._ledger.check_owner()
        # Before the upload: from here on a crash leaves a trace that
        # the next process follows.
        self._write_record(name, calls, over=False)
        input_file = (f"{name}.jsonl", data)
        upload = partial(self._client.files.create, file=input_file, purpose="batch")
        file = await self._retry(upload)
        # An upload that is repeated costs nothing. A batch that is created twice does.
        batch_id = await self._retry(partial(self._create, name, file.id))
        return await self._collect(name, batch_id, calls)

    async def _create(self, name: str, file_id: str) -> str:
        """Create a batch and return its id.

        If the answer to an earlier attempt was lost, it may have created the batch.
        Then that one is used.
        """
        await self._ledger.check_owner()
        if name in self._attempted:
            batch_ids = await self._batch_ids()
            if name in batch_ids:
                return batch_ids[name]
        self._attempted.add(name)
        batch = await self._client.batches.create(
            input_file_id=file_id,
            endpoint=_ENDPOINT,
            completion_window="24h",
            metadata={_METADATA: name},
        )
        return batch.id

    async def _batch_ids(self) -> dict[str, str]:
        """Return the ids of the provider's batches by the name of our record."""
        batch_ids = {}
        async for batch in self._client.batches.list(limit=100):
            if batch.metadata and _METADATA in batch.metadata:
                batch_ids[batch.metadata[_METADATA]] = batch.id
        return batch_ids

    async def _retry(self, request: Callable[[], Awaitable[T]]) -> T:
        """Make a request until it is answered, since a batch outlives an outage.

        The request must be one that may be repeated.

        Raises:
            BezoarError: The fault is not transient, or the outage lasts too long.
        """
        import openai

        tries = 0
        while True:
            try:
                return await request()
            except openai.APIStatusError as error:
                # The same table of faults as for live calls, as an empty
                # account is one here, too.
                fault = status_exception(error.response, self._section)
                if not isinstance(fault, TryAgain) or tries == _MAX_RETRIES:
                    # There is no row here that could fail: a refusal of
                    # the batch ends the stage.
                    if isinstance(fault, CallFailed | TryAgain):
                        fault = BezoarError(str(fault))
                    raise fault from error
            except (openai.APIError, ValueError) as error:
                if tries == _MAX_RETRIES:
                    message = redact_key(str(error), self._section)
                    raise BezoarError(
                        f"{self._section.base_url}: {message}. "
                        "Run the same command again to resume"
                    ) from error
            await asyncio.sleep(min(_POLL_SECONDS, 0.5 * 2**tries))
            tries += 1

    async def _collect(
        self,
        name: str,
        batch_id: str,
        calls: dict[str, float],
    ) -> dict[str, Cost]:
        """Wait for a batch, and record its answers in the ledger.

        Args:
            name: The name of its record.
            batch_id: Its id at the provider.
            calls: The most dollars that each call can cost, by the call's key.

        Returns:
            What each answered call cost.

        Raises:
            BezoarError: The provider refused the batch, or all of its calls alike.
        """
        batch = await self._wait_for_batch(batch_id)
        used: dict[str, Cost] = {}
        faults: dict[str, Exception] = {}
        # Expired or refused calls are in the second file, answered ones in the first.
        for file_id in (batch.output_file_id, batch.error_file_id):
            if not file_id:
                continue
            lines = await self._retry(partial(self._read_file, file_id))
            for chunk in _chunks(lines):
                replies: dict[str, Reply] = {}
                for line in chunk:
                    result = self._read_line(line)
                    if isinstance(result, Reply):
                        replies[line["custom_id"]] = result
                    else:
                        faults[line["custom_id"]] = result
                used |= await self._record_replies(replies, calls)
        # Only after the answers are durable: a crash before this line reads them again.
        self._write_record(name, {}, over=True)
        # It failed as a whole, before any of its calls: the file
        # or the model is refused.
        if batch.status == "failed" and not used:
            errors = redact_key(_error_text(batch), self._section)
            raise BezoarError(
                f"{self._section.model}: batch {batch_id} was refused: {errors}"
            )
        if not self._ledger.has_answers:
            # Once anything was answered, the recipe works, and
            # refusals are the rows' own.
            _check_not_all_refused(calls, faults)
        # A batch that expires after 24 h answers some of its calls;
        # the rest go out again.
        no_answer = TryAgain(f"batch {batch.status} without an answer")
        for key in calls.keys() - used.keys():
            self._note_failure(key, faults.get(key, no_answer))
        return used

    async def _wait_for_batch(self, batch_id: str) -> "Batch":
        while True:
            retrieve = partial(self._client.batches.retrieve, batch_id)
            batch = await self._retry(retrieve)
            if batch.status in _FINAL_STATUSES:
                return batch
            await asyncio.sleep(_POLL_SECONDS)

    async def _read_file(self, file_id: str) -> list[dict[str, Any]]:
        response = await self._client.files.content(file_id)
        text = redact_key(response.content.decode(errors="replace"), self._section)
        # Not splitlines(), which also splits at characters that may be within an
        # answer.
        return [orjson.loads(line) for line in text.split("\n") if line.strip()]

    def _read_line(self, line: dict[str, Any]) -> Reply | Exception:
        """Read the reply, or the fault, of one call from an output or error file."""
        key_name = self._section.api_key_env
        response = line.get("response") or {}
        status = response.get("status_code") or 0
        body = response.get("body") or {}
        if status != 200:
            fault = read_fault(status, line if line.get("error") else body)
            return to_exception(fault, self._endpoint_name, key_name)
        try:
            return read_reply(body, self._endpoint_name, key_name)
        except Exception as error:
            return error

    async def _record_replies(
        self,
        replies: dict[str, Reply],
        calls: dict[str, float],
    ) -> dict[str, Cost]:
        """Write replies to the ledger together, so that they share an fsync."""
        used = {}
        writes = []
        for key, reply in replies.items():
            most = Cost(usd=calls.get(key, 0.0))
            used[key] = cost_of(reply, most, self._section)
            # A process that died while it recorded this batch has written some of them.
            if key not in self._ledger:
                write = self._ledger.record_usage(
                    key, self._section.model, reply, used[key].usd
                )
                writes.append(write)
        await asyncio.gather(*writes)
        return used

    def _note_failure(self, key: str, fault: Exception) -> None:
        """Note that a batch did not answer a call.

        The call is sent again as often as the recipe says, if that can help.

        Raises:
            BezoarError: No call would be answered.
        """
        if isinstance(fault, BezoarError):
            raise fault
        self._tries[key] = self._tries.get(key, 0) + 1
        if isinstance(fault, CallFailed) or self._tries[key] > self._section.retries:
            self._failed[key] = f"no answer in {self._tries[key]} batches: {fault}"

    def _write_record(self, name: str, calls: dict[str, float], over: bool) -> None:
        record = {"who": self._owner, "over": over, "calls": calls}
        self._store.replace_json(f"{self._folder}/{name}.json", record)


def _check_not_all_refused(
    calls: dict[str, float],
    faults: dict[str, Exception],
) -> None:
    """Check that not all calls of a batch were refused for something they share.

    Raises:
        BezoarError: All were refused in the same way.
    """
    refusals = [fault for fault in faults.values() if isinstance(fault, Refused)]
    if len(refusals) != len(calls) or len(refusals) < REFUSALS_AT_START:
        return
    if len({refusal.alike for refusal in refusals}) == 1:
        raise BezoarError(
            f"all {len(refusals)} calls were refused in the same way, so the recipe is "
            f"at fault and not the rows: {refusals[0]}. "
            "Correct it, and run the same command again"
        )


def _error_text(batch: "Batch") -> str:
    errors = (batch.errors and batch.errors.data) or []
    messages = [f"{error.code}: {error.message}" for error in errors]
    return "; ".join(messages) or "no reason given"


def _chunks(lines: list[T]) -> Iterator[list[T]]:
    """Yield lists of up to `_REPLIES_PER_FSYNC` lines."""
    rest = iter(lines)
    while True:
        chunk = list(islice(rest, _REPLIES_PER_FSYNC))
        if not chunk:
            return
        yield chunk
