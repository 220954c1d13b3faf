"""Where library output goes: to DIR/logs, so that the terminal keeps one line per stage; and events of ours."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import orjson

from bezoar_ray.store import Store

EVENTS = "bezoar_ray"  # the logger of ours
current_row: ContextVar[str] = ContextVar("row", default="")
"""The row whose chain of calls runs at the moment; events name it."""


def redirect(path: str | Path, streams: tuple[int, ...] = (1, 2)) -> None:
    """Append what this process and its children write to these file descriptors from now on to a file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in streams:
        os.dup2(file, stream)
    os.close(file)


@contextlib.contextmanager
def stderr_to(path: str | Path) -> Iterator[None]:
    """Within the block, what is written to standard error, by libraries in C++ too, goes to a file."""
    terminal = os.dup(2)
    redirect(path, (2,))
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def keep_events(store: Store, **fields: str) -> None:
    """From now on, this process appends its events to logs/events.jsonl of a run directory, a line of JSON each, with
    the run's name and these fields in every one."""
    handler = logging.FileHandler(store.log("events.jsonl"), delay=True)
    handler.setFormatter(_Json({"run": store.name} | fields))
    logger = logging.getLogger(EVENTS)
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def event(what: str, level: int = logging.INFO, **fields: object) -> None:
    """Something that happened; without `keep_events` before, nobody keeps it."""
    logging.getLogger(EVENTS).log(level, what, extra={"fields": fields})


class _Json(logging.Formatter):
    """One event as a line of JSON: when, how grave, where, which row, what."""

    def __init__(self, fields: dict[str, str]):
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        at = (
            time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03}Z"
        )
        row = {"row": current_row.get()} if current_row.get() else {}
        entry = {
            "at": at,
            "level": record.levelname,
            **self._fields,
            "process": record.process,
            **row,
        }
        entry |= {"event": record.getMessage(), **getattr(record, "fields", {})}
        return orjson.dumps(entry, default=str).decode()
