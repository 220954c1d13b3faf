"""An OpenAI-compatible endpoint: GPT-4, Claude, vLLM's server, a served checkpoint, the tiny judge."""

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from bezoar_ray.errors import RecipeError
from bezoar_ray.llm.chat import CallFailed, Messages, PromptTooLong, Reply, Sampling, TryAgain
from bezoar_ray.llm.models import identity
from bezoar_ray.recipe import ModelPart

_REASONS = re.compile(r"(.*/)?(o\d|gpt-[5-9])")  # OpenAI's families since o1 and GPT-5
_EVERYWHERE = {"model", "temperature", "top_p", "max_tokens", "max_completion_tokens", "response_format"}
_REFUSED = {
    400: "it does not take a parameter that every call has",
    401: "the key is wrong or missing",
    402: "the account is empty",
    403: "the key may not use it",
    404: "no such model or address",
}


class OpenAIEndpoint:
    """One model behind an endpoint. The client's own retries are off: every attempt is counted by the caller."""

    def __init__(self, part: ModelPart):
        self.identity = identity(part)
        self._part = part
        self._client = open_client(part)

    async def complete(self, messages: Messages, sampling: Sampling) -> Reply:
        """One attempt; faults are sorted into what passes, what ends this call, and what ends the stage."""
        import openai

        body = {"model": self._part.model, "messages": messages} | parameters(self._part.model, sampling)
        try:  # not chat.completions.create, which takes half of a call's CPU time to check types on both ways
            async with asyncio.timeout(self._part.timeout):  # the client's own is for each read of the answer
                return read_reply(await self._client.post("/chat/completions", body=body, cast_to=object))
        except openai.APIStatusError as error:
            raise fault(error, self._part) from error
        except TimeoutError as error:
            raise TryAgain(f"{self._part.base_url}: no whole answer within {self._part.timeout:g} s") from error
        except (openai.APIError, ValueError) as error:  # a lost connection, a cut or broken body, one without a choice
            raise TryAgain(f"{self._part.base_url}: {redacted(str(error), self._part)[:300]}") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def fault(error: Any, part: ModelPart) -> Exception:
    """An error status of the client's, sorted into what passes, what ends this call, and what ends the stage."""
    status, where = error.status_code, f"{part.model} at {part.base_url}"
    said = redacted(error.message, part)
    if error.code == "insufficient_quota":  # OpenAI sends it as 429, which no waiting mends
        status = 402
    if status in _REFUSED and (status != 400 or error.param in _EVERYWHERE):
        return RecipeError(
            f"{where} answers {status}: {_REFUSED[status]}. Check `model`, `base_url` and the key in "
            f"{part.api_key_env or 'api_key_env (none given)'}. It says: {said}"
        )
    if error.code == "context_length_exceeded":
        return PromptTooLong(f"{where}: {said}")
    if status in (408, 409, 429) or status >= 500:
        return TryAgain(
            f"{where} answers {status}: {said}", seconds_to_wait(error.response.headers), limited=status == 429
        )
    return CallFailed(f"{where} answers {status}: {said}")


def redacted(said: str, part: ModelPart) -> str:
    """What an endpoint said, without the key: some gateways say the one that they refuse."""
    key = os.environ.get(part.api_key_env or "")
    return said.replace(key, "***") if key else said


def open_client(part: ModelPart) -> Any:
    """OpenAI's client for an endpoint, without retries of its own, on aiohttp, which costs the least CPU a call."""
    from openai import AsyncOpenAI, DefaultAioHttpClient

    return AsyncOpenAI(
        base_url=part.base_url,
        api_key=api_key(part) or "none",
        max_retries=0,
        timeout=part.timeout,
        http_client=DefaultAioHttpClient(),
    )


def parameters(model: str, sampling: Sampling) -> dict[str, Any]:
    """Sampling by the names that this family of models takes; those that reason refuse even a default temperature."""
    limit = "max_completion_tokens" if _REASONS.match(model) else "max_tokens"
    chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    found = {name: value for name, value in chosen.items() if value != 1.0} | {limit: sampling.max_tokens}
    if sampling.schema:
        answer = {"name": "answer", "strict": True, "schema": orjson.loads(sampling.schema)}
        found["response_format"] = {"type": "json_schema", "json_schema": answer}
    return found


def read_reply(answer: Any) -> Reply:
    """The reply in the JSON of a chat completion. Without usage, tokens are 0.

    Raises:
        ValueError: there is none; some gateways answer 200 with an error in the body.
    """
    try:
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        text = (choice["message"].get("content") or "").encode(errors="replace").decode()  # half a character is no text
        tokens = [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
        return Reply(text, choice.get("finish_reason") or "stop", *tokens)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"answers without a choice: {answer}") from error


def api_key(part: ModelPart) -> str | None:
    """The key of an endpoint, from the environment by the name that the recipe gives.

    Raises:
        RecipeError: there is no such variable.
    """
    if part.api_key_env and not os.environ.get(part.api_key_env):
        raise RecipeError(f"{part.model} needs a key: set the environment variable {part.api_key_env}")
    return os.environ.get(part.api_key_env) if part.api_key_env else None


def seconds_to_wait(headers: Mapping[str, str]) -> float | None:
    """What the server asks for: by OpenAI's header of milliseconds, else by Retry-After's number or date."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        with contextlib.suppress(ValueError):
            return max(0.0, float(headers.get(name, "")) / scale)
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    return None
