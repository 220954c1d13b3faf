"""Where a ledger's answers are that earlier commands have recorded: read once, and shared by the actors of a node.

Nobody writes to the segments of an earlier command any more. Its answers are therefore found through arrays that the
driver makes once, and that Ray's object store holds once on each node, some 24 bytes an answer.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bezoar_ray import layout
from bezoar_ray.llm import ledger_files
from bezoar_ray.store import Store

OFFSET_BITS = 44  # a place is a segment's number and an offset in it, in one integer
_LENGTH = 16  # bytes of a key
_KEY = f"S{_LENGTH}"


@dataclass(frozen=True)
class Index:
    """The places of answers."""

    writers: tuple[str, ...]
    """Whose segments have the numbers from 0 on."""
    keys: Any
    """Of all answers, sorted: an array of 16 bytes each."""
    places: Any
    """Of the answers, in the order of their keys: an array of int64."""

    @classmethod
    def of(cls, writers: Mapping[str, BinaryIO]) -> "Index":
        """Read the segments of some writers. Of several answers to a call, the last one counts."""
        import numpy as np

        keys, places = bytearray(), array("q")
        for number, segment in enumerate(writers.values()):
            offset = 0
            for line, entry in ledger_files.entries(segment):
                if "reply" in entry:
                    keys += bytes.fromhex(entry["reply"]).ljust(_LENGTH, b"\0")
                    places.append(number << OFFSET_BITS | offset)
                offset += len(line)
        unsorted = np.frombuffer(keys, _KEY)
        order = np.argsort(unsorted, kind="stable")
        return cls(
            tuple(writers), unsorted[order], np.frombuffer(places, np.int64)[order]
        )

    def __len__(self) -> int:
        return len(self.places)

    def find(self, key: bytes) -> int | None:
        """The place of an answer."""
        import numpy as np

        after = int(self.keys.searchsorted(np.array(key, _KEY), side="right"))
        is_there = after and self.keys[after - 1] == key.rstrip(
            b"\0"
        )  # which numpy leaves out
        return int(self.places[after - 1]) if is_there else None


def read_index(root: str | Path, role: str, session: str) -> Index:
    """The answers of one role that commands before this session have recorded."""
    found = dict(ledger_files.earlier(Store(root), layout.ledger(role)))
    try:
        return Index.of(before(found, session))
    finally:
        for segment in found.values():
            segment.close()


def before(writers: Mapping[str, BinaryIO], session: str) -> dict[str, BinaryIO]:
    """The writers of earlier sessions."""
    return {
        writer: segment
        for writer, segment in writers.items()
        if not writer.startswith(session)
    }
