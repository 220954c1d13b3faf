"""The append-only record of what people decide on the rows of a run directory."""

from bezoar_ray import layout
from bezoar_ray.data.decision import Decision, encode_decision, read_own_decisions
from bezoar_ray.review.line_log import LineLog
from bezoar_ray.store import Store


class DecisionLog:
    """The decisions of a run directory.

    Several threads can use one log.
    """

    def __init__(self, store: Store):
        self._store = store
        self._lines = LineLog(store, layout.DECISIONS)

    def append(self, *decisions: Decision) -> None:
        """Add decisions. They are durable when this returns.

        Raises:
            BezoarError: They cannot be written, and none of them is.
        """
        if decisions:
            self._lines.append(b"".join(map(encode_decision, decisions)))

    def read(self) -> list[Decision]:
        """Read the decisions of all sessions, also those that others are adding."""
        return read_own_decisions(self._store)

    def close(self) -> None:
        """End the session."""
        self._lines.close()
