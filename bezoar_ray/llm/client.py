"""A model with its ledger: what the stages open, and bind to a row for each chain of calls."""

import asyncio
import random
from functools import partial

from bezoar_ray.llm.chat import CallFailed, Chat, Messages, Model, Reply, Sampling, TryAgain
from bezoar_ray.llm.ledger import Ledger, call_key
from bezoar_ray.recipe import ModelPart, Prices

_LONGEST_WAIT = 60.0  # seconds between two attempts


class Talker:
    """A model, its ledger and its limits. Every attempt goes through here and is accounted for."""

    def __init__(self, model: Model, ledger: Ledger, part: ModelPart):
        self._model, self._ledger, self._part = model, ledger, part
        self._sampling = Sampling(part.temperature, part.top_p, part.max_tokens)
        self._slots = asyncio.Semaphore(part.max_in_flight)

    def for_row(self, row: str) -> Chat:
        """The `Chat` of one row."""
        return partial(self._answer, row)

    async def close(self) -> None:
        """Free the model and end the ledger's segment."""
        await self._model.close()
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
        key = call_key(self._model.identity, messages, sampling, row, step, sample, attempt)
        return self._ledger.find(key) or await self._ask(key, messages, sampling)

    async def _ask(self, key: str, messages: Messages, sampling: Sampling) -> Reply:
        for tries in range(self._part.retries + 1):
            try:
                async with self._slots:
                    return await self._attempt(key, messages, sampling)
            except TryAgain as fault:
                reason, wait = fault, _wait(tries, fault.after)
            if tries < self._part.retries:
                await asyncio.sleep(wait)
        raise CallFailed(f"no answer after {self._part.retries + 1} attempts: {reason}")

    async def _attempt(self, key: str, messages: Messages, sampling: Sampling) -> Reply:
        bound = _bound(messages, sampling, self._part.prices)
        if bound:
            await self._ledger.intend(key, bound)
        try:
            reply = await self._model.complete(messages, sampling)
        except TryAgain as fault:
            await self._ledger.fail(key, self._part.model, str(fault), bound if fault.billed else 0.0)
            raise
        except CallFailed as fault:
            await self._ledger.fail(key, self._part.model, str(fault), 0.0)
            raise
        await self._ledger.settle(
            key, self._part.model, reply, cost(reply.tokens_in, reply.tokens_out, self._part.prices)
        )
        return reply


def open_talker(part: ModelPart, root: str, role: str, session: str, *, identity: str | None = None) -> Talker:
    """The model of a recipe entry, in this process, with the run directory's ledger of that role.

    `identity` names the checkpoint behind an endpoint, so that a retrained one never gets old answers. Call it where an
    event loop runs: in an async actor.
    """
    from bezoar_ray.llm.endpoint import OpenAIEndpoint
    from bezoar_ray.llm.engine import VllmEngine

    model = OpenAIEndpoint(part) if part.base_url else VllmEngine(part)
    if identity:
        model.identity = identity
    return Talker(model, Ledger(root, role, session), part)


def cost(tokens_in: float, tokens_out: float, prices: Prices) -> float:
    """Dollars for so many tokens."""
    return (tokens_in * prices.input + tokens_out * prices.output) / 1e6


def _bound(messages: Messages, sampling: Sampling, prices: Prices) -> float:
    """The most that one attempt can cost: no tokenizer makes more tokens than bytes."""
    size = sum(len(message["content"].encode()) for message in messages) + 16 * len(messages)
    return cost(size, sampling.max_tokens, prices)


def _wait(tries: int, asked: float | None) -> float:
    """Seconds before the next attempt: what the server asked for, else doubling with jitter."""
    return min(_LONGEST_WAIT, asked if asked is not None else 2**tries * random.uniform(0.5, 1.0))
