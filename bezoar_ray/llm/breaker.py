"""A circuit breaker: while an endpoint answers nothing but faults, calls wait for it instead of failing one by one."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.chat import CallFailed, Refused, TryAgain

T = TypeVar("T")

_ATTEMPTS = 20  # the last so many first attempts are looked at: a call that nothing answers says so only once
_SHARE = 0.5  # more of them failed: the circuit opens
_LONGEST = 60.0  # seconds between two probes of an open circuit
REFUSED_FIRST = 5  # calls that are refused alike before any is answered, and at least as many as are under way
_REFUSED_LATER = 50  # the same after answers of this process, without one between them


class Breaker:
    """One endpoint's circuit in this process.

    A 429 opens nothing: it says that the endpoint is there, and when to come back. An endpoint that says nothing else
    for longer than `patience` ends the stage, too. So does one that refuses all calls in the same way: then the recipe
    is at fault, and not the rows.

    Args:
        name: of the endpoint, for errors.
        patience: seconds that the circuit may stay open.
        first: seconds until it is probed, doubling.
        has_answered: whether other calls of the run were answered before this process began. What is left may be just
            the rows that are refused, so only their rows fail.
    """

    def __init__(
        self,
        name: str,
        patience: float = 600.0,
        first: float = 2.0,
        has_answered: bool = False,
    ):
        self._name, self._patience, self._first = name, patience, first
        self._answered: deque[bool] = deque(maxlen=_ATTEMPTS)
        self._opened_at: float | None = None
        self._limited_since: float | None = None
        self._wait = first
        self._probe = asyncio.Lock()
        self._had_answered, self._has_answered = has_answered, False
        self._alike, self._refusals, self._enough, self._under_way = "", 0, 0, 0

    @property
    def is_open(self) -> bool:
        """Whether calls wait, but for one that probes."""
        return self._opened_at is not None

    async def run(self, attempt: Callable[[], Awaitable[T]], first: bool = True) -> T:
        """The outcome of an attempt, made as soon as the circuit is closed or this attempt's turn to probe it has come.

        `first` says whether it is its call's first one.

        Raises:
            BezoarError: the circuit has been open for too long, or all calls are refused alike.
        """
        while self.is_open:
            async with self._probe:
                if self.is_open:
                    await asyncio.sleep(self._wait)
                    self._wait = min(_LONGEST, 2 * self._wait)
                    return await self._watched(attempt, first)
        return await self._watched(attempt, first)

    async def _watched(self, attempt: Callable[[], Awaitable[T]], first: bool) -> T:
        self._under_way += 1
        try:
            reply = await attempt()
        except CallFailed as fault:
            self._answer()
            if isinstance(fault, Refused):
                self._refused(fault)
            raise
        except TryAgain as fault:
            self._limited(fault) if fault.limited else self._fault(str(fault), first)
            raise
        finally:
            self._under_way -= 1
        self._answer()
        self._has_answered, self._refusals = True, 0
        return reply

    def _answer(self) -> None:
        self._limited_since = None
        self._close()

    def _refused(self, fault: Refused) -> None:
        if fault.alike != self._alike or not self._refusals:
            least = _REFUSED_LATER if self._has_answered else REFUSED_FIRST
            self._enough, self._refusals = least, 0
        self._enough = max(
            self._enough, self._under_way
        )  # answers take longer than refusals: wait for them
        self._alike = fault.alike
        self._refusals += 1
        resumed = self._had_answered and not self._has_answered
        if self._refusals >= self._enough and not resumed:
            raise BezoarError(
                f"{self._refusals} calls were refused in the same way, and none was answered between them, so the "
                f"recipe is at fault and not the rows: {fault}. What was answered is kept: correct it, and run the "
                "same command again"
            )

    def _limited(self, fault: TryAgain) -> None:
        now = time.monotonic()
        self._limited_since = self._limited_since or now
        if (
            now - self._limited_since > self._patience
            or (fault.after or 0.0) > self._patience
        ):
            raise BezoarError(
                f"{self._name} takes no more calls for now: {fault}. It asks to wait {fault.after or 0:.0f} s. "
                "What was answered is kept: run the same command again later to go on"
            )
        self._close()

    def _close(self) -> None:
        if self.is_open:
            self._answered.clear()
        self._answered.append(True)
        self._opened_at, self._wait = None, self._first

    def _fault(self, reason: str, first: bool) -> None:
        now = time.monotonic()
        if self._opened_at is None:
            self._answered.extend([False] * first)
            full = len(self._answered) == _ATTEMPTS
            self._opened_at = (
                now
                if full and self._answered.count(False) > _SHARE * _ATTEMPTS
                else None
            )
        elif now - self._opened_at > self._patience:
            raise BezoarError(
                f"{self._name} has answered nothing for {now - self._opened_at:.0f} s; its last fault: {reason}. "
                "What was answered is kept: run the same command again to go on"
            )
