"""Lines that people's decisions append to a folder of a run directory.

Each session writes a segment of its own, as the ledger does: a file that grows or, in a
bucket, a series of objects. So several servers can write at once, and a line that a
crash tore is the last of its file: no later line is joined with it.
"""

import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import orjson

from bezoar_ray.llm.ledger_files import Segment, create_segment
from bezoar_ray.store import Store


class LineLog:
    """The lines of one session. Several threads can use it.

    Args:
        store: the run directory.
        folder: where the segments of all sessions are.
    """

    def __init__(self, store: Store, folder: str):
        self._store = store
        # The time comes first, so that the files sort by it.
        started = time.strftime("%Y%m%dT%H%M%S")
        self._name = f"{folder}/{started}-{uuid.uuid4().hex[:6]}"
        self._segment: Segment | None = None
        self._next_write = 0.0
        self._guard = threading.Lock()

    def append(self, lines: bytes) -> None:
        """Add whole lines. They are durable when this returns.

        Raises:
            BezoarError: They cannot be written, and none of them is.
        """
        with self._guard:
            # A session in which nobody decides leaves no file.
            if self._segment is None:
                self._segment = create_segment(self._store, self._name)
            # A bucket takes few writes of one object in a second.
            time.sleep(max(0.0, self._next_write - time.monotonic()))
            self._segment.append(lines)
            self._next_write = time.monotonic() + self._segment.pause

    def close(self) -> None:
        """End the session."""
        if self._segment:
            self._segment.close()
            self._segment = None


def read_lines(store: Store, folder: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of all sessions. A torn one is left out."""
    for name in store.list(folder, ".jsonl"):
        for line in store.read(name).splitlines(keepends=True):
            if line.endswith(b"\n"):
                yield orjson.loads(line)
