"""`memory.per_row`: bytes by which the peak grows for each row more, from 10,000 to 100,000 rows.

generate and filter together, in a process of its own for each size: Orca queries, a teacher and a judge that answer at
once, dedup and ledger on. PSS of the driver and all that it starts, the model server left out.
"""

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

from jobs.benchmarks import server

FEW, MANY = 10_000, 100_000


def figures() -> Iterator[tuple[str, list[float]]]:
    """KiB a row, one sample: it takes half an hour."""
    with server.running() as url:
        few, many = (_peak(url, rows) for rows in (FEW, MANY))
    yield "memory.per_row", [round((many - few) / (MANY - FEW) / 1024, 4)]


def _peak(url: str, rows: int) -> int:
    command = [sys.executable, "-m", "jobs.benchmarks.memory", url, str(rows)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as process:
        peak, over = 0, threading.Event()
        while process.poll() is None:
            peak = max(peak, _pss(psutil.Process(process.pid)))
            over.wait(1.0)
    assert process.returncode == 0
    return peak


def _pss(top: psutil.Process) -> int:
    total = 0
    for process in [top, *top.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def _work(url: str, rows: int) -> None:
    from bezoar_ray.recipe import load_recipe
    from bezoar_ray.runs.generate_and_filter import run
    from bezoar_ray.runtime.session import ray_session
    from jobs.benchmarks.context import context

    with tempfile.TemporaryDirectory() as folder, ray_session():
        flan = Path(folder, "flan.jsonl")
        with open(flan, "w") as file:
            for number in range(rows):
                row = {
                    "inputs": f"Query {number}: what comes after {number * 7}?",
                    "targets": "x",
                }
                row |= {
                    "task_source": "CoT",
                    "task_name": f"t{number % 100}",
                    "template_type": "zs_noopt",
                }
                file.write(json.dumps(row) + "\n")
        seeds = load_recipe("tiny").seeds.model_dump(mode="json")
        orca = context(
            str(Path(folder, "run")),
            generate={"lamini": None, "evol_instruct": None, "orca": {"rows": rows}},
            seeds=seeds
            | {"dolly": [], "flan": [{"source": str(flan), "license": "CC0"}]},
            teachers=[{"model": "t", "base_url": url, "max_in_flight": 64}],
            judges=[{"model": "j", "base_url": url, "max_in_flight": 64}],
        )
        outcomes = dict(run(orca))
        assert (
            sum(
                counts["accepted"]
                for counts in outcomes["filter"].summary["data"].values()
            )
            > 0.9 * rows
        )


if __name__ == "__main__":
    _work(sys.argv[1], int(sys.argv[2]))
