"""The quota that all actors of a run share: requests and tokens per minute, and dollars.

One `QuotaServer` grants calls. Each process asks it through its `QuotaClient` for all of its calls that are waiting, so
one request to the server serves many calls. Dollars are reserved by an upper bound; the real usage is recorded later.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from bezoar_ray.errors import BudgetReached

_BURST = 1.0  # seconds of a limit that may be used at once
_LATE = 5.0  # seconds by which a settlement may come after its call's time limit; later, its process has died
_NOTHING = 1e-9  # dollars
_FLUSH = 0.1  # seconds for which settlements gather


@dataclass(frozen=True)
class Cost:
    """What one call takes at most."""

    tokens: float = 0.0
    usd: float = 0.0


@dataclass(frozen=True)
class Budget:
    """Dollars that may be spent, and those spent before. `field` is the recipe's."""

    field: str
    limit: float
    spent: float


@dataclass(frozen=True)
class QuotaLimits:
    """The limits of one model: None where there is none. `budgets` are the fields of those that its calls draw on,
    `timeout` is the seconds that one of them takes at most."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    budgets: tuple[str, ...] = ()
    timeout: float = 120.0

    def __bool__(self) -> bool:
        return bool(self.requests_per_minute or self.tokens_per_minute or self.budgets)


@dataclass(frozen=True)
class Grant:
    """How many of the calls asked for may go out; none of them where a budget is reached, and then why."""

    granted: int
    why: str = ""


class TokenBucket:
    """A rate per minute as a bucket that fills evenly. An amount above its size waits until it is full."""

    def __init__(self, per_minute: float | None):
        self._rate = per_minute / 60 if per_minute else 0.0  # 0: no limit
        self._size = max(1.0, self._rate * _BURST)
        self._level, self._seen = self._size, time.monotonic()

    def wait(self, amount: float) -> float:
        """Seconds until it holds so much."""
        if not self._rate:
            return 0.0
        now = time.monotonic()
        self._level = min(self._size, self._level + (now - self._seen) * self._rate)
        self._seen = now
        return max(0.0, min(amount, self._size) - self._level) / self._rate

    def take(self, amount: float) -> None:
        """Take it out, or, negative, put it back."""
        self._level = min(self._size, self._level - amount)


@dataclass
class _Channel:
    terms: QuotaLimits
    requests: TokenBucket
    tokens: TokenBucket
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class QuotaServer:
    """Grants calls. A plain object in one process, a Ray actor where there are several."""

    def __init__(self, terms: dict[str, QuotaLimits], budgets: Sequence[Budget]):
        self._lines = {
            name: _Channel(
                of,
                TokenBucket(of.requests_per_minute),
                TokenBucket(of.tokens_per_minute),
            )
            for name, of in terms.items()
        }
        self._limits = {budget.field: budget.limit for budget in budgets}
        self._spent = {budget.field: budget.spent for budget in budgets}
        self._reserved = dict.fromkeys(self._limits, 0.0)
        self._settlements = 0
        self._longest = max((of.timeout for of in terms.values()), default=0.0) + _LATE
        self._changed = asyncio.Condition()

    async def lease(self, line: str, needs: list[Cost], patient: bool = True) -> Grant:
        """Grant as many of the calls, the first ones first, as may go out at once; wait until that is at least one.

        Where a budget is short, a patient caller waits for what calls on their way may give back.
        """
        own = self._lines[line]
        async with own.turn:
            while True:  # what is left may change while the rate is waited for: other models draw on the same budget
                if why := await self._refusal(own.terms, needs[0], patient):
                    return Grant(0, why)
                wait = max(own.requests.wait(1), own.tokens.wait(needs[0].tokens))
                if wait <= 0:
                    break
                await asyncio.sleep(wait)
            granted = 0
            for need in needs:
                if granted and (
                    own.requests.wait(1)
                    or own.tokens.wait(need.tokens)
                    or self._short(own.terms, need)
                ):
                    break
                self._take(own, need)
                granted += 1
            return Grant(granted)

    async def record_usage(self, line: str, reserved: Cost, used: Cost) -> None:
        """Calls are over that reserved so much, and used that."""
        own = self._lines[line]
        own.tokens.take(used.tokens - reserved.tokens)
        for name in own.terms.budgets:
            self._reserved[name] = max(0.0, self._reserved[name] - reserved.usd)
            self._spent[name] += used.usd
        self._settlements += 1
        async with self._changed:
            self._changed.notify_all()

    def _take(self, line: _Channel, need: Cost) -> None:
        line.requests.take(1)
        line.tokens.take(need.tokens)
        for name in line.terms.budgets:
            self._reserved[name] += need.usd

    def _short(self, terms: QuotaLimits, need: Cost) -> str | None:
        """The budget that such a call could exceed."""
        left = {
            name: self._limits[name] - self._spent[name] - self._reserved[name]
            for name in terms.budgets
        }
        return next(
            (name for name, dollars in left.items() if need.usd > dollars), None
        )

    async def _refusal(
        self, terms: QuotaLimits, need: Cost, patient: bool
    ) -> str | None:
        """Why such a call must not go out; a patient caller learns it once nothing is on its way any more."""
        while name := self._short(terms, need):
            if (
                not patient
                or self._reserved[name] <= _NOTHING
                or not await self._settled_after(self._settlements)
            ):
                return (
                    f"{name} of {self._limits[name]:g} dollars is reached: {self._spent[name]:.4f} are spent, "
                    f"{self._reserved[name]:.4f} reserved, and the next call may cost {need.usd:.4f}. Nothing is lost: "
                    f"raise it (--set {name}=…) and run the same command again"
                )
        return None

    async def _settled_after(self, count: int) -> bool:
        """Wait for a further settlement; False where none comes for longer than any call takes."""
        async with self._changed:
            try:
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: self._settlements > count),
                    self._longest,
                )
            except TimeoutError:
                return False
        return True


class QuotaClient:
    """One process's side: calls that wait are asked for together, settlements are told together."""

    def __init__(
        self,
        lease: Callable[[list[Cost], bool], Awaitable[Grant]],
        settle: Callable[[Cost, Cost], Awaitable[None]],
    ):
        self._lease, self._settle = lease, settle
        self._waiting: list[tuple[Cost, asyncio.Future[None]]] = []
        self._asking: asyncio.Task[None] | None = None
        self._over: list[tuple[Cost, Cost]] = []
        self._telling: asyncio.Task[None] | None = None

    async def take(self, need: Cost, patient: bool = True) -> None:
        """Wait until a call may go out; `patient` as in `QuotaServer.lease`.

        Raises:
            BudgetReached: it might cost more than is left.
        """
        if not patient:
            if why := (await self._lease([need], False)).why:
                raise BudgetReached(why)
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append((need, granted))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        await granted

    def record_usage(self, need: Cost, used: Cost) -> None:
        """A granted call is over, and took `used`."""
        self._over.append((need, used))
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())

    async def close(self) -> None:
        """Tell what is still to be told."""
        if self._telling:
            await self._telling

    async def _ask(self) -> None:
        while self._waiting:
            try:
                lease = await self._lease([need for need, _ in self._waiting], True)
            except Exception as error:
                for _, granted in self._waiting:
                    if not granted.done():
                        granted.set_exception(error)
                self._waiting.clear()
                return
            count = len(self._waiting) if lease.why else lease.granted
            ready, self._waiting = self._waiting[:count], self._waiting[count:]
            for need, granted in ready:
                if not granted.done():
                    granted.set_exception(
                        BudgetReached(lease.why)
                    ) if lease.why else granted.set_result(None)
                elif not lease.why:  # a call that was cancelled while it waited
                    self.record_usage(need, Cost())

    async def _tell(self) -> None:
        while self._over:
            await asyncio.sleep(_FLUSH)
            over, self._over = self._over, []
            await self._settle(
                _sum(need for need, _ in over), _sum(used for _, used in over)
            )


def _sum(needs: Iterable[Cost]) -> Cost:
    total = list(needs)
    return Cost(sum(need.tokens for need in total), sum(need.usd for need in total))
