"""The run directory: whole files replaced at once, listed, locked; manifests say which of them count."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from bezoar_ray.errors import BezoarError, RecipeError, RunLocked


class Store:
    """A run directory. Every path is relative to its root; `replace` leaves either the old file or the new one."""

    def __init__(self, root: str | Path):
        if "://" in str(root):
            raise RecipeError(f"--run-dir {root}: only a local folder or a mounted one can be a run directory")
        self.root = Path(root).absolute()

    def path(self, name: str) -> Path:
        """The local path of a file or folder, for libraries that want one. Names cannot leave the directory."""
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise RecipeError(f"{name!r} lies outside the run directory {self.root}")
        return path

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        return self.path(name).exists()

    def list(self, prefix: str, suffix: str = "") -> list[str]:
        """The names of all files below a folder, sorted."""
        top = self.path(prefix)
        found = (
            (p for p in top.rglob("*" + suffix) if p.is_file() and not p.name.startswith(".")) if top.is_dir() else ()
        )
        return sorted(str(p.relative_to(self.root.resolve())) for p in found)

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        return self.path(name).read_bytes()

    def replace(self, name: str, data: bytes | str) -> None:
        """Write a whole file: durable and visible at once, or not at all."""
        path = self.path(name)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise BezoarError(
                f"cannot write {path}: {error.strerror}. Free space, or choose another --run-dir."
            ) from error

    def remove(self, prefix: str) -> None:
        """Remove a file or folder, if there is one."""
        path = self.path(prefix)
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for what only the block needs, on a disk that the whole cluster sees."""
        self.remove("scratch")
        try:
            yield self.path("scratch")
        finally:
            self.remove("scratch")

    def read_json(self, name: str) -> Any:
        """A JSON file's value, or None where there is no such file."""
        return orjson.loads(self.read(name)) if self.exists(name) else None

    def replace_json(self, name: str, value: Any) -> None:
        """Write a value as a whole JSON file."""
        self.replace(name, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))

    def read_table(self, prefix: str, schema: pa.Schema) -> pa.Table:
        """All Parquet files below a folder as one table, in the order of their names; empty where there are none."""
        tables = [pq.read_table(self.path(name), schema=schema) for name in self.list(prefix, ".parquet")]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def replace_table(self, name: str, table: pa.Table) -> None:
        """Write a table as a whole Parquet file."""
        buffer = BytesIO()
        pq.write_table(table, buffer)
        self.replace(name, buffer.getvalue())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run directory.

        Raises:
            RunLocked: another process holds it; the message names host and process.
        """
        try:
            self.replace(".probe", b"")
            self.remove(".probe")
        except BezoarError as error:  # named before any work
            raise RecipeError(str(error)) from error
        with open(self.path("lock"), "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise RunLocked(
                    f"{self.root} is in use by {file.read().strip() or 'another process'}. "
                    "Wait for it to end, stop it, or choose another --run-dir."
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on host {socket.gethostname()}")
            file.flush()
            yield


def digest(*paths: Path) -> str:
    """A fingerprint of files and folders by content: 16 hex digits of SHA-256 over relative names and bytes."""
    total = hashlib.sha256()
    for top in paths:
        for path in sorted(p for p in top.rglob("*") if p.is_file()) if top.is_dir() else [top]:
            with open(path, "rb") as file:
                total.update(f"{path.relative_to(top)}:{hashlib.file_digest(file, 'sha256').hexdigest()};".encode())
    return total.hexdigest()[:16]
