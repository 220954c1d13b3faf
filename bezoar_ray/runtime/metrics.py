"""Figures for Prometheus, through Ray's metrics, which every node exports: calls, tokens, dollars, a stage's progress.

Counts are told once a second, as telling Ray costs about as much as the rest of a call's accounting. Without Ray they
go nowhere. `cluster/grafana.json` shows them.
"""

import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

CALLS = ("run", "stage", "role", "model")
METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "bezoar_calls": (
        "Counter",
        "Attempts at model calls: answered, failed, or found in the ledger",
        (*CALLS, "outcome"),
    ),
    "bezoar_tokens": (
        "Counter",
        "Tokens of answered calls: in or out",
        (*CALLS, "direction"),
    ),
    "bezoar_dollars": ("Counter", "Dollars that calls have cost", CALLS),
    "bezoar_calls_in_flight": ("Gauge", "Calls under way in one process", CALLS),
    "bezoar_calls_waiting": (
        "Gauge",
        "Calls that wait for a slot in one process",
        CALLS,
    ),
    "bezoar_stage_done": (
        "Gauge",
        "Rows, steps or verdicts that the current stage has done",
        ("run", "stage"),
    ),
    "bezoar_stage_total": (
        "Gauge",
        "Rows, steps or verdicts that it has to do",
        ("run", "stage"),
    ),
    "bezoar_gpu": (
        "Gauge",
        "1 for each GPU of the node on which a stage has a process",
        ("run", "stage", "GpuIndex"),
    ),
}
"""Kind, description and tags of each; Ray puts `ray_` before a name, and `_total` after a counter's."""

_EVERY = 1.0  # seconds


class MetricSet:
    """Some figures of this process, under tags of their own."""

    def __init__(self, **tags: str):
        self._tags = tags
        self._counts: defaultdict[tuple[str, tuple[tuple[str, str], ...]], float] = (
            defaultdict(float)
        )
        self._watched: list[tuple[str, Callable[[], float], dict[str, str]]] = []
        self._told, self._waiting = 0.0, False

    def watch(self, name: str, value: Callable[[], float], **tags: str) -> None:
        """Tell a gauge's value of the moment with every count that is told."""
        self._watched.append((name, value, self._tags | tags))

    def add(self, name: str, amount: float = 1.0, **tags: str) -> None:
        """Count some more."""
        self._counts[name, tuple(tags.items())] += amount
        if self._waiting:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if time.monotonic() - self._told > _EVERY:
                self.tell()
        else:
            self._waiting = True
            loop.call_later(_EVERY, self.tell)

    def tell(self) -> None:
        """Hand over to Ray what has been counted."""
        self._told, self._waiting = time.monotonic(), False
        counts, self._counts = self._counts, defaultdict(float)
        if not _ray_runs():
            return
        for (name, tags), amount in counts.items():
            if amount:  # Ray refuses nothing
                _metric(name).inc(amount, self._tags | dict(tags))
        for name, value, all_tags in self._watched:
            _metric(name).set(value(), all_tags)


def set_stage(run: str, stage: str, done: float, total: float) -> None:
    """How far a stage is; for the driver."""
    if _ray_runs():
        _metric("bezoar_stage_done").set(done, {"run": run, "stage": stage})
        _metric("bezoar_stage_total").set(total, {"run": run, "stage": stage})


def hold_gpus(run: str, stage: str) -> None:
    """Tell on which of its node's GPUs this process works, by the label that Ray's own figures of a GPU have; for
    Ray's actors."""
    import ray

    for index in ray.get_gpu_ids():
        _metric("bezoar_gpu").set(
            1, {"run": run, "stage": stage, "GpuIndex": str(index)}
        )


def _ray_runs() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    kind, description, tags = METRICS[name]
    return getattr(metrics, kind)(name, description, tag_keys=tags)
