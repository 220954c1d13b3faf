"""A circuit breaker: calls wait while an endpoint returns nothing but faults."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator

from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.chat import CallFailed, Refused, TryAgain

# Only first attempts count, so that one prompt that the endpoint cannot answer is
# counted once and not once per retry.
_HISTORY = 20  # first attempts
_FAILED_SHARE = 0.5  # the circuit opens when more of the history failed
_MAX_PROBE_WAIT = 60.0  # seconds between two probes of an open circuit
REFUSALS_AT_START = 5
"""Equal refusals before any answer that end the stage, if no more are in flight."""
_REFUSALS_AFTER_ANSWERS = 50  # the same, in a row, once this process had an answer


class CircuitBreaker:
    """The circuit of one endpoint in this process.

    A 429 does not open the circuit: the endpoint is alive and says when to come back.
    Nevertheless, an endpoint that returns only 429 for longer than `patience` ends the
    stage. So does an endpoint that refuses all calls in the same way, because then the
    recipe is wrong and not the rows.

    Args:
        name: The endpoint's name in error messages.
        patience: Seconds that the circuit may stay open.
        first_wait: Seconds until the first probe. The wait doubles with each probe.
        has_earlier_answers: Whether the run had answers before this process began. The
            remaining rows may then be just those that the endpoint refuses, so a
            series of refusals fails these rows and does not end the stage.
    """

    def __init__(
        self,
        name: str,
        patience: float = 600.0,
        first_wait: float = 2.0,
        has_earlier_answers: bool = False,
    ):
        self._name = name
        self._patience = patience
        self._first_wait = first_wait
        self._has_earlier_answers = has_earlier_answers
        self._has_answers = False
        self._in_flight = 0

        self._history: deque[bool] = deque(maxlen=_HISTORY)
        self._opened_at: float | None = None
        self._probe_wait = first_wait
        self._probe = asyncio.Lock()

        self._limited_since: float | None = None

        self._refusal_kind = ""
        self._refusals = 0
        self._refusal_limit = 0

    @property
    def is_open(self) -> bool:
        """Whether calls wait, apart from the one that probes the endpoint."""
        return self._opened_at is not None

    @contextlib.asynccontextmanager
    async def attempt(self, is_first: bool = True) -> AsyncIterator[None]:
        """Wait for a closed circuit or a turn to probe, and record the outcome.

        Args:
            is_first: Whether the block is the first attempt of its call.

        Raises:
            BezoarError: The circuit was open for too long, or the endpoint refuses all
                calls in the same way.
        """
        is_probe = await self._wait_while_open()
        self._in_flight += 1
        try:
            yield
        except CallFailed as fault:
            # An endpoint that refuses a call is alive.
            self._record_sign_of_life()
            if isinstance(fault, Refused):
                self._record_refusal(fault)
            raise
        except TryAgain as fault:
            if fault.limited:
                self._record_rate_limit(fault)
            else:
                self._record_fault(fault, is_first)
            raise
        else:
            self._record_sign_of_life()
            self._has_answers = True
            self._refusals = 0
        finally:
            self._in_flight -= 1
            if is_probe:
                self._probe.release()

    async def _wait_while_open(self) -> bool:
        """Wait until an attempt may go out; True if it probes and owns the lock."""
        while self.is_open:
            # One call probes and all others wait for it, or the first sign of recovery
            # would be met by all of them at once.
            await self._probe.acquire()
            # The probe before this one may have closed the circuit meanwhile.
            if not self.is_open:
                self._probe.release()
                continue
            try:
                await asyncio.sleep(self._probe_wait)
            except BaseException:
                # Also if it is cancelled: a lock that nobody frees would
                # hold all calls forever.
                self._probe.release()
                raise
            self._probe_wait = min(_MAX_PROBE_WAIT, 2 * self._probe_wait)
            return True
        return False

    def _record_sign_of_life(self) -> None:
        self._limited_since = None
        self._close()

    def _record_refusal(self, fault: Refused) -> None:
        if self._refusals == 0 or fault.alike != self._refusal_kind:
            self._refusals = 0
            self._refusal_kind = fault.alike
            if self._has_answers:
                self._refusal_limit = _REFUSALS_AFTER_ANSWERS
            else:
                self._refusal_limit = REFUSALS_AT_START
        # An answer takes longer than a refusal: wait for all calls that are in flight.
        self._refusal_limit = max(self._refusal_limit, self._in_flight)
        self._refusals += 1

        is_resumed = self._has_earlier_answers and not self._has_answers
        if self._refusals >= self._refusal_limit and not is_resumed:
            raise BezoarError(
                f"{self._refusals} calls were refused in the same way, with no answer "
                f"between them, so the recipe is wrong and not the rows: {fault}. "
                "Finished calls are saved. Correct the recipe and run the same command "
                "again"
            )

    def _record_rate_limit(self, fault: TryAgain) -> None:
        now = time.monotonic()
        if self._limited_since is None:
            self._limited_since = now
        requested_wait = fault.after or 0.0
        limited_for = now - self._limited_since
        # A wait that is longer than that is not even begun.
        if limited_for > self._patience or requested_wait > self._patience:
            raise BezoarError(
                f"{self._name} takes no more calls for now: {fault}. It asks to wait "
                f"{requested_wait:.0f} s. Finished calls are saved. Run the same "
                "command again later to resume"
            )
        self._close()

    def _record_fault(self, fault: TryAgain, is_first: bool) -> None:
        now = time.monotonic()
        if self._opened_at is None:
            if is_first:
                self._history.append(False)
            # One or two faults at the very start are no sign of an outage.
            is_full = len(self._history) == _HISTORY
            failed = self._history.count(False)
            if is_full and failed > _FAILED_SHARE * _HISTORY:
                self._opened_at = now
            return
        open_for = now - self._opened_at
        if open_for > self._patience:
            raise BezoarError(
                f"{self._name} has answered nothing for {open_for:.0f} s. Its last "
                f"fault: {fault}. Finished calls are saved. Run the same command again "
                "to resume"
            )

    def _close(self) -> None:
        if self.is_open:
            # The faults of an outage that is over would open it again
            # at the next single one.
            self._history.clear()
        self._history.append(True)
        self._opened_at = None
        self._probe_wait = self._first_wait
