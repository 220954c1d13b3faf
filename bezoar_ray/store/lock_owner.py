"""The process that has locked a run directory."""

import os
import socket
from typing import TypedDict

import psutil


class Process(TypedDict):
    """A process, told apart from all others on all hosts."""

    host: str
    pid: int
    started: float
    """Seconds since the epoch. Process ids are used again; with the start they are
    unique."""


def describe_this_process() -> str:
    """This process in words, for the message to another command."""
    return f"process {os.getpid()} on host {socket.gethostname()}"


def this_process() -> Process:
    """This process."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }


def has_died(owner: Process) -> bool:
    """Whether a process is known to have ended.

    Of a process on another host nothing is known.
    """
    if owner["host"] != socket.gethostname():
        return False
    try:
        return psutil.Process(owner["pid"]).create_time() != owner["started"]
    except psutil.NoSuchProcess:
        return True


def in_use_message(root: object, owner: str) -> str:
    """The message to a second command in a run directory."""
    owner = owner or "another process"
    return (
        f"{root} is in use by {owner}. Wait for it to end, stop it, or choose another "
        "--run-dir."
    )
