"""What an endpoint's answer means: a reply, or a fault that ends the run, this row, or this attempt alone.

Status codes do not say it: providers report an empty account as 400, 402, 403 or 429, a flagged prompt as 400 or 403,
and errors of the model behind a gateway as 200. So a fault is known by what its body says; its status decides last.
"""

import json
import re
from dataclasses import dataclass
from enum import Enum, auto

import orjson

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.llm.chat import CallFailed, PromptTooLong, Refused, Reply, TryAgain


class Means(Enum):
    """What follows from a fault."""

    NO_CREDIT = auto()
    """The run stops, and goes on with the same calls after a top-up."""
    SETTINGS = auto()
    """The run stops: no call can succeed with this recipe or key."""
    TOO_LONG = auto()
    """This row fails, or is asked in fewer words."""
    FLAGGED = auto()
    """This row fails: a filter refused its text."""
    LIMITED = auto()
    """The call is made again, later; others wait, too."""
    PASSING = auto()
    """The call is made again."""
    REFUSED = auto()
    """This row fails; the run stops where all calls are refused alike."""


@dataclass(frozen=True)
class Rule:
    """A kind of fault: the statuses it comes with, what its code, type or message says, and what that means."""

    statuses: tuple[int, ...]
    says: str
    means: Means
    why: str = ""
    """In our words, for what ends the run."""


_EMPTY = "the account is empty, or at its limit. What was answered is kept: top it up, and run the same command again"
_KEY = "the key is wrong or missing, or may not use it"
_MODEL = "no such model or address"

# The first rule that matches counts. Behind each one: where it was seen.
_RULES = (
    Rule(
        (429,), r"resource_exhausted", Means.LIMITED
    ),  # Gemini, whose rate limits speak of quota and billing
    Rule(
        (400, 402, 403, 429),
        r"insufficient[ _](quota|credit|balance|funds)"  # OpenAI (429), OpenRouter (402), DeepSeek (402)
        r"|credit balance is too low"  # Anthropic (400)
        r"|used all available credits|monthly spending limit"  # xAI (403, 429)
        r"|credit limit|out of credits|(key|spending) limit exceeded"  # Together (402), OpenRouter (403)
        r"|arrearage|in arrears|overdue[ -]payment",  # Alibaba (400)
        Means.NO_CREDIT,
        _EMPTY,
    ),
    Rule((402,), "", Means.NO_CREDIT, _EMPTY),
    Rule((401,), "", Means.SETTINGS, _KEY),
    Rule(
        (400, 403),
        r"api[ _-]?key.{0,40}(not valid|invalid|incorrect|expired|missing|not found)"  # Gemini (400, in a list)
        r"|(invalid|incorrect|expired|missing|unknown).{0,20}(api|x-api)[ _-]?key"  # xAI (400), Anthropic
        r"|api_key_invalid",
        Means.SETTINGS,
        _KEY,
    ),
    Rule(
        (400, 403),
        r"unsupported_country|(country|region|location).{0,40}not supported",  # OpenAI (403), Gemini (400)
        Means.SETTINGS,
        "it is not offered where this machine is",
    ),
    Rule(
        (400,), r"could not finish the message because max_tokens", Means.FLAGGED
    ),  # OpenAI: all of it was reasoning
    Rule(
        (400, 413, 422, 500),
        r"context_length_exceeded|maximum context length"  # OpenAI, vLLM
        r"|(prompt|input|request) is too long|context (window|length|size)"  # Anthropic, Bedrock, llama.cpp (500)
        r"|too many (input )?tokens|inputs?`? (tokens )?(plus|\+|and).{0,30}must be"  # text-generation-inference
        r"|input token count.{0,40}exceeds",  # Gemini
        Means.TOO_LONG,
    ),
    Rule(
        (400, 403),
        r"(account|organi[sz]ation|access|project).{0,60}(suspended|deactivated|disabled|terminated|flagged|banned)",
        Means.SETTINGS,
        "the provider has closed the account to it",
    ),
    Rule(
        (400, 403, 422, 451),
        r"moderation|flagged|content[ _]?(policy|filter|management)|usage (policy|policies|guidelines)"  # OpenRouter
        r"|safety[ _](check|system|filter)|content exists risk|data_inspection|inappropriate content"  # xAI, DeepSeek
        r"|responsible ?ai|sensitive (words?|content)|prohibited_content|invalid_prompt|jailbreak",  # Azure, OpenAI
        Means.FLAGGED,
    ),
    Rule(
        (400, 422),
        r"(invalid|unknown|unsupported|no such) model|not a valid model"  # Mistral, OpenRouter
        r"|model.{0,80}(not found|does not exist|not exist|not available|decommissioned)",  # DeepSeek, Groq
        Means.SETTINGS,
        _MODEL,
    ),
    Rule((404, 405, 410), "", Means.SETTINGS, _MODEL),
    Rule((429,), "", Means.LIMITED),
    Rule(
        (408, 409, 424, 425, 498), "", Means.PASSING
    ),  # 424: text-generation-inference; 498: Groq, no capacity
)
_EVERYWHERE = {
    "model",
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "response_format",
}
_PARAMETER = "it does not take a parameter that every call has"
_SHOWN = 300  # characters of what an endpoint says


@dataclass(frozen=True)
class Fault:
    """What an endpoint says of a call that it does not answer."""

    status: int
    message: str
    code: str = ""
    """Its code, its type and its status in words, as far as it gives them."""
    param: str = ""
    details: str = ""
    """What is shown beside the message. It may repeat the prompt, so nothing is concluded from it."""

    @property
    def meaning(self) -> Rule:
        """The rule that it falls under."""
        if self.status in (400, 422) and self.param in _EVERYWHERE:
            return Rule((), "", Means.SETTINGS, _PARAMETER)
        text = f"{self.code} {self.message}".lower()
        known = (
            rule
            for rule in _RULES
            if self.status in rule.statuses and re.search(rule.says, text)
        )
        other = Rule(
            (), "", Means.REFUSED if 300 <= self.status < 500 else Means.PASSING
        )
        return next(known, other)


def read_fault(status: int, body: object) -> Fault:
    """The fault in the body of an answer: parsed JSON, or text. Providers agree on no shape."""
    outer = body[0] if isinstance(body, list) and body else body  # Gemini
    if not isinstance(outer, dict):
        return Fault(status, _told(outer))
    inner = (
        outer.get("error") or outer.get("errors") or outer.get("detail") or outer
    )  # vLLM, Cloudflare, FastAPI
    inner = inner[0] if isinstance(inner, list) and inner else inner
    if not isinstance(inner, dict):
        return Fault(status, _told(inner), str(outer.get("code") or ""))  # xAI
    codes = [inner.get(name) or outer.get(name) for name in ("code", "type", "status")]
    message = inner.get("message") or inner.get("msg") or inner
    metadata = inner.get(
        "metadata"
    )  # OpenRouter: what the host behind it says, and a flagged prompt
    details = _told(metadata) if metadata else ""
    return Fault(
        status,
        _told(message),
        " ".join(map(str, filter(None, codes))),
        str(inner.get("param") or ""),
        details,
    )


def to_exception(
    fault: Fault, where: str, key_name: str | None, after: float | None = None
) -> Exception:
    """The exception for a fault.

    Args:
        fault: what the endpoint says.
        where: model and address, for the message.
        key_name: the environment variable of the key.
        after: seconds that the endpoint asks to wait.
    """
    rule = fault.meaning
    details = f" ({fault.details})" if fault.details else ""
    told = f"{where} answers {fault.status}: {fault.message}{details}"
    match rule.means:
        case Means.NO_CREDIT:
            return BezoarError(
                f"{where} answers {fault.status}: {rule.why}. It says: {fault.message}"
            )
        case Means.SETTINGS:
            return RecipeError(
                f"{where} answers {fault.status}: {rule.why}. Check `model`, `base_url` and the key in "
                f"{key_name or 'api_key_env (none given)'}. It says: {fault.message}"
            )
        case Means.TOO_LONG:
            return PromptTooLong(told)
        case Means.FLAGGED:
            return CallFailed(told)
        case Means.LIMITED:
            return TryAgain(told, after, limited=True)
        case Means.PASSING:
            return TryAgain(told, after)
        case Means.REFUSED:
            return Refused(
                told,
                alike=f"{fault.status} {fault.code} {fault.param} {_kind(fault.message)}",
            )


def read_answer(content: bytes, where: str, key_name: str | None = None) -> Reply:
    """The reply in the body of an answer with status 200, whatever its content type says.

    Raises:
        RecipeError: it is a web page.
        TryAgain: it is cut, empty, or holds an error in place of an answer.
        CallFailed: the error in it is this call's own.
        BezoarError: the error in it ends the run.
    """
    try:
        body = orjson.loads(content)
    except ValueError as error:
        text = content[: 4 * _SHOWN].decode(errors="replace")
        if text.lstrip().startswith("<"):
            raise RecipeError(
                f"{where} answers with a web page in place of JSON: check base_url, which most often ends in /v1. "
                f"It begins: {_told(text)}"
            ) from error
        raise TryAgain(
            f"{where} answers without JSON ({error}): {_told(text)}"
        ) from error
    return read_reply(body, where, key_name)


def read_reply(body: object, where: str, key_name: str | None = None) -> Reply:
    """The reply in a chat completion. Without usage, tokens are 0. Raises as `read_answer` does."""
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else {}
    usage = body.get("usage") if isinstance(body, dict) else None
    tokens = _tokens(usage)
    error = isinstance(body, dict) and (
        body.get("error") or (isinstance(choice, dict) and choice.get("error"))
    )
    if error:  # OpenRouter: the status of the host behind it is in the body
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and code >= 400 else 500
        raise _with_bill(
            to_exception(read_fault(status, {"error": error}), where, key_name), tokens
        )
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise TryAgain(f"{where} answers without a choice: {_told(body)}")
    text, reason = _text(message), str(choice.get("finish_reason") or "stop")
    if reason.lower() in ("error", "network_error"):
        raise TryAgain(f"{where} ends its answer with an error", billed=tokens[:2])
    return Reply(text, reason, *tokens)


def _with_bill(error: Exception, tokens: tuple[int, int, int]) -> Exception:
    """A passing fault that says what it took: without usage, nothing."""
    if isinstance(error, TryAgain) and not error.limited:
        error.billed = tokens[:2]
    return error


def _text(message: dict[str, object]) -> str:
    """What a message says. Parts that are reasoning, or no text, are left out; a refusal is said, too."""
    content = message.get("content") or message.get("refusal") or ""
    if isinstance(content, list):  # Mistral's and others' parts
        parts = [part if isinstance(part, dict) else {"text": part} for part in content]
        texts = [
            part.get("text")
            for part in parts
            if part.get("type", "text") in ("text", "output_text")
        ]
        content = "".join(text for text in texts if isinstance(text, str))
    return str(content).encode(errors="replace").decode()  # half a character is no text


def _tokens(usage: object) -> tuple[int, int, int]:
    """Tokens of the prompt, all that were written, and those of them that were reasoning.

    Some count hidden reasoning in the total alone (Gemini, xAI), and bill it as output.
    """
    usage = usage if isinstance(usage, dict) else {}
    into, out, total = (
        _count(usage.get(f"{name}_tokens"))
        for name in ("prompt", "completion", "total")
    )
    details = usage.get("completion_tokens_details")
    reasoning = (
        _count(details.get("reasoning_tokens")) if isinstance(details, dict) else 0
    )
    out = max(out, total - into)
    return into, out, min(reasoning, out)


def _count(value: object) -> int:
    """A number of tokens; anything else counts as none."""
    return int(value) if isinstance(value, int | float) and value > 0 else 0


def _told(said: object) -> str:
    """What an endpoint says, in a line; of a web page, its title."""
    text = (
        said
        if isinstance(said, str)
        else json.dumps(said, default=str, ensure_ascii=False)
    )
    text = text.encode(
        errors="replace"
    ).decode()  # half a character cannot be written down
    if title := re.search(
        r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL
    ):
        text = f"a web page titled {title.group(1)}"
    return " ".join(text.split())[:_SHOWN] or "nothing"


def _kind(message: str) -> str:
    """How a message begins, without what differs from call to call: numbers and quotations."""
    return re.sub(r"\d+(\.\d+)?|(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|`[^`]*`", "…", message)[
        :80
    ]
