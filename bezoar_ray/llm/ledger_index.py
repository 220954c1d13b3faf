"""The locations of a ledger's earlier answers, read once and shared on a node.

No process writes to the segments of an earlier command any more. The driver reads them
once into arrays, which Ray's object store holds once per node. An answer takes 24 bytes.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bezoar_ray import layout
from bezoar_ray.llm import ledger_files
from bezoar_ray.store import Store

# A signed integer of 64 bits leaves 19 for the segment, and 16 TiB for each of them.
OFFSET_BITS = 44
"""A location is a segment's number and an offset in it, in one integer."""
_KEY_BYTES = 16
_KEY_DTYPE = f"S{_KEY_BYTES}"


@dataclass(frozen=True)
class LedgerIndex:
    """The locations of the answers that earlier commands have recorded."""

    writers: tuple[str, ...]
    """Names of the segments' writers. A writer's position is its segment's number."""
    keys: Any
    """Keys of all answers, sorted: an array of 16 bytes each."""
    locations: Any
    """Locations of the answers, in the order of their keys: an array of int64."""

    @classmethod
    def of(cls, segments: Mapping[str, BinaryIO]) -> "LedgerIndex":
        """Read segments by their writers. The last of several answers counts."""
        import numpy as np

        keys = bytearray()
        locations = array("q")
        for number, segment in enumerate(segments.values()):
            offset = 0
            for line, entry in ledger_files.entries(segment):
                if "reply" in entry:
                    keys += bytes.fromhex(entry["reply"]).ljust(_KEY_BYTES, b"\0")
                    locations.append(number << OFFSET_BITS | offset)
                offset += len(line)
        unsorted_keys = np.frombuffer(keys, _KEY_DTYPE)
        unsorted_locations = np.frombuffer(locations, np.int64)
        # Stable, so that of equal keys the last one recorded stays last.
        order = np.argsort(unsorted_keys, kind="stable")
        return cls(tuple(segments), unsorted_keys[order], unsorted_locations[order])

    def __len__(self) -> int:
        return len(self.locations)

    def find(self, key: bytes) -> int | None:
        """Return the location of the last answer to a call, if there is one."""
        if not self.writers:  # a new run: most calls are looked up in vain
            return None
        import numpy as np

        padded_key = np.array(key, _KEY_DTYPE)
        end = int(self.keys.searchsorted(padded_key, side="right"))
        # numpy strips the zero bytes at the end of a key.
        if end == 0 or self.keys[end - 1] != key.rstrip(b"\0"):
            return None
        return int(self.locations[end - 1])


def read_index(root: str | Path, role: str, session: str) -> LedgerIndex:
    """Index the answers of one role that commands before this session recorded."""
    segments = dict(ledger_files.open_segments(Store(root), layout.ledger(role)))
    try:
        return LedgerIndex.of(earlier_segments(segments, session))
    finally:
        for segment in segments.values():
            segment.close()


def earlier_segments(
    segments: Mapping[str, BinaryIO], session: str
) -> dict[str, BinaryIO]:
    """Select the segments that other sessions wrote."""
    selected = {}
    for writer, segment in segments.items():
        if not writer.startswith(session):
            selected[writer] = segment
    return selected
