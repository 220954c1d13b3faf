"""Rows of local files, .jsonl, .jsonl.gz and .parquet, by path or glob."""

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe.section import matches
from bezoar_ray.sources.record import Raw

_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def rows(pattern: str, field: str, name: str | None = None) -> Iterator[Raw]:
    """Read the rows of all files that a path or glob names, in the order of names.

    Args:
        pattern: the path or glob.
        field: the recipe's field, for errors.
        name: enters the ids of all rows. By default it is a file's folder and name, so
            that rows keep their ids when the data moves.

    Raises:
        RecipeError: there is no such file, its kind is unknown, or it is damaged.
    """
    for path in _paths(pattern, field):
        read = _read_parquet if path.name.endswith(".parquet") else _read_lines
        file_name = name or shown(Path(path.parent.name, path.name))
        try:
            yield from read(path, file_name)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            # pyarrow's errors for damaged files are ValueErrors.
            raise RecipeError(
                f"{field}: cannot read {shown(path)!r}: {error}"
            ) from error


def shown(path: Path) -> str:
    """A path as text for messages and rows.

    Bytes that are not UTF-8 are replaced, since no Arrow column or JSON can hold them.
    """
    return os.fsencode(path).decode(errors="replace")


def _paths(pattern: str, field: str) -> list[Path]:
    suffixes = ", ".join(_SUFFIXES)
    paths = matches(pattern)
    if not paths:
        raise RecipeError(
            f"{field}: no file {pattern!r} (looked from {Path.cwd()}). Give a path or "
            f"glob of {suffixes} files, `hub:<owner>/<name>`, or `tiny`."
        )
    for path in paths:
        if not path.name.endswith(_SUFFIXES):
            raise RecipeError(
                f"{field}: cannot read {shown(path)!r}: its name ends with none of "
                f"{suffixes}"
            )
    return paths


def _read_lines(path: Path, name: str) -> Iterator[Raw]:
    is_compressed = path.name.endswith(".gz")
    with gzip.open(path) if is_compressed else open(path, "rb") as file:
        for number, line in enumerate(_utf8_lines(file), start=1):
            if line.strip():
                yield Raw(name, number, f"{shown(path)}:{number}", line)


def _utf8_lines(file: BinaryIO | gzip.GzipFile) -> Iterable[bytes]:
    """The lines of a file, in UTF-8.

    A byte order mark, as Windows writes it, says that the file is in UTF-16 or UTF-32.

    Raises:
        ValueError: the file is in such an encoding, but has no byte order mark.
    """
    first_bytes = file.read(4)
    file.seek(0)
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    if first_bytes.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return _decode_lines(file, "utf-32")
    if first_bytes.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _decode_lines(file, "utf-16")
    if b"\0" in first_bytes:
        raise ValueError("it holds zero bytes, as UTF-16 has them: save it as UTF-8")
    if first_bytes.startswith(codecs.BOM_UTF8):
        file.seek(len(codecs.BOM_UTF8))
    return file


def _decode_lines(file: BinaryIO | gzip.GzipFile, encoding: str) -> Iterator[bytes]:
    # A line feed alone ends a row, as in a file in UTF-8.
    for line in io.TextIOWrapper(file, encoding, newline="\n"):
        yield line.lstrip("\ufeff").encode()


def _read_parquet(path: Path, name: str) -> Iterator[Raw]:
    import pyarrow.parquet as pq

    number = 0
    for batch in pq.ParquetFile(path).iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield Raw(name, number, f"{shown(path)}:{number}", row)
