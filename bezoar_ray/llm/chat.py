"""Talking to a model: the protocols that teacher, judge and candidate share."""

from dataclasses import dataclass
from typing import Protocol

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Reply:
    """What a model said.

    Tokens are 0 where an endpoint does not say how many there were; such a call is paid for at its upper bound.
    """

    text: str
    finish_reason: str
    """Why it ended, in the provider's own word; `classify_finish_reason` says what that means."""
    tokens_in: int
    tokens_out: int
    """All that are billed, hidden reasoning included."""
    tokens_reasoning: int = 0
    """Those of `tokens_out` that the provider says were reasoning."""

    @property
    def is_cut_off(self) -> bool:
        """Whether the text is not whole: at its longest, or ended by a filter."""
        return classify_finish_reason(self.finish_reason) != "stop"


_WHOLE = {
    "",
    "stop",
    "eos",
    "eos_token",
    "end_turn",
    "stop_sequence",
    "stop_token",
    "tool_calls",
    "function_call",
}
_FILTERED = {
    "content_filter",
    "content_filtered",
    "safety",
    "recitation",
    "prohibited_content",
    "blocklist",
    "spii",
    "refusal",
    "sensitive",
    "guardrail_intervened",
    "image_safety",
}


def classify_finish_reason(finish_reason: str) -> str:
    """What a provider's finish reason means: `stop` (whole), `content_filter` or `length` (cut off, as by default).

    Seen: `length`, `stop`, `content_filter` (OpenAI), `max_tokens`, `end_turn`, `refusal` (Anthropic), `MAX_TOKENS`,
    `STOP`, `SAFETY`, `RECITATION` (Gemini), `model_length` (Mistral), `eos`, `eos_token`, `stop_sequence` (Together,
    text-generation-inference), `sensitive` (Zhipu), `abort` (vLLM), `insufficient_system_resource` (DeepSeek).
    """
    name = (
        finish_reason.strip().lower().replace("-", "_").removeprefix("finish_reason_")
    )
    if name in _WHOLE:
        return "stop"
    return "content_filter" if name in _FILTERED else "length"


@dataclass(frozen=True)
class Sampling:
    """Parameters that change what a model says; all of them are part of the ledger's key."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    schema: str = ""  # JSON schema that the answer has to follow


def unread(reply: Reply) -> str:
    """Why a reply holds no verdict, whatever it says: it is cut off. Empty where it is whole."""
    if not reply.is_cut_off:
        return ""
    if classify_finish_reason(reply.finish_reason) == "content_filter":
        return f"it was ended by a filter ({reply.finish_reason})"
    lost = reply.tokens_reasoning or not reply.text.strip()
    what = "the answer was lost to reasoning" if lost else "it was cut off"
    return f"{what} ({reply.finish_reason} after {reply.tokens_out:,} tokens): raise max_tokens"


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
        self,
        messages: Messages,
        *,
        step: str,
        sample: int = 0,
        attempt: int = 0,
        sampling: Sampling | None = None,
    ) -> Reply:
        """The reply, from the ledger where it holds one. Raises `CallFailed` for this call alone."""
        ...


class CallFailed(Exception):
    """This call failed for good (prompt refused or too long, no answer after retries); its row fails, others go on."""


class PromptTooLong(CallFailed):
    """The prompt leaves no room for an answer; a shorter one may."""


class Refused(CallFailed):
    """The endpoint refuses this call, and does not say whether it would take any other.

    `alike` is equal for calls that are refused in the same way: where it refuses them all, the recipe is at fault.
    """

    def __init__(self, reason: str, alike: str):
        super().__init__(reason)
        self.alike = alike


class Deferred(Exception):
    """The answer comes with the next batch; the row's chain is taken up again after it."""


class ModelDied(Exception):
    """The model in this process is gone; another process has to start it anew and make the calls again."""


class TryAgain(Exception):
    """A passing fault; `after` is the seconds that the server asked to wait, if it did.

    `limited` says that the server lives and wants fewer requests (429). `billed` is the tokens of the prompt and of the
    answer that have to be paid for: None where nobody knows, as an answer was perhaps made and lost.
    """

    def __init__(
        self,
        reason: str,
        after: float | None = None,
        limited: bool = False,
        billed: tuple[int, int] | None = None,
    ):
        super().__init__(reason)
        self.after, self.limited = after, limited
        self.billed = (0, 0) if limited else billed
