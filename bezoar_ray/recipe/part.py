"""A section of the recipe: what decides the result (*what*), and what only decides how it comes about (*how*)."""

import glob
import hashlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

HOW = "how"
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """A section of the recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    def what(self) -> dict[str, Any]:
        """The fields that decide what comes out, with the content of named files in place of their paths."""
        fields = type(self).model_fields
        return {name: _what(getattr(self, name)) for name, field in fields.items() if HOW not in field.metadata}


def _what(value: Any) -> Any:
    if isinstance(value, Part):
        return value.what()
    if isinstance(value, dict):
        return {key: _what(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_what(item) for item in value]
    return _content(value) or value if isinstance(value, str) and "\n" not in value else value


def _content(path: str) -> str | None:
    """A digest of the files that a path or glob names, or None where it names none."""
    total, files = hashlib.sha256(), [name for name in sorted(glob.glob(path)) if Path(name).is_file()]
    for name in files:
        with open(name, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest() if files else None
