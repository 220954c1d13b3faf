"""The interface of what holds a run directory: a folder or a bucket."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa


class Backend(ABC):
    """Files by their names below a root. Names are relative and stay below it."""

    root: Path | str
    """The folder, or the URL."""

    @abstractmethod
    def path(self, name: str) -> Path:
        """A local path from which a file or folder can be read as it is now.

        Raises:
            RecipeError: the name is outside the run directory.
        """

    @abstractmethod
    def here(self, name: str) -> Path:
        """A local path for files that may be lost with the node."""

    @abstractmethod
    def writing(self, name: str) -> AbstractContextManager[Path]:
        """A local path at which the block writes a file or folder."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether a file or folder exists."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[str]:
        """The names of all files below a folder, except those that begin with a dot."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            FileNotFoundError: there is none.
            BezoarError: it cannot be read.
        """

    @abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Write a whole file, which becomes durable and visible at once or not at all.

        Raises:
            BezoarError: it cannot be written.
        """

    @abstractmethod
    def remove(self, prefix: str) -> None:
        """Remove a file or folder if it exists."""

    @abstractmethod
    def adopt(self, other: "Backend", name: str) -> None:
        """Take over a file of another run directory of the same kind."""

    @abstractmethod
    def open(self, name: str) -> pa.NativeFile:
        """Open a file for reading at any position."""

    @abstractmethod
    def lock(self) -> AbstractContextManager[None]:
        """Lock the run directory for the block.

        Raises:
            RunLocked: another process has locked it.
        """
