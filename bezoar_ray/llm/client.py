"""A model with its ledger: what the stages open, and bind to a row for each chain of calls."""

import asyncio
import contextlib
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial

from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.breaker import Breaker
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
from bezoar_ray.llm.ledger_index import Index
from bezoar_ray.llm.quota import Cost, QuotaClient
from bezoar_ray.llm.rate_control import AdaptiveConcurrency
from bezoar_ray.llm.reasoning import without_reasoning
from bezoar_ray.recipe import ModelSection
from bezoar_ray.runtime.logs import current_row, event
from bezoar_ray.store import Store

_LONGEST_WAIT = 60.0  # seconds between two attempts
_DEADLY = 3  # engines that died with a call in flight: the call is not made again
_HOPELESS = (
    8  # times all actors died without a single answer: the model cannot work here
)
_BYTES_PER_TOKEN = (
    4  # for limits of tokens a minute, which are no promise; money is reserved by bytes
)


class LedgerClient(ABC):
    """Calls to one model: what the ledger holds is answered from it, the rest is asked for."""

    def __init__(
        self,
        identity: str,
        ledger: Ledger,
        part: ModelSection,
        permits: QuotaClient | None = None,
    ):
        self._identity, self._ledger, self._part, self._permits = (
            identity,
            ledger,
            part,
            permits,
        )
        self._sampling = Sampling(part.temperature, part.top_p, part.max_tokens)

    def for_row(self, row: str) -> Chat:
        """The `Chat` of one row."""
        return partial(self._answer, row)

    async def close(self) -> None:
        """End the ledger's segment."""
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
        current_row.set(row)
        sampling = sampling or self._sampling
        key = call_key(self._identity, messages, sampling, row, step, sample, attempt)
        reply = self._ledger.find(key) or await self._ask(key, messages, sampling)
        return replace(
            reply, text=without_reasoning(reply.text)
        )  # the ledger keeps all of it

    @abstractmethod
    async def _ask(self, key: str, messages: Messages, sampling: Sampling) -> Reply:
        """The reply to a call that the ledger does not hold."""


class ModelClient(LedgerClient):
    """A model, its ledger and its limits. Every attempt goes through here and is accounted for.

    After a fault that no further call would survive (a wrong key, a budget that is reached, a dead engine), calls on
    their way end and are recorded; every other one is refused with the same fault.
    """

    def __init__(
        self,
        model: Model,
        ledger: Ledger,
        part: ModelSection,
        permits: QuotaClient | None = None,
    ):
        super().__init__(model.identity, ledger, part, permits)
        self._model = model
        self._slots = asyncio.Semaphore(part.max_in_flight)
        self._alone = asyncio.Lock()
        self._pace = AdaptiveConcurrency()
        self._breaker = Breaker(
            f"{part.model} at {part.base_url}", has_answered=ledger.has_answers
        )
        self._over: Exception | None = None
        self._waiting = self._under_way = 0
        ledger.figures.watch(
            "bezoar_calls_waiting", lambda: self._waiting, model=part.model
        )
        ledger.figures.watch(
            "bezoar_calls_in_flight", lambda: self._under_way, model=part.model
        )

    async def close(self) -> None:
        """Free the model and end the ledger's segment."""
        await self._model.close()
        await super().close()

    async def _ask(self, key: str, messages: Messages, sampling: Sampling) -> Reply:
        tries = 0
        while True:
            try:
                return await self._answered(key, messages, sampling, first=tries == 0)
            except TryAgain as fault:
                if fault.limited:  # its pace waits
                    continue
                tries += (
                    not self._breaker.is_open
                )  # then it is the endpoint's fault, not this call's
                wait = _wait(tries, fault.after)
                event(
                    "attempt failed",
                    logging.WARNING,
                    model=self._part.model,
                    tries=tries,
                    why=str(fault),
                )
                if tries > self._part.retries:
                    raise CallFailed(
                        f"no answer after {tries} attempts: {fault}"
                    ) from fault
            except CallFailed as fault:
                event(
                    "call failed",
                    logging.WARNING,
                    model=self._part.model,
                    why=str(fault),
                )
                raise
            except Exception as fault:
                self._stop(fault)
                raise
            await asyncio.sleep(wait)

    def _stop(self, fault: Exception) -> None:
        """Refuse every further call with this fault."""
        if not self._over:
            event(
                "no further call is made",
                logging.ERROR,
                model=self._part.model,
                why=str(fault),
            )
            self._over = fault

    async def _answered(
        self, key: str, messages: Messages, sampling: Sampling, first: bool
    ) -> Reply:
        """The reply to one attempt, durable. Its slot is free as soon as the reply is there."""
        most = cost_at_most(messages, sampling, self._part)
        try:
            async with self._suspects(key), self._slot():
                reply = await self._within_circuit(
                    partial(self._attempt, key, messages, sampling, most), first
                )
        except (TryAgain, CallFailed, BezoarError):
            await self._ledger.flushed()
            raise
        used = cost_of(reply, most, self._part)
        try:
            await self._ledger.record_usage(key, self._part.model, reply, used.usd)
        finally:
            self._record_usage(most, used)
        return reply

    async def _within_circuit(
        self, attempt: Callable[[], Awaitable[Reply]], first: bool
    ) -> Reply:
        """The reply to one attempt, through the circuit breaker."""
        try:
            return await self._breaker.run(attempt, first)
        except (TryAgain, CallFailed):
            raise
        except Exception as fault:
            self._stop(
                fault
            )  # before the slot is free: while the ledger is flushed, other calls would go out
            raise

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """One of the calls that may be under way at a time."""
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._slots.release()

    @contextlib.asynccontextmanager
    async def _suspects(self, key: str) -> AsyncIterator[None]:
        """Calls that were in flight when engines died go one at a time, so that the deadly one is found out; once may
        have been a node that was taken away, with hundreds of them."""
        deaths = 0 if self._part.base_url else self._ledger.deaths(key)
        if deaths >= _DEADLY:
            raise CallFailed(f"{deaths} engines died while they answered this")
        async with self._alone if deaths > 1 else contextlib.nullcontext():
            yield

    async def _attempt(
        self, key: str, messages: Messages, sampling: Sampling, most: Cost
    ) -> Reply:
        """The reply to one attempt. What it may take stays reserved; after a fault, what it took is settled."""
        if self._over:
            raise self._over
        if self._permits:
            await self._permits.take(most)
        try:
            return await self._sent(key, messages, sampling, most)
        except BaseException as fault:
            self._record_usage(most, cost_of_fault(fault, most, self._part))
            raise

    def _record_usage(self, most: Cost, used: Cost) -> None:
        if self._permits:
            self._permits.record_usage(most, used)

    async def _sent(
        self, key: str, messages: Messages, sampling: Sampling, most: Cost
    ) -> Reply:
        turn = await self._pace.turn()
        await self._ledger.check_held()
        if most.usd or not self._part.base_url:
            await self._ledger.intend(key, most.usd)
        try:
            return await self._model.complete(messages, sampling)
        except (TryAgain, CallFailed, BezoarError) as fault:
            if isinstance(fault, TryAgain) and fault.limited:
                self._pace.limited(turn, fault.after)
            self._ledger.fail(
                key,
                self._part.model,
                str(fault),
                cost_of_fault(fault, most, self._part).usd,
            )
            raise


def open_client(
    part: ModelSection,
    root: str,
    role: str,
    session: str,
    *,
    identity: str | None = None,
    permits: QuotaClient | None = None,
    index: Index | None = None,
) -> ModelClient:
    """The model of a recipe entry, in this process, with the run directory's ledger of that role.

    `identity` names the checkpoint behind an endpoint, so that a retrained one never gets old answers. `index` is that
    of the role's ledger, if it has been read. Call it where an event loop runs: in an async actor.

    Raises:
        BezoarError: the actors of this session keep dying before they answer anything.
    """
    from bezoar_ray.llm.endpoint import OpenAIEndpoint
    from bezoar_ray.llm.engine import VllmEngine

    endpoint = (
        OpenAIEndpoint(part) if part.base_url else None
    )  # first: without its key nothing is written
    ledger = Ledger(root, role, session, index)
    if ledger.fruitless > _HOPELESS * part.most_actors:
        log = Store(root).log(f"{role}.log")
        raise BezoarError(
            f"{part.model}: {ledger.fruitless} actors died before they answered anything; see {log}. "
            "Give it more memory, or fewer calls at a time (max_in_flight), and run the same command again"
        )
    model = endpoint or VllmEngine(part)
    if identity:
        model.identity = identity
    return ModelClient(model, ledger, part, permits)


def cost_at_most(messages: Messages, sampling: Sampling, part: ModelSection) -> Cost:
    """What one attempt takes at most: no tokenizer makes more tokens than bytes."""
    size = sum(len(message["content"].encode()) for message in messages) + 16 * len(
        messages
    )
    return Cost(
        size / _BYTES_PER_TOKEN + sampling.max_tokens,
        part.usd(size, sampling.max_tokens),
    )


def cost_of(reply: Reply, most: Cost, part: ModelSection) -> Cost:
    """What an attempt took: by the tokens that the endpoint counted, or at most, where it counted none."""
    if not reply.tokens_in:
        return most
    return Cost(
        reply.tokens_in + reply.tokens_out, part.usd(reply.tokens_in, reply.tokens_out)
    )


def cost_of_fault(fault: BaseException, most: Cost, part: ModelSection) -> Cost:
    """What an attempt that ended so takes: nothing where the endpoint refused it, and at most where nobody knows."""
    if isinstance(fault, CallFailed | BezoarError):
        return Cost()
    if not isinstance(fault, TryAgain) or fault.billed is None:
        return most
    return Cost(sum(fault.billed), part.usd(*fault.billed))


def _wait(tries: int, asked: float | None) -> float:
    """Seconds before the next attempt: what the server asked for, else doubling with jitter."""
    return min(
        _LONGEST_WAIT,
        asked
        if asked is not None
        else 2 ** max(0, tries - 1) * random.uniform(0.5, 1.0),
    )
