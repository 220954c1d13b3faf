"""Stages for tests of control flow: they leave a file, or fail as they are told."""

from bezoar_ray.errors import BezoarError, BudgetReached
from bezoar_ray.stages import StageContext, StageResult

calls: list[str] = []
fails: dict[str, BaseException] = {}


def noise() -> None:
    """What a library might print."""


def run(context: StageContext) -> StageResult:
    name = context.progress.stage
    calls.append(name)
    noise()
    if name in fails:
        raise fails[name]
    context.store.replace(f"{name}.txt", name)
    return StageResult([f"{name}.txt"], {"data": {"lamini": {name: 1}}})


FAILED = BezoarError("the gate `duplicate` took all rows")
BUDGET = BudgetReached("budget_usd of 5 is reached")
