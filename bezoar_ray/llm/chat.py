"""Talking to a model: the protocols that teacher, judge and candidate share."""

from dataclasses import dataclass
from typing import Protocol

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Reply:
    """What a model said. `finish_reason` is `stop` or `length`, as in the OpenAI API; a `length` answer is cut off.

    Tokens are 0 where an endpoint does not say how many there were; such a call is paid for at its upper bound.
    """

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
    schema: str = ""  # JSON schema that the answer has to follow


class Model(Protocol):
    """A model that answers: `VllmEngine` in this process, or `OpenAIEndpoint` over HTTP."""

    identity: str  # equal identities give exchangeable answers

    async def complete(self, messages: Messages, sampling: Sampling) -> Reply:
        """One attempt at one answer.

        Raises:
            TryAgain: a passing fault.
            CallFailed: this call will never be answered.
            BezoarError: no call will be answered (wrong key, unknown model).
            ModelDied: none will be answered by this process.
        """
        ...

    async def close(self) -> None:
        """Free the model."""
        ...


class Chat(Protocol):
    """What a scheme or judge is given: a model with its ledger, bound to one row.

    `step`, `sample` and `attempt` tell the calls of one row apart: "evolve/2", the second of three answers, asked
    again because the first reply could not be read.
    """

    async def __call__(
        self, messages: Messages, *, step: str, sample: int = 0, attempt: int = 0, sampling: Sampling | None = None
    ) -> Reply:
        """The reply, from the ledger where it holds one. Raises `CallFailed` for this call alone."""
        ...


class CallFailed(Exception):
    """This call failed for good (prompt refused or too long, no answer after retries); its row fails, others go on."""


class PromptTooLong(CallFailed):
    """The prompt leaves no room for an answer; a shorter one may."""


class Deferred(Exception):
    """The answer comes with the next batch; the row's chain is taken up again after it."""


class ModelDied(Exception):
    """The model in this process is gone; another process has to start it anew and make the calls again."""


class TryAgain(Exception):
    """A passing fault; `after` is the seconds that the server asked to wait, if it did.

    `limited` says that the server lives and wants fewer requests (429); any other attempt may have to be paid for, as
    an answer was perhaps made and lost.
    """

    def __init__(self, reason: str, after: float | None = None, limited: bool = False):
        super().__init__(reason)
        self.after, self.limited = after, limited
