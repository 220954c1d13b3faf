"""What a run directory lies in: a folder (folder.py) or a bucket (bucket.py)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa


class Backend(ABC):
    """Files by their names below a root. Names are relative and cannot lead out of it."""

    root: Path | str
    """The folder, or the URL."""

    @abstractmethod
    def path(self, name: str) -> Path:
        """The local path of a file or folder as it is now.

        Raises:
            RecipeError: the name leads out of the run directory.
        """

    @abstractmethod
    def here(self, name: str) -> Path:
        """The local path of what need not last."""

    @abstractmethod
    def writing(self, name: str) -> AbstractContextManager[Path]:
        """The local path at which the block writes a file or folder."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[str]:
        """The names of all files below a folder, but for those that begin with a dot."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            FileNotFoundError: there is none.
            BezoarError: it cannot be read.
        """

    @abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Write a whole file: durable and visible at once, or not at all.

        Raises:
            BezoarError: it cannot be written.
        """

    @abstractmethod
    def remove(self, prefix: str) -> None:
        """Remove a file or folder, if there is one."""

    @abstractmethod
    def adopt(self, other: "Backend", name: str) -> None:
        """Take over a file of another run directory of the same kind."""

    @abstractmethod
    def open(self, name: str) -> pa.NativeFile:
        """A file to read from anywhere within."""

    @abstractmethod
    def lock(self) -> AbstractContextManager[None]:
        """Hold the run directory for the block.

        Raises:
            RunLocked: another process holds it.
        """
