"""Stages for tests of control flow: they leave a file, or fail as they are told."""

from dataclasses import replace

import pytest

from bezoar_ray.errors import BezoarError, BudgetReached
from bezoar_ray.runs import orchestrator
from bezoar_ray.stages import STAGES, StageContext, StageResult

calls: list[str] = []
fails: dict[str, BaseException] = {}


def script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put them in the place of all stages, each by itself."""
    monkeypatch.setattr(orchestrator, "TOGETHER", {})
    for name, stage in STAGES.items():
        monkeypatch.setitem(STAGES, name, replace(stage, module="tests.stages"))
    calls.clear()
    fails.clear()


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
