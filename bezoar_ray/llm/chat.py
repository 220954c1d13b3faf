"""The protocols for talking to a model, shared by teacher, judge and candidate."""

from dataclasses import dataclass
from typing import Protocol

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Reply:
    """One answer of a model.

    Token counts are 0 where an endpoint does not report them. Such a call is charged at
    its upper bound.
    """

    text: str
    finish_reason: str
    """Why the answer ended, as the provider says it; see `classify_finish_reason`."""
    tokens_in: int
    tokens_out: int
    """All billed output tokens, hidden reasoning included."""
    tokens_reasoning: int = 0
    """The part of `tokens_out` that the provider reports as reasoning."""

    @property
    def is_cut_off(self) -> bool:
        """Whether the text is incomplete: at `max_tokens`, or ended by a filter."""
        return classify_finish_reason(self.finish_reason) != "stop"


_COMPLETE = {
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
    """Map a provider's finish reason to `stop`, `content_filter` or `length`.

    Seen: `length`, `stop`, `content_filter` (OpenAI), `max_tokens`, `end_turn`,
        `refusal`
    (Anthropic), `MAX_TOKENS`, `STOP`, `SAFETY`, `RECITATION` (Gemini), `model_length`
    (Mistral), `eos`, `eos_token`, `stop_sequence` (Together,
    text-generation-inference), `sensitive` (Zhipu), `abort` (vLLM),
    `insufficient_system_resource` (DeepSeek).

    Returns:
        `stop` for a complete answer. An unknown reason counts as `length`, so that an
        incomplete answer is never taken for a complete one.
    """
    name = finish_reason.strip().lower().replace("-", "_")
    name = name.removeprefix("finish_reason_")
    if name in _COMPLETE:
        return "stop"
    if name in _FILTERED:
        return "content_filter"
    return "length"


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. All of them are part of the ledger's key."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    schema: str = ""
    """JSON schema that the answer must follow; empty for free text."""


def cut_off_reason(reply: Reply) -> str:
    """Explain why an incomplete reply is not read; empty for a complete one.

    The text also goes to a judge that is asked again, so it is part of a prompt: other
    words would change the ledger's key of that call.
    """
    if not reply.is_cut_off:
        return ""
    reason = reply.finish_reason
    if classify_finish_reason(reason) == "content_filter":
        return f"it was ended by a filter ({reason})"
    problem = "it was cut off"
    if reply.tokens_reasoning or not reply.text.strip():
        problem = "the answer was lost to reasoning"
    return f"{problem} ({reason} after {reply.tokens_out:,} tokens): raise max_tokens"


class Model(Protocol):
    """A model: `VllmEngine` in this process, or `OpenAIEndpoint` over HTTP."""

    identity: str
    """Who answers, for the ledger's key. Equal identities: interchangeable answers."""

    async def complete(self, messages: Messages, sampling: Sampling) -> Reply:
        """Make one attempt at one answer.

        Raises:
            TryAgain: A transient fault.
            CallFailed: This call will never be answered.
            BezoarError: No call will be answered, as with a wrong key or unknown model.
            ModelDied: This process will not answer any call.
        """
        ...

    async def close(self) -> None:
        """Free the model."""
        ...


class Chat(Protocol):
    """A model with its ledger, bound to one row. Schemes and judges call it.

    `step`, `sample` and `attempt` tell the calls of one row apart. For example: the
    step "evolve/2", the second of three answers to it, or a second attempt because the
    first reply could not be read.
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
        """Return the reply, from the ledger if it has one.

        Raises:
            CallFailed: This call failed for good. Others may succeed.
        """
        ...


class CallFailed(Exception):
    """One call failed for good: prompt refused or too long, or no answer after retries.

    Its row fails, and other rows continue.
    """


class PromptTooLong(CallFailed):
    """The prompt leaves too little context for an answer; a shorter one may fit."""


class Refused(CallFailed):
    """The endpoint refuses this call, and does not say whether it would accept others.

    `alike` is equal for calls that are refused in the same way. If all calls are, the
    recipe is at fault.
    """

    def __init__(self, reason: str, alike: str):
        super().__init__(reason)
        self.alike = alike


class Deferred(Exception):
    """The answer comes with the next batch; the row's chain is then run again."""


class ModelDied(Exception):
    """The model of this process died; another process must repeat the calls."""


class TryAgain(Exception):
    """A transient fault of one attempt.

    Attributes:
        after: Seconds that the server asked to wait, or None.
        limited: Whether the server is up and wants fewer requests (429).
        billed: Prompt and output tokens that must be paid for. None if they are
            unknown, because an answer was perhaps made and lost.
    """

    def __init__(
        self,
        reason: str,
        after: float | None = None,
        limited: bool = False,
        billed: tuple[int, int] | None = None,
    ):
        super().__init__(reason)
        self.after = after
        self.limited = limited
        # A 429 comes before any work, so it counts as free.
        self.billed = (0, 0) if limited else billed
