"""Where the checkpoints answer."""

import asyncio
import json
import urllib.request
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Any

from bezoar_ray.store import Store


@dataclass(frozen=True)
class Endpoint:
    """`base_url` ends in /v1; `context` is the longest prompt and answer in tokens; `tokenizer` a folder."""

    base_url: str
    tokenizer: str
    context: int

    @classmethod
    def at(cls, base_url: str, store: Store) -> "Endpoint":
        """The endpoint of a run directory's checkpoints."""
        with urllib.request.urlopen(f"{base_url}/models", timeout=60) as answer:
            context = json.load(answer)["data"][0]["max_model_len"]
        return cls(base_url, str(store.path("checkpoints/base")), context)


async def to_the_end(jobs: Iterable[Awaitable[Any]]) -> list[Any]:
    """The results of all jobs; after a fault of one, the others go on first, so that what they ask for is recorded."""
    done = await asyncio.gather(*jobs, return_exceptions=True)
    if fault := next((result for result in done if isinstance(result, BaseException)), None):
        raise fault
    return done
