"""The run directory: files that are replaced as a whole, listed and locked.

It is a folder (local, or mounted on every node, as NFS is) or a prefix in a bucket
(`s3://`, `gs://`). A bucket has neither rename nor append, so every write is a whole
object. Which files count is said by the stages' manifests.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.store.backend import Backend
from bezoar_ray.store.bucket import Bucket
from bezoar_ray.store.folder import Folder


class Store:
    """A run directory.

    All names of files are relative to its root. A process that dies in `replace` leaves
    either the old file or the new one.
    """

    def __init__(self, root: str | Path):
        self._files: Backend
        if "://" in str(root):
            self._files = Bucket(str(root))
        else:
            self._files = Folder(Path(root).absolute())
        self.root = self._files.root
        """The folder, or the URL."""
        self.name = PurePath(self.root).name
        """Name of the run in logs and metrics."""

    @property
    def remote(self) -> bool:
        """Whether the run directory is in a bucket."""
        return isinstance(self._files, Bucket)

    def path(self, name: str) -> Path:
        """A local path from which libraries can read a file or folder.

        In a bucket it is a copy of the objects as they are now.

        Raises:
            RecipeError: the name is outside the run directory.
        """
        return self._files.path(name)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local path at which the block writes a file or folder.

        After the block, the file or folder is in the run directory.
        """
        with self._files.writing(name) as path:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield path

    def here(self, name: str) -> Path:
        """A local path for files that may be lost with the node.

        It is in the run directory or, where that is in a bucket, on this node's disk.
        """
        path = self._files.here(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def log(self, name: str) -> Path:
        """Local path of a log."""
        return self.here(layout.log(name))

    def where(self, name: str) -> str:
        """Where a user finds a log, in words.

        With a run directory in a bucket, each node has logs of its own.
        """
        if self.remote:
            return f"{self.log(name)} on the node that wrote it"
        return str(self.log(name))

    def exists(self, name: str) -> bool:
        """Whether a file or folder exists."""
        return self._files.exists(name)

    def list(self, prefix: str, suffix: str = "") -> list[str]:
        """The names of all files below a folder, at any depth, sorted."""
        # A file system lists in any order, and fingerprints must not depend on it.
        return sorted(
            name for name in self._files.list(prefix) if name.endswith(suffix)
        )

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        return self._files.read(name)

    def replace(self, name: str, data: bytes | str) -> None:
        """Write a whole file, which becomes durable and visible at once or not at all.

        Raises:
            BezoarError: it cannot be written; the message names file, reason and
                remedy.
        """
        if isinstance(data, str):
            data = data.encode()
        self._files.replace(name, data)

    def remove(self, prefix: str) -> None:
        """Remove a file or folder if it exists."""
        self._files.remove(prefix)

    def adopt(self, other: "Store", name: str) -> None:
        """Take over a file or folder of another run directory of the same kind.

        Where the file system allows, it is linked instead of copied.
        """
        # A file has nothing below it to list.
        for file in other.list(name) or [name]:
            self._files.adopt(other._files, file)

    def open(self, name: str) -> pa.NativeFile:
        """Open a file for reading at any position."""
        return self._files.open(name)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[str]:
        """The path or URL of a temporary folder that the whole cluster can reach.

        It is removed after the block.
        """
        # A killed command may have left one.
        self.remove("scratch")
        try:
            yield f"{self.root}/scratch"
        finally:
            self.remove("scratch")

    def read_json(self, name: str) -> Any:
        """The value of a JSON file; None where the file does not exist.

        Raises:
            BezoarError: the file is not valid JSON.
        """
        try:
            return orjson.loads(self.read(name))
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError as error:
            raise BezoarError(
                f"{self.root}/{name} is not valid JSON: {error}. Remove or restore it"
            ) from error

    def replace_json(self, name: str, value: object) -> None:
        """Write a value as a whole JSON file."""
        # Some keys are numbers, such as the turns of MT-Bench.
        options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS
        self.replace(name, orjson.dumps(value, option=options))

    def read_table(self, prefix: str, schema: pa.Schema) -> pa.Table:
        """Read a Parquet file, or all Parquet files below a folder, as one table.

        Files are read in the order of their names. Without files the table is empty.
        """
        names = [prefix]
        if not prefix.endswith(".parquet"):
            names = self.list(prefix, ".parquet")
        tables = []
        for name in names:
            data = BytesIO(self.read(name))
            tables.append(pq.read_table(data, schema=schema))
        if not tables:
            return schema.empty_table()
        return pa.concat_tables(tables)

    def replace_table(self, name: str, table: pa.Table) -> None:
        """Write a table as a whole Parquet file."""
        buffer = BytesIO()
        pq.write_table(table, buffer)
        self.replace(name, buffer.getvalue())

    def digest(self, *names: str) -> str:
        """A fingerprint of files and folders by content, as by `digest`."""
        return digest(*map(self.path, names))

    def digest_of(self, names: Sequence[str]) -> str:
        """The `digest` of a folder if it held only these of its files."""
        parent = PurePath(names[0]).parent
        folder = self.path(str(parent))
        return _digest((folder / PurePath(name).name, folder) for name in names)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run directory for the block.

        Raises:
            RunLocked: another process has locked it; the message names host and
                process.
            RecipeError: the run directory cannot be written.
        """
        try:
            self.replace(".probe", b"")
            self.remove(".probe")
        except BezoarError as error:
            # No work has begun, so this is a usage error (exit code 2).
            raise RecipeError(str(error)) from error
        with self._files.lock():
            yield


def at(path: str | Path) -> tuple[Store, str]:
    """The store and the name there of a file, given by its path or URL."""
    folder, _, name = str(path).rpartition("/")
    return Store(folder), name


def digest(*paths: Path) -> str:
    """A fingerprint of files and folders by content.

    Returns:
        16 hex digits of SHA-256 over relative names and bytes.
    """
    files = []
    for top in paths:
        if top.is_dir():
            inner_files = [path for path in top.rglob("*") if path.is_file()]
            files += [(path, top) for path in sorted(inner_files)]
        else:
            files.append((top, top))
    return _digest(files)


def _digest(files: Iterable[tuple[Path, Path]]) -> str:
    """The fingerprint of files, each with the folder to which its name is relative."""
    total = hashlib.sha256()
    for path, top in files:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(top)}:{content};".encode())
    return total.hexdigest()[:16]
