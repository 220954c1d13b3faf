"""The limits of a run, from its recipe and its ledger: what a meter is made of."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bezoar_ray.llm.ledger import ROLES, accounts
from bezoar_ray.llm.quota import Budget, QuotaClient, QuotaLimits, QuotaServer
from bezoar_ray.recipe import ModelSection, Recipe

if TYPE_CHECKING:
    from ray.actor import ActorHandle


@dataclass(frozen=True)
class Limit:
    """Dollars for the calls of some roles; `field` is the recipe's."""

    field: str
    usd: float
    roles: tuple[str, ...]


def limits(recipe: Recipe) -> tuple[Limit, ...]:
    """The budgets that the recipe sets, of the run and of its stages."""
    found = (
        [Limit("budget_usd", recipe.budget_usd, tuple(ROLES))]
        if recipe.budget_usd is not None
        else []
    )
    for stage in dict.fromkeys(ROLES.values()):
        if (usd := getattr(recipe, stage).budget_usd) is not None:
            found.append(
                Limit(
                    f"{stage}.budget_usd",
                    usd,
                    tuple(role for role, of in ROLES.items() if of == stage),
                )
            )
    return tuple(found)


def quota_limits(
    part: ModelSection, role: str, all_limits: Iterable[Limit]
) -> QuotaLimits:
    """What limits the calls of a model in a role; what has no price draws on no budget."""
    budgets = (
        tuple(limit.field for limit in all_limits if role in limit.roles)
        if part.prices
        else ()
    )
    rates = (
        (part.requests_per_minute, part.tokens_per_minute)
        if part.mode == "live"
        else (None, None)
    )
    return QuotaLimits(*rates, budgets, part.timeout)


class RunQuotaServer(QuotaServer):
    """A meter that knows from the ledger what was spent before."""

    def __init__(
        self,
        root: str | Path,
        lines: dict[str, QuotaLimits],
        all_limits: Iterable[Limit],
    ):
        spent = {role: account["usd"] for role, account in accounts(root, "").items()}
        super().__init__(
            lines,
            [
                Budget(limit.field, limit.usd, sum(spent[r] for r in limit.roles))
                for limit in all_limits
            ],
        )


def quota_client(
    meter: "QuotaServer | ActorHandle[RunQuotaServer]", line: str
) -> QuotaClient:
    """A process's permits from a meter: the object itself, or the handle of a Ray actor."""
    if isinstance(meter, QuotaServer):
        return QuotaClient(
            partial(meter.lease, line), partial(meter.record_usage, line)
        )
    actor: Any = meter  # Ray types the methods of an actor only where each is decorated
    return QuotaClient(
        partial(actor.lease.remote, line), partial(actor.record_usage.remote, line)
    )


def own_quota_client(
    root: str | Path, part: ModelSection, role: str, all_limits: Iterable[Limit]
) -> QuotaClient | None:
    """Permits for a model that this process alone talks to; None where nothing limits it."""
    return shared_quota_clients(root, [part], role, all_limits)[0]


def shared_quota_clients(
    root: str | Path,
    parts: Sequence[ModelSection],
    role: str,
    all_limits: Iterable[Limit],
) -> list[QuotaClient | None]:
    """The same for several models in one role, which draw on the same budgets."""
    lines = {
        str(n): quota_limits(part, role, all_limits) for n, part in enumerate(parts)
    }
    meter = RunQuotaServer(root, lines, all_limits)
    return [
        quota_client(meter, line) if of_line else None
        for line, of_line in lines.items()
    ]
