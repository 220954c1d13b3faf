"""Read an endpoint's responses: replies, and faults of a run, a row or an attempt.

The status code does not tell faults apart. Providers report an empty account as 400,
402, 403 or 429, a flagged prompt as 400 or 403, and errors of a model behind a gateway
as 200. So a fault is classified by its body first, and by its status last.
"""

import json
import re
from dataclasses import dataclass
from enum import Enum, auto

import orjson

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.llm.chat import CallFailed, PromptTooLong, Refused, Reply, TryAgain


class FaultKind(Enum):
    """What a fault leads to."""

    NO_CREDIT = auto()
    """The run stops. After a top-up, it resumes with the same calls."""
    SETTINGS = auto()
    """The run stops: no call can succeed with this recipe or key."""
    TOO_LONG = auto()
    """This row fails, or is asked with a shorter prompt."""
    FLAGGED = auto()
    """This row fails: a filter refused its text."""
    LIMITED = auto()
    """The call is made again later, and other calls wait, too."""
    PASSING = auto()
    """The fault is transient: the call is made again."""
    REFUSED = auto()
    """This row fails. The run stops if all calls are refused alike."""


@dataclass(frozen=True)
class Rule:
    """How to recognize one kind of fault."""

    statuses: tuple[int, ...]
    pattern: str
    """A regular expression for the code, type and message, in lower case."""
    kind: FaultKind
    explanation: str = ""
    """Our own words for a fault that ends the run."""


_NO_CREDIT = (
    "the account is empty, or at its limit. Finished calls are saved: top up the "
    "account, and run the same command again"
)
_BAD_KEY = "the key is wrong or missing, or lacks access to the model"
_NO_MODEL = "no such model or address"
_BAD_PARAMETER = "it does not accept a parameter that every call sends"

# The first rule that matches counts. The comments say at which provider it was seen.
_RULES = (
    # Gemini. Its rate limits speak of quota and billing, as if the account were empty.
    Rule((429,), r"resource_exhausted", FaultKind.LIMITED),
    Rule(
        (400, 402, 403, 429),
        # OpenAI (429), OpenRouter (402), DeepSeek (402)
        r"insufficient[ _](quota|credit|balance|funds)"
        # Anthropic (400)
        r"|credit balance is too low"
        # xAI (403, 429)
        r"|used all available credits|monthly spending limit"
        # Together (402), OpenRouter (403)
        r"|credit limit|out of credits|(key|spending) limit exceeded"
        # Alibaba (400)
        r"|arrearage|in arrears|overdue[ -]payment",
        FaultKind.NO_CREDIT,
        _NO_CREDIT,
    ),
    Rule((402,), "", FaultKind.NO_CREDIT, _NO_CREDIT),
    Rule((401,), "", FaultKind.SETTINGS, _BAD_KEY),
    Rule(
        (400, 403),
        # Gemini (400, in a list)
        r"api[ _-]?key.{0,40}(not valid|invalid|incorrect|expired|missing|not found)"
        # xAI (400), Anthropic
        r"|(invalid|incorrect|expired|missing|unknown).{0,20}(api|x-api)[ _-]?key"
        r"|api_key_invalid",
        FaultKind.SETTINGS,
        _BAD_KEY,
    ),
    Rule(
        (400, 403),
        # OpenAI (403), Gemini (400)
        r"unsupported_country|(country|region|location).{0,40}not supported",
        FaultKind.SETTINGS,
        "the provider does not serve the region of this machine",
    ),
    # OpenAI: all of the answer was reasoning.
    Rule((400,), r"could not finish the message because max_tokens", FaultKind.FLAGGED),
    Rule(
        (400, 413, 422, 500),
        # OpenAI, vLLM
        r"context_length_exceeded|maximum context length"
        # Anthropic, Bedrock, llama.cpp (500)
        r"|(prompt|input|request) is too long|context (window|length|size)"
        # text-generation-inference
        r"|too many (input )?tokens|inputs?`? (tokens )?(plus|\+|and).{0,30}must be"
        # Gemini
        r"|input token count.{0,40}exceeds",
        FaultKind.TOO_LONG,
    ),
    Rule(
        (400, 403),
        r"(account|organi[sz]ation|access|project).{0,60}"
        r"(suspended|deactivated|disabled|terminated|flagged|banned)",
        FaultKind.SETTINGS,
        "the provider has closed or suspended the account",
    ),
    Rule(
        (400, 403, 422, 451),
        # OpenRouter
        r"moderation|flagged|content[ _]?(policy|filter|management)"
        r"|usage (policy|policies|guidelines)"
        # xAI, DeepSeek
        r"|safety[ _](check|system|filter)|content exists risk|data_inspection"
        r"|inappropriate content"
        # Azure, OpenAI
        r"|responsible ?ai|sensitive (words?|content)|prohibited_content"
        r"|invalid_prompt|jailbreak",
        FaultKind.FLAGGED,
    ),
    Rule(
        (400, 422),
        # Mistral, OpenRouter
        r"(invalid|unknown|unsupported|no such) model|not a valid model"
        # DeepSeek, Groq
        r"|model.{0,80}"
        r"(not found|does not exist|not exist|not available|decommissioned)",
        FaultKind.SETTINGS,
        _NO_MODEL,
    ),
    Rule((404, 405, 410), "", FaultKind.SETTINGS, _NO_MODEL),
    Rule((429,), "", FaultKind.LIMITED),
    # 424: text-generation-inference. 498: Groq, which has no capacity.
    Rule((408, 409, 424, 425, 498), "", FaultKind.PASSING),
)
_PARAMETERS_OF_EVERY_CALL = {
    "model",
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "response_format",
}
_SHOWN_CHARACTERS = 300  # of an endpoint's message
_COMPARED_CHARACTERS = 80  # of two messages that may be of the same kind


@dataclass(frozen=True)
class Fault:
    """An endpoint's explanation why it did not answer a call."""

    status: int
    message: str
    code: str = ""
    """Its code, its type and its status in words, where given."""
    param: str = ""
    """The name of the parameter that it refuses, where given."""
    details: str = ""
    """Shown beside the message. It may repeat the prompt, so no rule looks at it."""

    @property
    def rule(self) -> Rule:
        """The rule that matches it."""
        if self.status in (400, 422) and self.param in _PARAMETERS_OF_EVERY_CALL:
            return Rule((), "", FaultKind.SETTINGS, _BAD_PARAMETER)
        text = f"{self.code} {self.message}".lower()
        for rule in _RULES:
            if self.status in rule.statuses and re.search(rule.pattern, text):
                return rule
        if 300 <= self.status < 500:
            return Rule((), "", FaultKind.REFUSED)
        return Rule((), "", FaultKind.PASSING)


def read_fault(status: int, body: object) -> Fault:
    """Read the fault from the body of a response.

    Providers agree on no format, so each part is looked for where it was seen.

    Args:
        status: The HTTP status.
        body: Parsed JSON, or text.
    """
    outer = _first_if_list(body)  # Gemini sends a list
    if not isinstance(outer, dict):
        return Fault(status, _one_line(outer))
    # vLLM, Cloudflare and FastAPI, in this order
    inner = outer.get("error") or outer.get("errors") or outer.get("detail") or outer
    inner = _first_if_list(inner)
    if not isinstance(inner, dict):
        return Fault(status, _one_line(inner), str(outer.get("code") or ""))  # xAI
    codes = [inner.get(name) or outer.get(name) for name in ("code", "type", "status")]
    message = inner.get("message") or inner.get("msg") or inner
    # OpenRouter: the message of the host behind it, and a flagged prompt.
    metadata = inner.get("metadata")
    return Fault(
        status,
        message=_one_line(message),
        code=" ".join(str(code) for code in codes if code),
        param=str(inner.get("param") or ""),
        details=_one_line(metadata) if metadata else "",
    )


def _first_if_list(value: object) -> object:
    if isinstance(value, list) and value:
        return value[0]
    return value


def to_exception(
    fault: Fault,
    endpoint: str,
    key_name: str | None,
    after: float | None = None,
) -> Exception:
    """Return the exception for a fault.

    Args:
        fault: The fault, as `read_fault` returns it.
        endpoint: Model and address, for the message.
        key_name: The environment variable of the key.
        after: Seconds that the endpoint asks to wait.
    """
    rule = fault.rule
    answer = f"{endpoint} answers {fault.status}"
    details = f" ({fault.details})" if fault.details else ""
    message = f"{answer}: {fault.message}{details}"
    match rule.kind:
        case FaultKind.NO_CREDIT:
            return BezoarError(
                f"{answer}: {rule.explanation}. It says: {fault.message}"
            )
        case FaultKind.SETTINGS:
            return RecipeError(
                f"{answer}: {rule.explanation}. Check `model`, `base_url` and the key "
                f"in {key_name or 'api_key_env (none given)'}. It says: {fault.message}"
            )
        case FaultKind.TOO_LONG:
            return PromptTooLong(message)
        case FaultKind.FLAGGED:
            return CallFailed(message)
        case FaultKind.LIMITED:
            return TryAgain(message, after, limited=True)
        case FaultKind.PASSING:
            return TryAgain(message, after)
        case FaultKind.REFUSED:
            general = _without_specifics(fault.message)
            alike = f"{fault.status} {fault.code} {fault.param} {general}"
            return Refused(message, alike=alike)


def read_answer(content: bytes, endpoint: str, key_name: str | None = None) -> Reply:
    """Read the reply from the body of a response with status 200.

    Its content type is ignored.

    Args:
        content: The body.
        endpoint: Model and address, for messages.
        key_name: The environment variable of the key, for messages.

    Raises:
        RecipeError: The body is a web page.
        TryAgain: The body is incomplete or empty, or contains a transient error.
        CallFailed: The body contains an error of this call alone.
        BezoarError: The body contains an error that ends the run.
    """
    try:
        body = orjson.loads(content)
    except ValueError as error:
        # Of a long page, the beginning suffices: it has the title.
        text = content[: 4 * _SHOWN_CHARACTERS].decode(errors="replace")
        if text.lstrip().startswith("<"):
            raise RecipeError(
                f"{endpoint} answers with a web page in place of JSON: check base_url, "
                f"which most often ends in /v1. The page begins: {_one_line(text)}"
            ) from error
        raise TryAgain(
            f"{endpoint} answers without valid JSON ({error}): {_one_line(text)}"
        ) from error
    return read_reply(body, endpoint, key_name)


def read_reply(body: object, endpoint: str, key_name: str | None = None) -> Reply:
    """Read the reply from a chat completion. Without usage, its token counts are 0.

    Raises as `read_answer` does.
    """
    fields = body if isinstance(body, dict) else {}
    choices = fields.get("choices")
    # `n` is never asked for: several samples are calls of their own in the ledger.
    choice = choices[0] if isinstance(choices, list) and choices else {}
    if not isinstance(choice, dict):
        choice = {}
    tokens = _token_counts(fields.get("usage"))
    error = fields.get("error") or choice.get("error")
    if error:
        # OpenRouter puts the status of the host behind it into the body.
        code = error.get("code") if isinstance(error, dict) else None
        # Without a code it counts as a 500, which may pass.
        status = code if isinstance(code, int) and code >= 400 else 500
        fault = read_fault(status, {"error": error})
        raise _with_bill(to_exception(fault, endpoint, key_name), tokens)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise TryAgain(f"{endpoint} answers without a choice: {_one_line(body)}")
    # A server that gives no reason has ended by itself, as far as anyone knows.
    finish_reason = str(choice.get("finish_reason") or "stop")
    # What was written until then would look like a whole answer.
    if finish_reason.lower() in ("error", "network_error"):
        raise TryAgain(f"{endpoint} ends its answer with an error", billed=tokens[:2])
    return Reply(_message_text(message), finish_reason, *tokens)


def _with_bill(error: Exception, tokens: tuple[int, int, int]) -> Exception:
    """Record on a transient fault what it cost; without usage, it cost nothing."""
    if isinstance(error, TryAgain) and not error.limited:
        error.billed = tokens[:2]
    return error


def _message_text(message: dict[str, object]) -> str:
    """Return the text of a message, or its refusal.

    Parts that are reasoning, or not text, are left out.
    """
    # A refusal is an answer: the gates reject it, and it was paid for.
    content = message.get("content") or message.get("refusal") or ""
    if isinstance(content, list):  # Mistral and others send parts
        content = "".join(_part_text(part) for part in content)
    return _encodable(str(content))


def _part_text(part: object) -> str:
    """Return the text of one part of a message; empty for a part that is not text."""
    if not isinstance(part, dict):
        return part if isinstance(part, str) else ""
    text = part.get("text")
    is_text = part.get("type", "text") in ("text", "output_text")
    return text if is_text and isinstance(text, str) else ""


def _encodable(text: str) -> str:
    """Replace lone surrogates: half a character cannot be written to a file."""
    return text.encode(errors="replace").decode()


def _token_counts(usage: object) -> tuple[int, int, int]:
    """Return the tokens of the prompt, all output tokens, and the reasoning among them.

    Some providers (Gemini, xAI) count hidden reasoning in the total only, and bill it
    as output.
    """
    if not isinstance(usage, dict):
        usage = {}
    tokens_in = _count(usage.get("prompt_tokens"))
    tokens_out = _count(usage.get("completion_tokens"))
    total = _count(usage.get("total_tokens"))
    # Not below the reported figure: a total may be missing, and is 0 then.
    tokens_out = max(tokens_out, total - tokens_in)
    details = usage.get("completion_tokens_details")
    reasoning = 0
    if isinstance(details, dict):
        reasoning = _count(details.get("reasoning_tokens"))
    return tokens_in, tokens_out, min(reasoning, tokens_out)


def _count(value: object) -> int:
    """Return a number of tokens, and 0 for anything that is not a positive number."""
    return int(value) if isinstance(value, int | float) and value > 0 else 0


def _one_line(value: object) -> str:
    """Return an endpoint's message in one line, and only the title of a web page."""
    text = value
    if not isinstance(text, str):
        text = json.dumps(value, default=str, ensure_ascii=False)
    text = _encodable(text)
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    if title:
        text = f"a web page titled {title.group(1)}"
    return " ".join(text.split())[:_SHOWN_CHARACTERS] or "nothing"


def _without_specifics(message: str) -> str:
    """Return the beginning of a message without the numbers and quotations in it.

    These differ from call to call, where the cause is the same.
    """
    specifics = r"\d+(\.\d+)?|(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|`[^`]*`"
    return re.sub(specifics, "…", message)[:_COMPARED_CHARACTERS]
