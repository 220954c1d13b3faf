"""Redirect the output of libraries to DIR/logs, and keep our own events there.

So the terminal keeps one line per stage.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import orjson

from bezoar_ray.store import Store

EVENTS = "bezoar_ray"
"""The logger of our events."""

current_row: ContextVar[str] = ContextVar("row", default="")
"""The row whose chain of calls runs at the moment; events name it."""


def redirect(path: str | Path, streams: tuple[int, ...] = (1, 2)) -> None:
    """Append everything that goes to these file descriptors to a file.

    It holds for this process and for the children that it starts later.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # O_APPEND, since several processes write to one log and would else overwrite lines.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in streams:
        # Below Python's sys.stdout, so that C++ libraries and child processes follow.
        os.dup2(file, stream)
    os.close(file)


@contextlib.contextmanager
def stderr_to(path: str | Path) -> Iterator[None]:
    """Redirect standard error within the block, that of C++ libraries included."""
    terminal = os.dup(2)
    redirect(path, (2,))
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def keep_events(store: Store, **fields: str) -> None:
    """Append this process's later events to logs/events.jsonl of a run directory.

    Args:
        store: The run directory.
        fields: Stand in every event, beside the name of the run.
    """
    # Opened at the first event, since most processes have none.
    handler = logging.FileHandler(store.log("events.jsonl"), delay=True)
    handler.setFormatter(_JsonFormatter({"run": store.name} | fields))
    logger = logging.getLogger(EVENTS)
    # Replaced and not added: Ray uses a process again for a later task.
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)


def event(what: str, level: int = logging.INFO, **fields: object) -> None:
    """Record something that happened; it is only kept after `keep_events`."""
    logging.getLogger(EVENTS).log(level, what, extra={"fields": fields})


class _JsonFormatter(logging.Formatter):
    """Writes an event as a line of JSON: time, level, process, row and fields."""

    def __init__(self, fields: dict[str, str]):
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, object] = {
            "at": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname,
            **self._fields,
            "process": record.process,
        }
        row = current_row.get()
        if row:
            entry["row"] = row
        entry["event"] = record.getMessage()
        entry.update(getattr(record, "fields", {}))
        return orjson.dumps(entry, default=str).decode()
