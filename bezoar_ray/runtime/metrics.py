"""Metrics for Prometheus: calls, tokens, dollars and the progress of a stage.

Every node exports them through Ray. `cluster/grafana.json` shows them. Without Ray they
go nowhere.

Counts are sent to Ray once a second: sending one costs about as much as the rest of a
call's accounting.
"""

import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

CALLS = ("run", "stage", "role", "model")
"""The tags of everything about model calls."""
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
"""Kind, description and tags of each metric.

Ray puts `ray_` before a name, and `_total` after the name of a counter.
"""

_SEND_EVERY = 1.0  # seconds

_Tags = tuple[tuple[str, str], ...]


class MetricSet:
    """Some metrics of this process, under tags of their own."""

    def __init__(self, **tags: str):
        self._tags = tags
        self._counts: defaultdict[tuple[str, _Tags], float] = defaultdict(float)
        self._watched: list[tuple[str, Callable[[], float], dict[str, str]]] = []
        self._sent_at = 0.0
        self._is_scheduled = False

    def watch(self, name: str, value: Callable[[], float], **tags: str) -> None:
        """Send the current value of a gauge whenever counts are sent."""
        self._watched.append((name, value, self._tags | tags))

    def add(self, name: str, amount: float = 1.0, **tags: str) -> None:
        """Add to a counter. It is sent within a second, or with a later count."""
        self._counts[name, tuple(tags.items())] += amount
        if self._is_scheduled:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # A thread without an event loop, as the driver's, has no timer either.
            if time.monotonic() - self._sent_at > _SEND_EVERY:
                self.tell()
        else:
            self._is_scheduled = True
            loop.call_later(_SEND_EVERY, self.tell)

    def tell(self) -> None:
        """Send the counts and the current values of the gauges to Ray."""
        self._sent_at = time.monotonic()
        self._is_scheduled = False
        # Also without Ray, or counts that nobody takes would grow with the run.
        counts = self._counts
        self._counts = defaultdict(float)
        if not _ray_runs():
            return
        for (name, tags), amount in counts.items():
            if amount:  # Ray refuses to add 0
                _metric(name).inc(amount, self._tags | dict(tags))
        for name, value, all_tags in self._watched:
            _metric(name).set(value(), all_tags)


def set_stage(run: str, stage: str, done: float, total: float) -> None:
    """Set how far a stage is. It is called by the driver."""
    if _ray_runs():
        _metric("bezoar_stage_done").set(done, {"run": run, "stage": stage})
        _metric("bezoar_stage_total").set(total, {"run": run, "stage": stage})


def hold_gpus(run: str, stage: str) -> None:
    """Set which GPUs of its node this Ray actor works on.

    The tag `GpuIndex` is that of Ray's own metrics of a GPU.
    """
    import ray

    for index in ray.get_gpu_ids():
        tags = {"run": run, "stage": stage, "GpuIndex": str(index)}
        _metric("bezoar_gpu").set(1, tags)


def _ray_runs() -> bool:
    # Not imported for this, as commands without Ray start in about a second.
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    kind, description, tags = METRICS[name]
    return getattr(metrics, kind)(name, description, tag_keys=tags)
