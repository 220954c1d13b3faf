"""`overlap.ratio`: generate and filter together over the longer of the two alone; engine starts are part of both."""

import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from bezoar_ray.filter import stage as filtering
from bezoar_ray.generate import stage as generating
from bezoar_ray.recipe import load_recipe
from bezoar_ray.runs.generate_and_filter import run as together
from bezoar_ray.runtime.session import ray_session
from bezoar_ray.stages import StageContext
from jobs.benchmarks import server
from jobs.benchmarks.context import context

JUDGE_SLOTS = 8  # its calls of 100 ms then take about as long as the teacher's, whose engine has started
# A job of many times what is under way at a time: the last of that cannot overlap, nor can the engine's start.
TEACHER_SLOTS = 64
ROWS = {
    "lamini": {"calls": 300, "per_call": 5},
    "evol_instruct": {"seeds": 120, "epochs": 2},
    "orca": {"rows": 250},
}


def figures() -> Iterator[tuple[str, list[float]]]:
    """The tiny teacher on vLLM, and a judge server of 100 ms."""
    ratios = []
    with server.running(0.1) as url, ray_session():
        teacher = load_recipe("tiny").teachers[0].model_dump(mode="json") | {
            "max_in_flight": TEACHER_SLOTS
        }
        judge = {"model": "j", "base_url": url, "max_in_flight": JUDGE_SLOTS}
        sections = {"teachers": [teacher], "judges": [judge], "generate": ROWS}
        for _ in range(3):
            with (
                tempfile.TemporaryDirectory() as apart,
                tempfile.TemporaryDirectory() as joined,
            ):
                alone = [
                    _seconds(stage.run, context(apart, **sections))
                    for stage in (generating, filtering)
                ]
                both = _seconds(
                    lambda run: dict(together(run)), context(joined, **sections)
                )
            ratios.append(round(both / max(alone), 4))
    yield "overlap.ratio", ratios


def _seconds(work: Callable[[StageContext], Any], run: StageContext) -> float:
    began = time.monotonic()
    work(run)
    return time.monotonic() - began
