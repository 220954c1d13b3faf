"""Where library output goes: to DIR/logs, so that the terminal keeps one line per stage."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


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
