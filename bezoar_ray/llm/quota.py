"""The quota that all actors of a run share: requests and tokens per minute, and dollars.

One `QuotaServer` grants calls. Each process asks it through its `QuotaClient` for all of
its calls that are waiting, so one request to the server serves many calls. Dollars are
reserved by an upper bound. The real usage is recorded later.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from bezoar_ray.errors import BudgetReached

_BURST_SECONDS = 1.0  # of a limit, which may be used at once
_GRACE_SECONDS = 5.0
"""Usage may be recorded this long after a call's timeout; later, its process has died."""
_NO_DOLLARS = 1e-9  # sums of floats do not come back to zero exactly
_REPORT_SECONDS = 0.1  # a client's usage gathers this long before it is reported


@dataclass(frozen=True)
class Cost:
    """The tokens and dollars of a call: an upper bound, or its usage."""

    tokens: float = 0.0
    usd: float = 0.0


@dataclass(frozen=True)
class Budget:
    """Dollars that may be spent."""

    field: str
    """The recipe field that sets the budget."""
    limit: float
    spent: float
    """Dollars that earlier commands have spent."""


@dataclass(frozen=True)
class Limits:
    """The limits of one model; None is no limit."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    budgets: tuple[str, ...] = ()
    """Recipe fields of the budgets that the model's calls draw on."""
    timeout: float = 120.0
    """Seconds after which a call is given up."""

    def __bool__(self) -> bool:
        return bool(self.requests_per_minute or self.tokens_per_minute or self.budgets)


@dataclass(frozen=True)
class Grant:
    """The answer to a request for calls."""

    granted: int
    """How many of the requested calls may go out: the first ones."""
    reason: str = ""
    """Why none of them may ever go out: the budget that is reached."""


class TokenBucket:
    """A rate per minute as a bucket that fills evenly.

    An amount that is larger than the bucket waits until the bucket is full.
    """

    def __init__(self, per_minute: float | None):
        self._per_second = per_minute / 60 if per_minute else 0.0  # 0 is no limit
        self._size = max(1.0, self._per_second * _BURST_SECONDS)
        self._level = self._size
        self._filled_at = time.monotonic()

    def wait(self, amount: float) -> float:
        """Return the seconds until the bucket holds an amount."""
        if not self._per_second:
            return 0.0
        now = time.monotonic()
        inflow = (now - self._filled_at) * self._per_second
        self._level = min(self._size, self._level + inflow)
        self._filled_at = now
        missing = min(amount, self._size) - self._level
        return max(0.0, missing) / self._per_second

    def take(self, amount: float) -> None:
        """Take an amount out or, if it is negative, put it back."""
        # It may fall below zero, by a call larger than the bucket or by more tokens
        # than were reserved. Later calls then wait for it.
        self._level = min(self._size, self._level - amount)


@dataclass
class _Channel:
    """The calls of one model."""

    limits: Limits
    requests: TokenBucket
    tokens: TokenBucket
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class QuotaServer:
    """Grants calls: a plain object in one process, a Ray actor for several.

    Args:
        limits: The limits of each channel, by its name. A channel is one model.
        budgets: All budgets that channels draw on.
    """

    def __init__(self, limits: dict[str, Limits], budgets: Sequence[Budget]):
        self._channels: dict[str, _Channel] = {}
        for name, of_channel in limits.items():
            self._channels[name] = _Channel(
                of_channel,
                TokenBucket(of_channel.requests_per_minute),
                TokenBucket(of_channel.tokens_per_minute),
            )
        self._budgets = {budget.field: budget.limit for budget in budgets}
        self._spent = {budget.field: budget.spent for budget in budgets}
        self._reserved = dict.fromkeys(self._budgets, 0.0)

        timeouts = [of_channel.timeout for of_channel in limits.values()]
        self._longest_call = max(timeouts, default=0.0) + _GRACE_SECONDS
        self._reports = 0
        self._reported = asyncio.Condition()

    async def grant(
        self, channel_name: str, costs: list[Cost], patient: bool = True
    ) -> Grant:
        """Grant as many of the first calls as may go out now, and wait for at least one.

        Args:
            channel_name: The model to call.
            costs: Upper bounds of the calls, in the order of their requests.
            patient: Whether to wait, when a budget is short, for the dollars that calls
                in flight may give back.
        """
        channel = self._channels[channel_name]
        # asyncio's lock is first come, first served: a process with hundreds of calls
        # cannot overtake one with a few.
        async with channel.turn:
            # Check again after each wait: other channels draw on the same budgets.
            while True:
                reason = await self._refuse(channel.limits, costs[0], patient)
                if reason:
                    return Grant(0, reason)
                wait = self._seconds_until(channel, costs[0])
                if wait <= 0:
                    break
                await asyncio.sleep(wait)
            # The first call has waited. The others go along only as far
            # as they need not wait.
            self._reserve(channel, costs[0])
            granted = 1
            for cost in costs[1:]:
                if self._seconds_until(channel, cost) > 0:
                    break
                if self._find_short_budget(channel.limits, cost):
                    break
                self._reserve(channel, cost)
                granted += 1
            return Grant(granted)

    async def record_usage(self, channel_name: str, reserved: Cost, used: Cost) -> None:
        """Record that calls have ended which reserved and used these amounts."""
        channel = self._channels[channel_name]
        channel.tokens.take(used.tokens - reserved.tokens)
        for name in channel.limits.budgets:
            self._reserved[name] = max(0.0, self._reserved[name] - reserved.usd)
            self._spent[name] += used.usd
        self._reports += 1
        async with self._reported:
            self._reported.notify_all()

    def _seconds_until(self, channel: _Channel, cost: Cost) -> float:
        """Seconds until the rates allow a call."""
        return max(channel.requests.wait(1), channel.tokens.wait(cost.tokens))

    def _reserve(self, channel: _Channel, cost: Cost) -> None:
        channel.requests.take(1)
        channel.tokens.take(cost.tokens)
        for name in channel.limits.budgets:
            self._reserved[name] += cost.usd

    def _find_short_budget(self, limits: Limits, cost: Cost) -> str | None:
        """Return the first budget that a call could exceed."""
        for name in limits.budgets:
            # Reserved dollars count as spent, as calls in flight may
            # cost their upper bounds.
            left = self._budgets[name] - self._spent[name] - self._reserved[name]
            if cost.usd > left:
                return name
        return None

    async def _refuse(self, limits: Limits, cost: Cost, patient: bool) -> str:
        """Return why a call must not go out, or an empty string.

        A patient caller is refused only if no call in flight can give dollars back.
        """
        while name := self._find_short_budget(limits, cost):
            can_free_up = patient and self._reserved[name] > _NO_DOLLARS
            if can_free_up and await self._wait_for_report():
                continue
            return (
                f"{name} of {self._budgets[name]:g} dollars is reached: "
                f"{self._spent[name]:.4f} are spent, {self._reserved[name]:.4f} "
                f"reserved, and the next call may cost {cost.usd:.4f}. Finished calls "
                f"are saved. Raise the budget (--set {name}=…) and run the same "
                "command again"
            )
        return ""

    async def _wait_for_report(self) -> bool:
        """Wait for a report of usage; False if none comes while any call could run."""
        # A number and no flag: a report may come while the condition is being acquired.
        reports = self._reports
        async with self._reported:
            try:
                await asyncio.wait_for(
                    self._reported.wait_for(lambda: self._reports > reports),
                    self._longest_call,
                )
            except TimeoutError:
                return False
        return True


class QuotaClient:
    """One process's side: it requests waiting calls together, and reports usage together.

    Args:
        grant: `QuotaServer.grant` of one channel.
        record_usage: `QuotaServer.record_usage` of that channel.
    """

    def __init__(
        self,
        grant: Callable[[list[Cost], bool], Awaitable[Grant]],
        record_usage: Callable[[Cost, Cost], Awaitable[None]],
    ):
        self._grant = grant
        self._record_usage = record_usage
        self._waiting: list[tuple[Cost, asyncio.Future[None]]] = []
        self._request: asyncio.Task[None] | None = None
        self._ended: list[tuple[Cost, Cost]] = []
        self._report: asyncio.Task[None] | None = None

    async def take(self, cost: Cost, patient: bool = True) -> None:
        """Wait until a call may go out; `patient` as in `QuotaServer.grant`.

        Raises:
            BudgetReached: The call might cost more than is left.
        """
        if not patient:
            grant = await self._grant([cost], False)
            if grant.reason:
                raise BudgetReached(grant.reason)
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append((cost, granted))
        # One request at a time: calls that come meanwhile go along with the next one.
        if self._request is None or self._request.done():
            self._request = asyncio.create_task(self._request_calls())
        await granted

    def record_usage(self, reserved: Cost, used: Cost) -> None:
        """Record that a granted call has ended."""
        self._ended.append((reserved, used))
        if self._report is None or self._report.done():
            self._report = asyncio.create_task(self._report_usage())

    async def close(self) -> None:
        """Report the usage that is not reported yet."""
        if self._report:
            await self._report

    async def _request_calls(self) -> None:
        """Request waiting calls, all at once, until none is waiting."""
        while self._waiting:
            costs = [cost for cost, _ in self._waiting]
            try:
                grant = await self._grant(costs, True)
            except Exception as error:
                self._fail_all(error)
                return
            if grant.reason:
                self._fail_all(BudgetReached(grant.reason))
                continue
            granted_calls = self._waiting[: grant.granted]
            self._waiting = self._waiting[grant.granted :]
            for cost, granted in granted_calls:
                if granted.done():  # a call that was cancelled while it waited
                    self.record_usage(cost, Cost())
                else:
                    granted.set_result(None)

    def _fail_all(self, error: Exception) -> None:
        for _, granted in self._waiting:
            if not granted.done():
                granted.set_exception(error)
        self._waiting = []

    async def _report_usage(self) -> None:
        while self._ended:
            await asyncio.sleep(_REPORT_SECONDS)
            ended = self._ended
            self._ended = []
            reserved = _sum_costs(cost for cost, _ in ended)
            used = _sum_costs(cost for _, cost in ended)
            await self._record_usage(reserved, used)


def _sum_costs(costs: Iterable[Cost]) -> Cost:
    tokens = 0.0
    usd = 0.0
    for cost in costs:
        tokens += cost.tokens
        usd += cost.usd
    return Cost(tokens, usd)
