"""An OpenAI-compatible endpoint, such as a provider's API or vLLM's server."""

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import orjson

from bezoar_ray.errors import RecipeError
from bezoar_ray.llm.chat import Messages, Reply, Sampling, TryAgain
from bezoar_ray.llm.model_identity import identity
from bezoar_ray.llm.responses import read_answer, read_fault, to_exception
from bezoar_ray.recipe import ModelSection

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

# OpenAI's model families that reason: since o1, and since GPT-5.
_REASONING_MODEL = re.compile(r"(.*/)?(o\d|gpt-[5-9])")
# Errors before the first byte is sent: the call costs nothing, and may be repeated.
_NOT_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout"}
# Errors of a request that can never be sent.
_CANNOT_BE_SENT = {
    "InvalidURL",
    "UnsupportedProtocol",
    "LocalProtocolError",
    "UnicodeEncodeError",
}
_SHOWN_CHARACTERS = 300  # of an error


class OpenAIEndpoint:
    """One model behind an endpoint.

    The retries of OpenAI's client are switched off: the caller counts every attempt.
    """

    def __init__(self, section: ModelSection):
        import httpx2

        self.identity = identity(section)
        self._section = section
        self._name = f"{section.model} at {section.base_url}"
        self._client = open_openai_client(section)
        self._response_type = httpx2.Response

    async def complete(self, messages: Messages, sampling: Sampling) -> Reply:
        """Make one attempt.

        Raises:
            TryAgain: The fault is transient.
            CallFailed: The fault ends this call.
            BezoarError: The fault ends the stage.
        """
        import openai

        section = self._section
        body = {
            "model": section.model,
            "messages": messages,
            **sampling_parameters(section.model, sampling),
        }
        try:
            # The client's own timeout is for each read. This one is for the whole
            # answer.
            async with asyncio.timeout(section.timeout):
                # Not chat.completions.create, which spends half of a call's CPU time on
                # type checks of the request and the answer.
                response = await self._client.post(
                    "/chat/completions", body=body, cast_to=self._response_type
                )
        except openai.APIStatusError as error:
            raise status_exception(error, section) from error
        except TimeoutError as error:
            raise TryAgain(
                f"{section.base_url}: no complete answer within {section.timeout:g} s"
            ) from error
        except (openai.APIError, ValueError) as error:
            raise connection_exception(error, section) from error
        content = redact_key(response.content.decode(errors="replace"), section)
        return read_answer(content.encode(), self._name, section.api_key_env)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def status_exception(error: "APIStatusError", section: ModelSection) -> Exception:
    """Return the exception for an error status."""
    content = redact_key(error.response.content.decode(errors="replace"), section)
    try:
        body = orjson.loads(content)
    except ValueError:
        body = content
    fault = read_fault(error.status_code, body)
    after = retry_after_seconds(error.response.headers)
    name = f"{section.model} at {section.base_url}"
    return to_exception(fault, name, section.api_key_env, after)


def connection_exception(error: Exception, section: ModelSection) -> Exception:
    """Return the exception for a request without a complete answer.

    The connection was lost, the body is broken, or the request cannot be sent at all.
    """
    causes = list(_causes(error))
    # The innermost message says most: OpenAI's client says "Connection error." only.
    messages = [str(cause) for cause in causes if str(cause)]
    message = messages[-1] if messages else type(error).__name__
    message = redact_key(message, section)[:_SHOWN_CHARACTERS]
    kinds = {type(cause).__name__ for cause in causes}
    if kinds & _CANNOT_BE_SENT:
        key_name = section.api_key_env or "the key"
        return RecipeError(
            f"{section.base_url}: {message}. The request cannot be sent: "
            f"check base_url and {key_name}"
        )
    billed = (0, 0) if kinds & _NOT_SENT else None
    return TryAgain(f"{section.base_url}: {message}", billed=billed)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its causes, the innermost last."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def redact_key(text: str, section: ModelSection) -> str:
    """Replace the API key in a text from the endpoint, which may repeat it."""
    key = os.environ.get(section.api_key_env or "", "").strip()
    return text.replace(key, "***") if key else text


def open_openai_client(section: ModelSection) -> "AsyncOpenAI":
    """Open OpenAI's client for an endpoint, without retries of its own.

    It uses aiohttp, which takes the least CPU time per call.
    """
    from openai import AsyncOpenAI, DefaultAioHttpClient

    return AsyncOpenAI(
        base_url=section.base_url,
        api_key=api_key(section) or "none",
        max_retries=0,
        timeout=section.timeout,
        http_client=DefaultAioHttpClient(),
    )


def sampling_parameters(model: str, sampling: Sampling) -> dict[str, object]:
    """Return the request parameters for a model.

    OpenAI's reasoning models have another name for the token limit. They refuse
    temperature and top_p, even at the default of 1, which is therefore left out.
    """
    parameters: dict[str, object] = {}
    if sampling.temperature != 1.0:
        parameters["temperature"] = sampling.temperature
    if sampling.top_p != 1.0:
        parameters["top_p"] = sampling.top_p
    if _REASONING_MODEL.match(model):
        parameters["max_completion_tokens"] = sampling.max_tokens
    else:
        parameters["max_tokens"] = sampling.max_tokens
    if sampling.schema:
        parameters["response_format"] = {
            "type": "json_schema",
            "json_schema": {
                "name": "answer",
                "strict": True,
                "schema": orjson.loads(sampling.schema),
            },
        }
    return parameters


def api_key(section: ModelSection) -> str | None:
    """Return the API key from the environment variable that the recipe names.

    White space around it is removed. None means that the endpoint needs no key.

    Raises:
        RecipeError: The variable is not set, or its value cannot be an HTTP header.
    """
    if not section.api_key_env:
        return None
    key = os.environ.get(section.api_key_env, "").strip()
    if not key:
        raise RecipeError(
            f"{section.model} needs a key: set the environment variable "
            f"{section.api_key_env}"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise RecipeError(
            f"{section.api_key_env}: the key of {section.model} contains a character "
            "that an HTTP header cannot carry (white space, a line break, or one "
            "beyond ASCII). Copy the key again"
        )
    return key


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return how long the server asks to wait, or None.

    OpenAI's header in milliseconds comes first, then Retry-After as a number or a date.
    """
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        with contextlib.suppress(ValueError):
            return max(0.0, float(headers.get(name, "")) / scale)
    with contextlib.suppress(ValueError):
        date = parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, date.timestamp() - time.time())
    return None
