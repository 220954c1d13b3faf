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
    from httpx2 import AsyncClient, Response
    from openai import AsyncOpenAI

# OpenAI's model families that reason: since o1, and since GPT-5.
_REASONING_MODEL = re.compile(r"(.*/)?(o\d|gpt-[5-9])")
# aiohttp's errors before the first byte is sent: the call costs nothing. Its class
# ServerDisconnectedError is not among them. httpx2 calls all three a ConnectTimeout.
_NOT_SENT = {
    "ClientConnectorError",
    "ClientConnectorDNSError",
    "ClientConnectorSSLError",
    "ClientConnectorCertificateError",
    "ClientProxyConnectionError",
    "ConnectionTimeoutError",
}
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

    Requests have the headers of OpenAI's client and go out through its HTTP client.
    They do not pass through its `post`, which takes 0.8 ms of CPU time for each call,
    three times as much as the HTTP client (`jobs/benchmarks/run.py judge`).
    """

    def __init__(self, section: ModelSection):
        self.identity = identity(section)
        self._section = section
        self._name = f"{section.model} at {section.base_url}"
        self._url = f"{(section.base_url or '').rstrip('/')}/chat/completions"
        self._http = _open_http_client(section)
        self._headers = _request_headers(open_openai_client(section, self._http))

    async def complete(self, messages: Messages, sampling: Sampling) -> Reply:
        """Make one attempt.

        Raises:
            TryAgain: The fault is transient.
            CallFailed: The fault ends this call.
            BezoarError: The fault ends the stage.
        """
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
                response = await self._http.post(
                    self._url, content=orjson.dumps(body), headers=self._headers
                )
        except TimeoutError as error:
            raise TryAgain(
                f"{section.base_url}: no complete answer within {section.timeout:g} s"
            ) from error
        except Exception as error:  # of httpx2, aiohttp, ssl or the socket
            raise connection_exception(error, section) from error
        if not response.is_success:
            raise status_exception(response, section)
        # Before it is parsed: answers go into the ledger, and parts
        # of them into messages.
        content = redact_key(response.content.decode(errors="replace"), section)
        return read_answer(content.encode(), self._name, section.api_key_env)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def status_exception(response: "Response", section: ModelSection) -> Exception:
    """Return the exception for a response with an error status."""
    content = redact_key(response.content.decode(errors="replace"), section)
    try:
        body = orjson.loads(content)
    except ValueError:
        # A proxy in between answers with HTML or plain text.
        body = content
    fault = read_fault(response.status_code, body)
    after = retry_after_seconds(response.headers)
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
    # Once the request is out, an answer may have been made, charged for and lost.
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


def open_openai_client(
    section: ModelSection, http_client: "AsyncClient | None" = None
) -> "AsyncOpenAI":
    """Open OpenAI's client for an endpoint.

    Its retries are switched off: the caller counts every attempt.
    """
    from openai import AsyncOpenAI

    return AsyncOpenAI(
        base_url=section.base_url,
        # The client does not open without a key, while local servers ask for none.
        api_key=api_key(section) or "none",
        max_retries=0,
        timeout=section.timeout,
        http_client=http_client or _open_http_client(section),
    )


def _open_http_client(section: ModelSection) -> "AsyncClient":
    """Open an HTTP client on aiohttp, which takes the least CPU time per call."""
    from openai import DefaultAioHttpClient

    return DefaultAioHttpClient(timeout=section.timeout)


def _request_headers(client: "AsyncOpenAI") -> dict[str, str]:
    """Return the headers of a request, as OpenAI's client would send them.

    They hold the API key, and the organization and the project of OPENAI_ORG_ID and
    OPENAI_PROJECT_ID.
    """
    headers = {**client.default_headers, **client.auth_headers}
    # OpenAI's client marks a header that is not to be sent by an object.
    return {name: value for name, value in headers.items() if isinstance(value, str)}


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
        # A header that is missing is an empty text here, which is no number either.
        with contextlib.suppress(ValueError):
            return max(0.0, float(headers.get(name, "")) / scale)
    with contextlib.suppress(ValueError):
        date = parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, date.timestamp() - time.time())
    return None
