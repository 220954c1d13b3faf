"""Rows of local files: .jsonl, .jsonl.gz and .parquet, by path or glob."""

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
    """The rows of every file that a path or glob names, files in the order of their names.

    A file is known by its folder and name, so that its rows keep their ids when the data moves; `name` stands for them
    all instead. `field` is the recipe's, for errors.

    Raises:
        RecipeError: no such file, another kind of file, or a damaged one.
    """
    for path in _matches(pattern, field):
        reader = _parquet if path.name.endswith(".parquet") else _lines
        try:
            yield from reader(path, name or shown(Path(path.parent.name, path.name)))
        except (
            OSError,
            EOFError,
            zlib.error,
            ValueError,
        ) as error:  # pyarrow's errors are ValueErrors
            raise RecipeError(
                f"{field}: cannot read {shown(path)!r}: {error}"
            ) from error


def _matches(pattern: str, field: str) -> list[Path]:
    found = matches(pattern)
    if not found:
        raise RecipeError(
            f"{field}: no file {pattern!r} (looked from {Path.cwd()}). Give a path or glob of "
            f"{', '.join(_SUFFIXES)} files, `hub:<owner>/<name>`, or `tiny`."
        )
    for path in found:
        if not path.name.endswith(_SUFFIXES):
            raise RecipeError(
                f"{field}: cannot read {shown(path)!r}: its name ends with none of {', '.join(_SUFFIXES)}"
            )
    return found


def _lines(path: Path, name: str) -> Iterator[Raw]:
    with gzip.open(path) if path.name.endswith(".gz") else open(path, "rb") as file:
        for number, line in enumerate(_as_utf8(file), start=1):
            if line.strip():
                yield Raw(name, number, f"{shown(path)}:{number}", line)


def _as_utf8(file: BinaryIO | gzip.GzipFile) -> Iterable[bytes]:
    """The lines of a file in UTF-8, or, by their mark at its beginning, in UTF-16 or UTF-32, as Windows writes them.

    Raises:
        ValueError: another encoding of wide characters, without a mark.
    """
    begin = file.read(4)
    file.seek(0)
    if begin.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return _decoded(file, "utf-32")
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _decoded(file, "utf-16")
    if b"\0" in begin:
        raise ValueError("it holds zero bytes, as UTF-16 has them: save it as UTF-8")
    if begin.startswith(codecs.BOM_UTF8):
        file.seek(len(codecs.BOM_UTF8))
    return file


def _decoded(file: BinaryIO | gzip.GzipFile, encoding: str) -> Iterator[bytes]:
    for line in io.TextIOWrapper(file, encoding, newline="\n"):
        yield line.lstrip("\ufeff").encode()


def shown(path: Path) -> str:
    """A path as text; bytes in it that are no UTF-8 are replaced, as no row could hold them."""
    return os.fsencode(path).decode(errors="replace")


def _parquet(path: Path, name: str) -> Iterator[Raw]:
    import pyarrow.parquet as pq

    number = 0
    for batch in pq.ParquetFile(path).iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield Raw(name, number, f"{shown(path)}:{number}", row)
