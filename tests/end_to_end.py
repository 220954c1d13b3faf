"""A small but whole run of the embedded recipe, as a user would start it, and what can be done to its processes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import orjson
import psutil

from bezoar_ray.store import Store

# A tenth of the rows: every stage, every scheme, in a few minutes.
SMALL = [
    "generate.lamini.calls=12",
    "generate.evol_instruct.seeds=12",
    "generate.evol_instruct.epochs=2",
    "generate.orca.rows=30",
    "sft.epochs=1",
    "sft.checkpoint_every=2",
    "hh_sft.limit=64",
    "align.limit=64",
    "align.checkpoint_every=2",
    "evaluate.heldout_pairs=20",
    "evaluate.harness.tasks.0.limit=20",
    "evaluate.harness.tasks.1.limit=20",
    "evaluate.harness.tasks.2.limit=20",
    "filter.counterfactuals=20",
    "evaluate.mt_bench.limit=4",
]
_MARK = "BEZOAR_TEST_MARK"
TRAINED = ("sft", "hh-sft", "dpo")
CHECKPOINTS = ("base", *TRAINED)
"""The checkpoints of a run whose recipe aligns by DPO."""


class Module:
    """A Python module in a process of its own; every process that it starts carries a mark."""

    def __init__(
        self, name: str, *arguments: str, environment: dict[str, str] | None = None
    ):
        # A shell that runs tests in its background has them ignore Ctrl-C, and what they start would ignore it, too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.mark = uuid.uuid4().hex
        self._seen: set[psutil.Process] = set()
        self._process = subprocess.Popen(
            [sys.executable, "-m", name, *arguments],
            cwd=Path(__file__).parents[1],
            env=os.environ | (environment or {}) | {_MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait(self, timeout: float = 900) -> tuple[int, str]:
        """Exit code and what was printed."""
        output, _ = self._process.communicate(timeout=timeout)
        return self._process.returncode, output

    def read_until(self, text: str) -> str:
        """Read what is printed, up to the line with a text in it, which is returned."""
        said = next((line for line in self._process.stdout if text in line), None)
        assert said is not None, f"ended without saying {text!r}"
        return said

    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def wait_until(self, ready: Callable[[], bool], timeout: float = 600) -> None:
        """Until something has happened; the command must not have ended by then."""
        end = time.monotonic() + timeout
        while not (there := ready()) and self.runs() and time.monotonic() < end:
            time.sleep(0.05)
        assert self.runs(), f"the run ended first:\n{self.wait()[1]}"
        assert there, f"it did not happen within {timeout:g} s"

    def processes(self) -> list[psutil.Process]:
        """Every living process of this command: what has been seen below it, and what carries its mark, which a
        process that gives itself a title loses."""
        with contextlib.suppress(psutil.Error):
            driver = psutil.Process(self._process.pid)
            self._seen |= {driver, *driver.children(recursive=True)}
        self._seen |= {
            process for process in psutil.process_iter() if _carries(process, self.mark)
        }
        return [process for process in self._seen if _lives(process)]

    def kill_everything(self) -> None:
        """SIGKILL to the driver and all it started, the driver first."""
        self.kill_driver()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def kill_driver(self) -> None:
        """SIGKILL to the driver alone."""
        self.processes()  # while what it started can be found below it
        self._process.kill()
        self._process.wait()

    def interrupt(self, by: signal.Signals = signal.SIGINT) -> None:
        """Ctrl-C, or another signal that asks it to stop."""
        self._process.send_signal(by)


class Command(Module):
    """`bezoar run`."""

    def __init__(
        self, run_dir: Path, *extra: str, recipe: str = "tiny", sets: list[str] = SMALL
    ):
        settings = [part for setting in sets for part in ("--set", setting)]
        super().__init__(
            "bezoar_ray.cli",
            "run",
            recipe,
            "--run-dir",
            str(run_dir),
            *settings,
            *extra,
        )


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(_MARK) == mark
    except psutil.Error:
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def summary(run_dir: Path | str) -> dict:
    """summary.json, which must be whole at any moment; empty before there is one."""
    return Store(run_dir).read_json("summary.json") or {}


def in_stage(run_dir: Path | str, stage: str) -> bool:
    """Whether a stage has begun and not ended."""
    return summary(run_dir).get("stages", {}).get(stage, {}).get("status") == "running"


def begun(run_dir: Path | str, stage: str) -> dict[str, list[tuple[str, int]]]:
    """How a stage's training began and went on, and after which step, by the workers' ranks."""
    found: dict[str, list[tuple[str, int]]] = {}
    for event in map(
        orjson.loads, Store(run_dir).log("events.jsonl").read_bytes().splitlines()
    ):
        if event.get("stage") == stage and "after_step" in event:
            found.setdefault(event["rank"], []).append(
                (event["event"], event["after_step"])
            )
    return found


def replies(run_dir: Path | str, role: str = "") -> list[tuple[str, str]]:
    """Key and text of each durable answer in the ledger, of one role or of all."""
    store = Store(run_dir)
    lines = [
        line
        for name in store.list(f"ledger/{role}".rstrip("/"))
        for line in store.read(name).splitlines(True)
    ]
    entries = [orjson.loads(line) for line in lines if line.endswith(b"\n")]
    return [
        (entry["reply"], entry["answer"]["text"])
        for entry in entries
        if "reply" in entry
    ]


def harness_scores(run_dir: Path) -> dict[tuple[str, str], dict]:
    """lm-eval's results that are there, by checkpoint and task."""
    files = [
        orjson.loads(path.read_bytes()) for path in run_dir.glob("eval/harness/*.json")
    ]
    return {
        (found["checkpoint"], task): entry
        for found in files
        for task, entry in found["tasks"].items()
    }
