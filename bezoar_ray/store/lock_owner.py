"""Who holds a run directory."""

import os
import socket
from typing import Any

import psutil


def me() -> str:
    """This process, in words."""
    return f"process {os.getpid()} on host {socket.gethostname()}"


def alive() -> dict[str, Any]:
    """What tells this process from all others."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def died(holder: dict[str, Any]) -> bool:
    """Whether a process of this host is known to be gone; of another host nobody knows."""
    if holder["host"] != socket.gethostname():
        return False
    try:
        return psutil.Process(holder["pid"]).create_time() != holder["started"]
    except psutil.NoSuchProcess:
        return True


def in_use(root: object, holder: str) -> str:
    """What a second command is told."""
    return (
        f"{root} is in use by {holder or 'another process'}. Wait for it to end, stop it, or choose another --run-dir."
    )
