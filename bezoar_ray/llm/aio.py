"""Run several calls at once and leave none of them behind."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def to_the_end(jobs: Iterable[Awaitable[T]]) -> list[T]:
    """Return the results of all jobs, or raise the first fault once all have ended.

    `asyncio.gather` alone returns at the first fault. The caller would then close the
    model and cut off calls in flight, which are paid for but not yet recorded.
    """
    outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    results = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results
