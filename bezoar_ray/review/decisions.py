"""The append-only record of what people decide in a run directory.

Each session writes a segment of its own, as the ledger does: a file that grows or, in a
bucket, a series of objects. So several servers can write at once, and a line that a
crash tore is the last of its file: no later line is joined with it.
"""

import threading
import time
import uuid

from bezoar_ray import layout
from bezoar_ray.data.decision import Decision, encode_decision, read_own_decisions
from bezoar_ray.llm.ledger_files import Segment, create_segment
from bezoar_ray.store import Store


class DecisionLog:
    """The decisions of a run directory.

    Several threads can use one log.
    """

    def __init__(self, store: Store):
        self._store = store
        # The time comes first, so that the files sort by it.
        started = time.strftime("%Y%m%dT%H%M%S")
        self._name = f"{layout.DECISIONS}/{started}-{uuid.uuid4().hex[:6]}"
        self._segment: Segment | None = None
        self._next_write = 0.0
        self._guard = threading.Lock()

    def append(self, *decisions: Decision) -> None:
        """Add decisions. They are durable when this returns.

        Raises:
            BezoarError: They cannot be written, and none of them is.
        """
        if not decisions:
            return
        data = b"".join(map(encode_decision, decisions))
        with self._guard:
            # A session in which nobody decides leaves no file.
            if self._segment is None:
                self._segment = create_segment(self._store, self._name)
            # A bucket takes few writes of one object in a second.
            time.sleep(max(0.0, self._next_write - time.monotonic()))
            self._segment.append(data)
            self._next_write = time.monotonic() + self._segment.pause

    def read(self) -> list[Decision]:
        """Read the decisions of all sessions, also those that others are adding."""
        return read_own_decisions(self._store)

    def close(self) -> None:
        """End the session."""
        if self._segment:
            self._segment.close()
            self._segment = None
