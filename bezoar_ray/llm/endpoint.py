"""An OpenAI-compatible endpoint: GPT-4, Claude, vLLM's server, a served checkpoint, the tiny judge."""

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

_REASONS = re.compile(r"(.*/)?(o\d|gpt-[5-9])")  # OpenAI's families since o1 and GPT-5
_UNSENT = (
    "ConnectError",
    "ConnectTimeout",
    "PoolTimeout",
)  # no byte has gone out, and the next attempt may
_UNSENDABLE = (
    "InvalidURL",
    "UnsupportedProtocol",
    "LocalProtocolError",
    "UnicodeEncodeError",
)  # nor ever will


class OpenAIEndpoint:
    """One model behind an endpoint. The client's own retries are off: every attempt is counted by the caller."""

    def __init__(self, part: ModelSection):
        import httpx2

        self.identity = identity(part)
        self._part = part
        self._where = f"{part.model} at {part.base_url}"
        self._client, self._response = open_client(part), httpx2.Response

    async def complete(self, messages: Messages, sampling: Sampling) -> Reply:
        """One attempt; faults are sorted into what passes, what ends this call, and what ends the stage."""
        import openai

        body = {"model": self._part.model, "messages": messages} | parameters(
            self._part.model, sampling
        )
        try:  # not chat.completions.create, which takes half of a call's CPU time to check types on both ways
            async with asyncio.timeout(
                self._part.timeout
            ):  # the client's own is for each read of the answer
                answer = await self._client.post(
                    "/chat/completions", body=body, cast_to=self._response
                )
        except openai.APIStatusError as error:
            raise fault(error, self._part) from error
        except TimeoutError as error:
            raise TryAgain(
                f"{self._part.base_url}: no whole answer within {self._part.timeout:g} s"
            ) from error
        except (openai.APIError, ValueError) as error:
            raise unanswered(error, self._part) from error
        content = redacted(answer.content.decode(errors="replace"), self._part)
        return read_answer(content.encode(), self._where, self._part.api_key_env)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def fault(error: "APIStatusError", part: ModelSection) -> Exception:
    """An error status of the client's, sorted into what passes, what ends this call, and what ends the stage."""
    content = redacted(error.response.content.decode(errors="replace"), part)
    try:
        body = orjson.loads(content)
    except ValueError:
        body = content
    found = read_fault(error.status_code, body)
    after = retry_after_seconds(error.response.headers)
    return to_exception(
        found, f"{part.model} at {part.base_url}", part.api_key_env, after
    )


def unanswered(error: Exception, part: ModelSection) -> Exception:
    """A request without a whole answer: a lost connection, a broken body, or one that cannot be sent at all."""
    causes = [
        str(cause) for cause in _chain(error) if str(cause)
    ]  # the client's own words are "Connection error."
    told = f"{part.base_url}: {redacted(causes[-1] if causes else type(error).__name__, part)[:300]}"
    kinds = {type(cause).__name__ for cause in _chain(error)}
    if kinds & set(_UNSENDABLE):
        return RecipeError(
            f"{told}. The request cannot be sent: check base_url and {part.api_key_env or 'the key'}"
        )
    return TryAgain(told, billed=(0, 0) if kinds & set(_UNSENT) else None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and its causes."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def redacted(said: str, part: ModelSection) -> str:
    """What an endpoint said, without the key."""
    key = os.environ.get(part.api_key_env or "", "").strip()
    return said.replace(key, "***") if key else said


def open_client(part: ModelSection) -> "AsyncOpenAI":
    """OpenAI's client for an endpoint, without retries of its own, on aiohttp, which costs the least CPU a call."""
    from openai import AsyncOpenAI, DefaultAioHttpClient

    return AsyncOpenAI(
        base_url=part.base_url,
        api_key=api_key(part) or "none",
        max_retries=0,
        timeout=part.timeout,
        http_client=DefaultAioHttpClient(),
    )


def parameters(model: str, sampling: Sampling) -> dict[str, object]:
    """Sampling by the names that this family of models takes; those that reason refuse even a default temperature."""
    limit = "max_completion_tokens" if _REASONS.match(model) else "max_tokens"
    chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    found: dict[str, object] = {
        name: value for name, value in chosen.items() if value != 1.0
    }
    found[limit] = sampling.max_tokens
    if sampling.schema:
        answer = {
            "name": "answer",
            "strict": True,
            "schema": orjson.loads(sampling.schema),
        }
        found["response_format"] = {"type": "json_schema", "json_schema": answer}
    return found


def api_key(part: ModelSection) -> str | None:
    """The key of an endpoint, from the environment by the name that the recipe gives, without white space around it.

    Raises:
        RecipeError: there is no such variable, or no header takes what it holds.
    """
    if not part.api_key_env:
        return None
    key = os.environ.get(part.api_key_env, "").strip()
    if not key:
        raise RecipeError(
            f"{part.model} needs a key: set the environment variable {part.api_key_env}"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise RecipeError(
            f"{part.api_key_env}: the key of {part.model} holds a character that no HTTP header takes (white space, a "
            "line break, or one beyond ASCII). Copy it again"
        )
    return key


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """What the server asks for: by OpenAI's header of milliseconds, else by Retry-After's number or date."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        with contextlib.suppress(ValueError):
            return max(0.0, float(headers.get(name, "")) / scale)
    with contextlib.suppress(ValueError):
        return max(
            0.0,
            parsedate_to_datetime(headers.get("retry-after", "")).timestamp()
            - time.time(),
        )
    return None
