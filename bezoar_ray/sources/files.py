"""Rows of local files: .jsonl, .jsonl.gz and .parquet, by path or glob."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe.part import matches
from bezoar_ray.sources.raw import Raw

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
            yield from reader(path, name or f"{path.parent.name}/{path.name}")
        except (OSError, EOFError, zlib.error, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise RecipeError(f"{field}: cannot read {str(path)!r}: {error}") from error


def _matches(pattern: str, field: str) -> list[Path]:
    found = matches(pattern)
    if not found:
        raise RecipeError(
            f"{field}: no file {pattern!r} (looked from {Path.cwd()}). Give a path or glob of "
            f"{', '.join(_SUFFIXES)} files, `hub:<owner>/<name>`, or `tiny`."
        )
    for path in found:
        if not path.name.endswith(_SUFFIXES):
            raise RecipeError(f"{field}: cannot read {str(path)!r}: its name ends with none of {', '.join(_SUFFIXES)}")
    return found


def _lines(path: Path, name: str) -> Iterator[Raw]:
    with gzip.open(path) if path.name.endswith(".gz") else open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield Raw(name, number, f"{path}:{number}", line)


def _parquet(path: Path, name: str) -> Iterator[Raw]:
    import pyarrow.parquet as pq

    number = 0
    for batch in pq.ParquetFile(path).iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield Raw(name, number, f"{path}:{number}", row)
