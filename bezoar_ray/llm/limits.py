"""The limits of a run, from its recipe and ledger, as quotas of its models."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bezoar_ray.llm.ledger import ROLES, accounts
from bezoar_ray.llm.quota import Budget, Limits, QuotaClient, QuotaServer
from bezoar_ray.recipe import ModelSection, Recipe

if TYPE_CHECKING:
    from ray.actor import ActorHandle


@dataclass(frozen=True)
class BudgetLimit:
    """Dollars for the calls of some roles."""

    field: str
    """The recipe field that sets the limit."""
    usd: float
    roles: tuple[str, ...]


def budget_limits(recipe: Recipe) -> tuple[BudgetLimit, ...]:
    """Return the budgets that the recipe sets, of the run and of its stages."""
    limits = []
    if recipe.budget_usd is not None:
        limits.append(BudgetLimit("budget_usd", recipe.budget_usd, tuple(ROLES)))
    for stage in dict.fromkeys(ROLES.values()):
        # align has none: it calls its own model, which costs nothing.
        usd = getattr(getattr(recipe, stage), "budget_usd", None)
        if usd is not None:
            roles = tuple(role for role in ROLES if ROLES[role] == stage)
            limits.append(BudgetLimit(f"{stage}.budget_usd", usd, roles))
    return tuple(limits)


def quota_limits(
    section: ModelSection, role: str, budgets: Sequence[BudgetLimit]
) -> Limits:
    """Return the limits of a model's calls in a role."""
    fields: tuple[str, ...] = ()
    if section.prices:  # a model without prices draws on no budget
        fields = tuple(budget.field for budget in budgets if role in budget.roles)
    if section.mode == "batch":  # rates are limits of live calls
        return Limits(budgets=fields, timeout=section.timeout)
    return Limits(
        section.requests_per_minute,
        section.tokens_per_minute,
        fields,
        section.timeout,
    )


class RunQuotaServer(QuotaServer):
    """A quota server that reads from the ledger how much was spent before.

    Args:
        root: The run directory.
        limits: The limits of each channel, by its name.
        budgets: All budgets of the run.
    """

    def __init__(
        self,
        root: str | Path,
        limits: dict[str, Limits],
        budgets: Sequence[BudgetLimit],
    ):
        # A budget is one of the run directory: what all earlier commands spent counts.
        by_role = accounts(root, "")
        all_budgets = []
        for budget in budgets:
            spent = sum(by_role[role]["usd"] for role in budget.roles)
            all_budgets.append(Budget(budget.field, budget.usd, spent))
        super().__init__(limits, all_budgets)


def quota_client(
    server: "QuotaServer | ActorHandle[RunQuotaServer]", channel: str
) -> QuotaClient:
    """Return a process's client of a server: the object itself, or a Ray actor."""
    if isinstance(server, QuotaServer):
        return QuotaClient(
            partial(server.grant, channel), partial(server.record_usage, channel)
        )
    actor: Any = server  # Ray types an actor's methods only if each is decorated
    return QuotaClient(
        partial(actor.grant.remote, channel),
        partial(actor.record_usage.remote, channel),
    )


def local_quota_client(
    root: str | Path,
    section: ModelSection,
    role: str,
    budgets: Sequence[BudgetLimit],
) -> QuotaClient | None:
    """Return the quota of a model that only this process calls; None if unlimited."""
    return local_quota_clients(root, [section], role, budgets)[0]


def local_quota_clients(
    root: str | Path,
    sections: Sequence[ModelSection],
    role: str,
    budgets: Sequence[BudgetLimit],
) -> list[QuotaClient | None]:
    """Return the quotas of models that only this process calls, in one role.

    The models draw on the same budgets.
    """
    limits = {}
    for number, section in enumerate(sections):
        limits[str(number)] = quota_limits(section, role, budgets)
    server = RunQuotaServer(root, limits, budgets)
    clients: list[QuotaClient | None] = []
    for channel, of_channel in limits.items():
        clients.append(quota_client(server, channel) if of_channel else None)
    return clients
