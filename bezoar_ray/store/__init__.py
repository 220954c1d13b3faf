"""The run directory: whole files replaced at once, listed, locked; manifests say which of them count.

It is a folder (local, or mounted on every node, as NFS is), or lies in a bucket (`s3://`, `gs://`). A bucket
knows neither rename nor append: all that is written there is whole objects.
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
    """A run directory. Every path is relative to its root; `replace` leaves either the old file or the new one."""

    def __init__(self, root: str | Path):
        self._files: Backend = (
            Bucket(str(root)) if "://" in str(root) else Folder(Path(root).absolute())
        )
        self.root = self._files.root
        """The folder, or the URL."""
        self.name = PurePath(self.root).name
        """The run's, by which logs and figures know it."""

    @property
    def remote(self) -> bool:
        """Whether it lies in a bucket."""
        return isinstance(self._files, Bucket)

    def path(self, name: str) -> Path:
        """The local path of a file or folder, for libraries that read one: in a bucket, of a copy as it is now.

        Raises:
            RecipeError: the name leads out of the run directory.
        """
        return self._files.path(name)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """The local path at which the block writes a file or folder; afterwards it is in the run directory."""
        with self._files.writing(name) as path:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield path

    def here(self, name: str) -> Path:
        """The local path of what need not last: in the run directory, or, of one in a bucket, on this node's disk."""
        path = self._files.here(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def log(self, name: str) -> Path:
        """The local file of a log."""
        return self.here(layout.log(name))

    def where(self, name: str) -> str:
        """Where to look for a log: its file, which, of a run directory in a bucket, each node has one of."""
        return f"{self.log(name)}{' of the node that it was on' if self.remote else ''}"

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        return self._files.exists(name)

    def list(self, prefix: str, suffix: str = "") -> list[str]:
        """The names of all files below a folder, sorted."""
        return sorted(
            name for name in self._files.list(prefix) if name.endswith(suffix)
        )

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        return self._files.read(name)

    def replace(self, name: str, data: bytes | str) -> None:
        """Write a whole file: durable and visible at once, or not at all.

        Raises:
            BezoarError: it cannot be written; the message names file, reason and remedy.
        """
        self._files.replace(name, data.encode() if isinstance(data, str) else data)

    def remove(self, prefix: str) -> None:
        """Remove a file or folder, if there is one."""
        self._files.remove(prefix)

    def adopt(self, other: "Store", name: str) -> None:
        """A file or folder of another run directory of the same kind, its bytes left where they are if possible."""
        for file in other.list(name) or [name]:
            self._files.adopt(other._files, file)

    def open(self, name: str) -> pa.NativeFile:
        """A file to read from anywhere within."""
        return self._files.open(name)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[str]:
        """A folder for what only the block needs, which the whole cluster sees; its path or URL."""
        self.remove("scratch")
        try:
            yield f"{self.root}/scratch"
        finally:
            self.remove("scratch")

    def read_json(self, name: str) -> Any:
        """A JSON file's value, or None where there is no such file.

        Raises:
            BezoarError: it holds something else.
        """
        try:
            return orjson.loads(self.read(name))
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError as error:
            raise BezoarError(
                f"{self.root}/{name} is not whole JSON: {error}. Remove it, or put it back"
            ) from error

    def replace_json(self, name: str, value: object) -> None:
        """Write a value as a whole JSON file."""
        self.replace(
            name,
            orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS),
        )

    def read_table(self, prefix: str, schema: pa.Schema) -> pa.Table:
        """A Parquet file as a table, or all below a folder, in the order of their names; empty where there are none."""
        names = (
            [prefix] if prefix.endswith(".parquet") else self.list(prefix, ".parquet")
        )
        tables = [
            pq.read_table(BytesIO(self.read(name)), schema=schema) for name in names
        ]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def replace_table(self, name: str, table: pa.Table) -> None:
        """Write a table as a whole Parquet file."""
        buffer = BytesIO()
        pq.write_table(table, buffer)
        self.replace(name, buffer.getvalue())

    def digest(self, *names: str) -> str:
        """A fingerprint of files and folders by content."""
        return digest(*map(self.path, names))

    def digest_of(self, names: Sequence[str]) -> str:
        """What `digest` of a folder would be that held just these of its files."""
        folder = self.path(str(PurePath(names[0]).parent))
        return _digest((folder / PurePath(name).name, folder) for name in names)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run directory.

        Raises:
            RunLocked: another process holds it; the message names host and process.
            RecipeError: it cannot be written.
        """
        try:
            self.replace(".probe", b"")
            self.remove(".probe")
        except BezoarError as error:  # named before any work
            raise RecipeError(str(error)) from error
        with self._files.lock():
            yield


def at(path: str | Path) -> tuple[Store, str]:
    """A file by its path or URL: the store that it lies in, and its name there."""
    folder, _, name = str(path).rpartition("/")
    return Store(folder), name


def digest(*paths: Path) -> str:
    """A fingerprint of files and folders by content: 16 hex digits of SHA-256 over relative names and bytes."""
    return _digest(
        (path, top)
        for top in paths
        for path in (
            sorted(p for p in top.rglob("*") if p.is_file()) if top.is_dir() else [top]
        )
    )


def _digest(files: Iterable[tuple[Path, Path]]) -> str:
    """Of files, each with what its name is relative to."""
    total = hashlib.sha256()
    for path, top in files:
        with open(path, "rb") as file:
            total.update(
                f"{path.relative_to(top)}:{hashlib.file_digest(file, 'sha256').hexdigest()};".encode()
            )
    return total.hexdigest()[:16]
