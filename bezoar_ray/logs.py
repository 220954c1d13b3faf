"""Where library output goes: to DIR/logs, so that the terminal keeps one line per stage."""

import os
from pathlib import Path


def redirect(path: str | Path) -> None:
    """Append all that this process and its children print from now on to a file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
