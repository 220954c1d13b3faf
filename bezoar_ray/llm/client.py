"""The client of a model: every call of a stage goes through here.

A call is looked up in the ledger. If it is not there, it is admitted (by a slot, the
circuit breaker, the quota and the rate control), recorded as an intent, sent, and
recorded with its answer and usage.
"""

import asyncio
import contextlib
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.breaker import CircuitBreaker
from bezoar_ray.llm.chat import (
    CallFailed,
    Chat,
    Messages,
    Model,
    Reply,
    Sampling,
    TryAgain,
)
from bezoar_ray.llm.ledger import Ledger, call_key
from bezoar_ray.llm.ledger_index import LedgerIndex
from bezoar_ray.llm.quota import Cost, QuotaClient
from bezoar_ray.llm.rate_control import AdaptiveConcurrency, SentRequest
from bezoar_ray.llm.reasoning import without_reasoning
from bezoar_ray.recipe import ModelSection, RowJudge
from bezoar_ray.runtime.logs import current_row, event
from bezoar_ray.store import Store

# Other waits than those of a 429, whose Retry-After the rate control obeys in full.
_MAX_RETRY_WAIT = 60.0  # seconds
_SUSPECT_DEATHS = 2
"""Engines that died with a call in flight: from then on, it runs without company."""
_DEADLY_DEATHS = 3
"""Engines that died with a call in flight: it is not sent again."""
_MAX_FRUITLESS_DEATHS = 8
"""Deaths of all actors without a single answer, after which the model cannot work."""
# An average, for the limit of tokens per minute. Dollars are reserved by bytes.
_BYTES_PER_TOKEN = 4
_MESSAGE_OVERHEAD = 16  # bytes that a chat template adds to a message, at most


class LedgerClient(ABC):
    """Calls to one model: the ledger answers those that it holds.

    Args:
        identity: Of the model; equal identities give exchangeable answers.
        ledger: Of the run directory and role.
        section: The model's recipe section.
        quota: The shared limits of the run; None if nothing is limited.
    """

    def __init__(
        self,
        identity: str,
        ledger: Ledger,
        section: ModelSection,
        quota: QuotaClient | None = None,
    ):
        self._identity = identity
        self._ledger = ledger
        self._section = section
        self._quota = quota
        self._sampling = Sampling(
            section.temperature, section.top_p, section.max_tokens
        )

    def for_row(self, row: str) -> Chat:
        """Return the `Chat` of one row."""
        return partial(self._call, row)

    async def close(self) -> None:
        """Report the last usage and close the ledger's segment."""
        if self._quota:
            await self._quota.close()
        await self._ledger.close()

    async def _call(
        self,
        row: str,
        messages: Messages,
        *,
        step: str,
        sample: int = 0,
        attempt: int = 0,
        sampling: Sampling | None = None,
    ) -> Reply:
        """Answer one call, from the ledger or by the model; see `Chat`."""
        # A context variable, since log lines of nested calls do not know their row.
        current_row.set(row)
        sampling = sampling or self._sampling
        key = call_key(self._identity, messages, sampling, row, step, sample, attempt)
        reply = self._ledger.find(key)
        if reply is None:
            reply = await self._request(key, messages, sampling)
        # The ledger keeps the reasoning. Schemes and judges do not see it.
        text = without_reasoning(reply.text)
        return reply if text is reply.text else replace(reply, text=text)

    @abstractmethod
    async def _request(self, key: str, messages: Messages, sampling: Sampling) -> Reply:
        """Ask the model; the ledger does not hold this call."""


class ModelClient(LedgerClient):
    """A model with its ledger and limits; every attempt is limited and accounted for.

    A fault that no other call would survive (a wrong key, a budget that is reached, a
    dead engine) stops the client: calls in flight finish and are recorded, all others
    are refused with the same fault.
    """

    def __init__(
        self,
        model: Model,
        ledger: Ledger,
        section: ModelSection,
        quota: QuotaClient | None = None,
    ):
        super().__init__(model.identity, ledger, section, quota)
        self._model = model
        # Per process: limits of the whole cluster are the quota's.
        self._slots = asyncio.Semaphore(section.max_in_flight)
        self._suspects = asyncio.Lock()
        self._rate = AdaptiveConcurrency()
        self._breaker = CircuitBreaker(
            f"{section.model} at {section.base_url}",
            has_earlier_answers=ledger.has_answers,
        )
        self._stopped_by: Exception | None = None
        self._waiting = 0
        self._in_flight = 0
        ledger.metrics.watch(
            "bezoar_calls_waiting", lambda: self._waiting, model=section.model
        )
        ledger.metrics.watch(
            "bezoar_calls_in_flight", lambda: self._in_flight, model=section.model
        )

    async def close(self) -> None:
        """Free the model and close the ledger's segment."""
        await self._model.close()
        await super().close()

    async def _request(self, key: str, messages: Messages, sampling: Sampling) -> Reply:
        """Make attempts until one is answered or the retries are used up."""
        failures = 0
        while True:
            is_first = failures == 0
            try:
                return await self._attempt(key, messages, sampling, is_first)
            except TryAgain as fault:
                if fault.limited:  # the rate control makes the next attempt wait
                    # A 429 uses no retry up: a busy hour of the
                    # provider must not fail rows.
                    continue
                # While the circuit is open, the fault is the endpoint's, not the call's.
                if not self._breaker.is_open:
                    failures += 1
                self._log("attempt failed", logging.WARNING, fault, tries=failures)
                if failures > self._section.retries:
                    raise CallFailed(
                        f"no answer after {failures} attempts: {fault}"
                    ) from fault
                wait = _retry_wait(failures, fault.after)
            except CallFailed as fault:
                self._log("call failed", logging.WARNING, fault)
                raise
            await asyncio.sleep(wait)

    async def _attempt(
        self, key: str, messages: Messages, sampling: Sampling, is_first: bool
    ) -> Reply:
        """Make one attempt: admit it, record the intent, send it, record the answer."""
        reserved = cost_at_most(messages, sampling, self._section)
        used: Cost | None = None  # until the quota grants the attempt
        try:
            # The slot is free as soon as the reply is there; recording needs none.
            async with self._slot(key), self._breaker.attempt(is_first):
                if self._stopped_by:
                    raise self._stopped_by
                if self._quota:
                    await self._quota.take(reserved)
                # Granted but not sent: if it is cancelled from here on, all
                # goes back to the quota.
                used = Cost()
                request = await self._rate.admit()
                # The waits above may have taken minutes, in which another
                # command may own the run.
                await self._ledger.check_owner()
                # Free calls of an endpoint need no intent: there is no money in it, and
                # no engine that could die of it. It saves an fsync per call.
                if reserved.usd or not self._section.base_url:
                    await self._ledger.intend(key, reserved.usd)
                # From here on the provider may charge for it, even if
                # this task is cancelled.
                used = reserved
                try:
                    reply = await self._model.complete(messages, sampling)
                except (TryAgain, CallFailed, BezoarError) as fault:
                    used = self._record_fault(key, request, fault, reserved)
                    raise
            used = cost_of(reply, reserved, self._section)
            # Outside of the slot: the next call goes out during the fsync.
            await self._ledger.record_usage(key, self._section.model, reply, used.usd)
            return reply
        except (TryAgain, CallFailed):
            # The row's failure is acted on only after its cost is durable.
            await self._ledger.flushed()
            raise
        except Exception as fault:
            # Before the next await: while the ledger is flushed, calls would go out.
            self._stop(fault)
            await self._ledger.flushed()
            raise
        finally:
            # Whatever happened: dollars that stay reserved would be
            # lost to all other calls.
            if self._quota and used is not None:
                self._quota.record_usage(reserved, used)

    @contextlib.asynccontextmanager
    async def _slot(self, key: str) -> AsyncIterator[None]:
        """Own one of the `max_in_flight` slots.

        Calls that were in flight when two engines died run one at a time, to find out
        which of them is deadly. One death does not count: it may be that of a node that
        was taken away, with hundreds of calls in flight.

        Raises:
            CallFailed: Three engines died with this call in flight.
        """
        # An endpoint does not die of a call.
        deaths = 0 if self._section.base_url else self._ledger.deaths(key)
        if deaths >= _DEADLY_DEATHS:
            # Fails the row and not the run: one prompt must not take a stage with it.
            raise CallFailed(f"{deaths} engines died while they answered this call")
        is_suspect = deaths >= _SUSPECT_DEATHS
        if is_suspect:
            await self._suspects.acquire()
        try:
            self._waiting += 1
            try:
                await self._slots.acquire()
            finally:
                self._waiting -= 1
            self._in_flight += 1
            try:
                yield
            finally:
                self._in_flight -= 1
                self._slots.release()
        finally:
            if is_suspect:
                self._suspects.release()

    def _record_fault(
        self, key: str, request: SentRequest, fault: Exception, reserved: Cost
    ) -> Cost:
        """Record an attempt that ended without an answer, and return its cost."""
        if isinstance(fault, TryAgain) and fault.limited:
            self._rate.record_limit(request, fault.after)
        used = cost_of_fault(fault, reserved, self._section)
        self._ledger.fail(key, self._section.model, str(fault), used.usd)
        return used

    def _stop(self, fault: Exception) -> None:
        """Refuse all later calls with this fault."""
        if not self._stopped_by:
            self._log("no further call is made", logging.ERROR, fault)
            self._stopped_by = fault

    def _log(self, what: str, level: int, fault: Exception, **fields: object) -> None:
        event(what, level, model=self._section.model, **fields, why=str(fault))


def open_client(
    section: ModelSection,
    root: str,
    role: str,
    session: str,
    *,
    identity: str | None = None,
    quota: QuotaClient | None = None,
    index: LedgerIndex | None = None,
) -> ModelClient:
    """Open the model of a recipe section in this process, with its role's ledger.

    Call it where an event loop runs: in an async actor.

    Args:
        section: The model's recipe section.
        root: The run directory.
        role: Of the ledger: who is called.
        session: The command that owns the run directory.
        identity: Of the checkpoint behind an endpoint, so that a retrained one never
            gets old answers. By default, that of the section's model.
        quota: The shared limits of the run.
        index: Of the role's ledger, if it was read before.

    Raises:
        BezoarError: The actors of this session die before they answer anything.
    """
    from bezoar_ray.llm.endpoint import OpenAIEndpoint

    # Before the ledger: without the endpoint's key, nothing is written.
    endpoint = OpenAIEndpoint(section) if section.base_url else None
    ledger = Ledger(root, role, session, index)
    deaths = ledger.fruitless_deaths
    # Times the actors: those that live count as well, until their first answer.
    if deaths > _MAX_FRUITLESS_DEATHS * section.most_actors:
        log = Store(root).log(f"{role}.log")
        raise BezoarError(
            f"{section.model}: {deaths} actors died before they answered anything; "
            f"see {log}. Give the model more memory or fewer calls at a time "
            "(max_in_flight), and run the same command again"
        )
    # Last: an engine takes up to a minute to start, which a
    # refusal should not wait for.
    model = endpoint or _start_model(section)
    if identity:
        model.identity = identity
    return ModelClient(model, ledger, section, quota)


def _start_model(section: ModelSection) -> Model:
    """Start a model that runs in this process."""
    from bezoar_ray.llm.engine import VllmEngine
    from bezoar_ray.llm.reward_engine import RewardEngine

    if isinstance(section, RowJudge) and section.reward:
        return RewardEngine(section)
    return VllmEngine(section)


def cost_at_most(messages: Messages, sampling: Sampling, section: ModelSection) -> Cost:
    """Return an upper bound of an attempt's cost.

    Dollars count a token for each byte, since no tokenizer makes more of them.
    """
    size = _MESSAGE_OVERHEAD * len(messages)
    for message in messages:
        size += len(message["content"].encode())
    tokens = size / _BYTES_PER_TOKEN + sampling.max_tokens
    return Cost(tokens, section.usd(size, sampling.max_tokens))


def cost_of(reply: Reply, reserved: Cost, section: ModelSection) -> Cost:
    """Return the cost of an answer: the upper bound if the endpoint counts no tokens."""
    # Some servers leave `usage` out. A budget must hold against them, too.
    if not reply.tokens_in:
        return reserved
    tokens = reply.tokens_in + reply.tokens_out
    return Cost(tokens, section.usd(reply.tokens_in, reply.tokens_out))


def cost_of_fault(fault: Exception, reserved: Cost, section: ModelSection) -> Cost:
    """Return the cost of an attempt without an answer.

    It is zero if the endpoint refused the call, and the upper bound if the endpoint may
    have answered and the answer was lost.
    """
    if not isinstance(fault, TryAgain):
        return Cost()
    if fault.billed is None:
        return reserved
    return Cost(sum(fault.billed), section.usd(*fault.billed))


def _retry_wait(failures: int, requested: float | None) -> float:
    """Seconds before the next attempt: the server's wish, or doubling with jitter."""
    if requested is None:
        # Jitter, since calls that failed together would else come back together.
        requested = 2 ** max(0, failures - 1) * random.uniform(0.5, 1.0)
    return min(_MAX_RETRY_WAIT, requested)
