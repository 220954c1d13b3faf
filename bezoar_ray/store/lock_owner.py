"""Who holds a run directory."""

import os
import socket
from typing import TypedDict

import psutil


class Process(TypedDict):
    """What tells a process from all others."""

    host: str
    pid: int
    started: float


def me() -> str:
    """This process, in words."""
    return f"process {os.getpid()} on host {socket.gethostname()}"


def alive() -> Process:
    """This one."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }


def died(holder: Process) -> bool:
    """Whether a process of this host is known to be gone; of another host nobody knows."""
    if holder["host"] != socket.gethostname():
        return False
    try:
        return psutil.Process(holder["pid"]).create_time() != holder["started"]
    except psutil.NoSuchProcess:
        return True


def in_use(root: object, holder: str) -> str:
    """What a second command is told."""
    owner = holder or "another process"
    return f"{root} is in use by {owner}. Wait for it to end, stop it, or choose another --run-dir."
