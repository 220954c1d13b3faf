"""A section of the recipe: what decides the result (*what*), and what only decides how it comes about (*how*)."""

import glob
import hashlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

HOW = "how"
FILES = "files"  # the field names files or a folder: their content counts in its place, where there are any
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """A section of the recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    def what(self) -> dict[str, Any]:
        """The fields that decide what comes out, with the content of named files in place of their paths."""
        fields = {name: field.metadata for name, field in type(self).model_fields.items() if HOW not in field.metadata}
        return {name: _what(getattr(self, name), FILES in marks) for name, marks in fields.items()}


def matches(pattern: str) -> list[Path]:
    """The files and folders that a path or glob names, sorted."""
    return [Path(name) for name in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))]


def _what(value: Any, files: bool) -> Any:
    if isinstance(value, Part):
        return value.what()
    if isinstance(value, dict):
        return {key: _what(item, files) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_what(item, files) for item in value]
    return (_content(value) or value) if files and isinstance(value, str) and "\n" not in value else value


def _content(pattern: str) -> str | None:
    """A digest of the files that a path or glob names, or None where it names none.

    A folder (a model's weights) counts by the names, sizes and times of its files, which takes no reading.
    """
    total, found = hashlib.sha256(), matches(pattern)
    for path in found:
        if path.is_file():
            with open(path, "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        for inner in sorted(path.rglob("*")) if path.is_dir() else ():
            total.update(f"{inner.relative_to(path)}:{inner.stat().st_size}:{inner.stat().st_mtime_ns}".encode())
    return total.hexdigest() if found else None
