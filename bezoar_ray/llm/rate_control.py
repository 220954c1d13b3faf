"""How fast this process may send to one model: as fast as its slots allow until a 429 comes, then by what the server
takes, probing upwards ever faster while no further 429 comes.

A cut goes to the rate that is being served, judged by the requests sent just before the one refused. Refusals of
requests sent before a cut tell nothing new and cut no more.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass

_WINDOW = 0.12  # seconds of requests that tell what the server takes
_BACK = 0.95  # a cut goes a little below what was served
_HOLD = 0.3  # seconds, and
_HOLD_REQUESTS = (
    12  # requests, whichever is longer, before a rate that was cut is probed again
)
_GROW = (
    0.5  # seconds of probing until the rate has doubled; it then goes on quadratically
)
_LATE = 0.02  # seconds of sending that a late wake-up may make up for
_REMEMBERED = 1.0  # seconds
_LOWEST = 0.05  # requests a second


@dataclass
class Turn:
    """One request, sent at `at` by a monotonic clock."""

    at: float
    refused: bool = False


class AdaptiveConcurrency:
    """A rate that follows a server's limit."""

    def __init__(self) -> None:
        self._base: float | None = (
            None  # requests a second at the last cut; none before the first 429
        )
        self._cut_at = self._held_until = self._next = 0.0
        self._sent: deque[Turn] = deque()

    async def turn(self) -> Turn:
        """Wait until one more request may go out."""
        while (wait := max(self._next, self._held_until) - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        turn = Turn(time.monotonic())
        if self._base is not None:
            self._next = max(self._next, turn.at - _LATE) + 1 / self._rate(
                self._base, turn.at
            )
        self._sent.append(turn)
        while self._sent[0].at < turn.at - _REMEMBERED:
            self._sent.popleft()
        return turn

    def limited(self, turn: Turn, after: float | None) -> None:
        """A 429 came for a request; the server asked to wait for `after` seconds, if it did."""
        turn.refused, now = True, time.monotonic()
        self._held_until = max(self._held_until, now + (after or 0.0))
        if turn.at <= self._cut_at:
            return
        window = [
            other for other in self._sent if turn.at - _WINDOW <= other.at <= turn.at
        ] or [turn]
        refused = sum(other.refused for other in window)
        served = max(0.5, len(window) - refused)
        before = (
            len(window) / _WINDOW
            if self._base is None
            else self._rate(self._base, turn.at)
        )
        share = served / (
            served + refused - 1
        )  # one refusal is the probe's, which found the limit
        self._base, self._cut_at = max(_LOWEST, before * min(1.0, share) * _BACK), now

    def _rate(self, base: float, at: float) -> float:
        """Requests a second, once there was a 429."""
        age = at - self._cut_at - max(_HOLD, _HOLD_REQUESTS / base)
        return base * (1 + (max(0.0, age) / _GROW) ** 2)
