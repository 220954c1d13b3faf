"""Several calls at once, none of which is left behind."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def to_the_end(jobs: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all jobs; after a fault of one, the others end first, so that what they ask for is recorded.

    `asyncio.gather` by itself returns at the first fault: whoever then closes the model cuts off calls under way, which
    are paid for.
    """
    done = await asyncio.gather(*jobs, return_exceptions=True)
    results = []
    for result in done:
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results
