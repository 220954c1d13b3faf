"""How fast this process may send requests to one model, learned from its 429s.

The control is AIMD, additive increase and multiplicative decrease. Nothing limits the
rate until the first 429. A 429 cuts the rate to a little less than the rate that is
being served. After a pause, the rate grows in equal steps per second until the next one.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class AimdSettings:
    """How a rate follows a limit; measured by `jobs/benchmarks/limits.py`."""

    decrease: float = 0.9
    """Multiplicative decrease: a cut goes to this share of the rate that was served."""
    increase: float = 4.0
    """Additive increase: the rate of the last cut is added this many times a second."""
    hold_seconds: float = 0.3
    """A rate that was cut stays for at least this time,"""
    hold_requests: int = 12
    """and for at least this many requests, so that a slow rate is probed less often."""
    window: float = 0.12
    """Seconds of requests, before one that was refused, that tell the rate served."""
    catch_up: float = 0.02
    """Seconds of requests that may go out at once after a late wake-up."""
    memory: float = 1.0
    """Seconds for which a request is remembered: a 429 may come that late."""
    lowest_rate: float = 0.05
    """Requests per second below which no cut goes."""


@dataclass(slots=True)
class SentRequest:
    """One request, sent at `at` on the monotonic clock."""

    at: float
    was_refused: bool = False


class AdaptiveConcurrency:
    """A rate of requests that follows a server's limit."""

    def __init__(self, settings: AimdSettings | None = None) -> None:
        self._settings = settings or AimdSettings()
        # Requests per second at the last cut; None before the first 429.
        self._cut_rate: float | None = None
        self._cut_at = 0.0
        # Times before which no request goes out: by the server's Retry-After, and by
        # the rate.
        self._paused_until = 0.0
        self._next_at = 0.0
        self._sent: deque[SentRequest] = deque()

    async def admit(self) -> SentRequest:
        """Wait until one more request may go out."""
        now = time.monotonic()
        # Another request may have taken the turn, or a 429 come, during the sleep.
        while (wait := max(self._next_at, self._paused_until) - now) > 0:
            await asyncio.sleep(wait)
            now = time.monotonic()

        if self._cut_rate is not None:
            due_at = max(self._next_at, now - self._settings.catch_up)
            self._next_at = due_at + 1 / self._rate(self._cut_rate, now)

        request = SentRequest(now)
        self._sent.append(request)
        while self._sent[0].at < now - self._settings.memory:
            self._sent.popleft()
        return request

    def record_limit(self, request: SentRequest, retry_after: float | None) -> None:
        """Slow down after a 429.

        Args:
            request: The request that was refused.
            retry_after: Seconds that the server asked to wait, if it did.
        """
        now = time.monotonic()
        request.was_refused = True
        self._paused_until = max(self._paused_until, now + (retry_after or 0.0))
        # A request from before the last cut says nothing about the rate since then.
        if request.at <= self._cut_at:
            return
        rate, served_share = self._measure(request)
        cut_rate = rate * served_share * self._settings.decrease
        self._cut_rate = max(self._settings.lowest_rate, cut_rate)
        self._cut_at = now

    def _measure(self, request: SentRequest) -> tuple[float, float]:
        """The rate up to a refused request, and the share of it that was served."""
        window_start = request.at - self._settings.window
        sent = 0
        refused = 0
        for other in self._sent:
            if window_start <= other.at <= request.at:
                sent += 1
                refused += other.was_refused
        if sent == 0:  # the 429 came so late that its request is forgotten
            sent = 1
            refused = 1

        rate = sent / self._settings.window
        if self._cut_rate is not None:
            rate = self._rate(self._cut_rate, request.at)
        served = max(0.5, sent - refused)
        # One refusal is that of the probe, which found the limit.
        served_share = served / (served + refused - 1)
        return rate, min(1.0, served_share)

    def _rate(self, cut_rate: float, at: float) -> float:
        """Requests per second at a time after the first 429."""
        settings = self._settings
        hold = max(settings.hold_seconds, settings.hold_requests / cut_rate)
        seconds_of_growth = max(0.0, at - self._cut_at - hold)
        return cut_rate + settings.increase * cut_rate * seconds_of_growth
