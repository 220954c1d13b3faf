"""Talking to a model: the one protocol that teacher, judge and candidate share."""

from dataclasses import dataclass
from typing import Protocol

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Reply:
    """What a model said. `finish_reason` is `stop` or `length`, as in the OpenAI API; a `length` answer is cut off."""

    text: str
    finish_reason: str
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class Sampling:
    """Parameters that change what a model says; all of them are part of the ledger's key."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int | None = None


class Model(Protocol):
    """A model that answers: `VllmEngine` in this process, or `OpenAIEndpoint` over HTTP."""

    identity: str  # `name@revision` or a checkpoint's fingerprint: equal identities give exchangeable answers

    async def complete(self, messages: Messages, sampling: Sampling) -> Reply:
        """One answer. Raises `CallFailed` for a fault of this call alone, any other error for a dead model."""
        ...


class Chat(Protocol):
    """What a scheme or judge is given: a model with its ledger, bound to one row.

    `step` and `sample` tell the calls of one row apart ("evolve/2", the second of three answers).
    """

    async def __call__(
        self, messages: Messages, *, step: str, sample: int = 0, sampling: Sampling | None = None
    ) -> Reply: ...


class CallFailed(Exception):
    """This call failed for good (refused prompt, too long, no answer after retries); its row fails, others go on."""
