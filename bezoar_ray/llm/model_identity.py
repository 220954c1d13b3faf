"""Where a model's files are, and who it is."""

import hashlib
from pathlib import Path

import orjson

from bezoar_ray.recipe import ModelSection
from bezoar_ray.recipe.section import decisive
from bezoar_ray.runtime.embedded_world import find_world
from bezoar_ray.store import digest


def model_path(name: str) -> str:
    """The folder of an embedded `tiny-*` model; any other name or path as it is."""
    if name not in ("tiny-teacher", "tiny-base"):
        return name
    world = find_world()
    return str(world.teacher if name == "tiny-teacher" else world.base)


def identity(part: ModelSection) -> str:
    """Who answers, for the ledger's key: `name@revision` at an endpoint or on the hub, a fingerprint for local weights.

    For a model that we run, the chat template, the type of the weights and some engine arguments decide the answer too.
    """
    if part.base_url:
        return f"{part.model}@{part.revision or 'current'}"
    path = model_path(part.model)
    who = (
        digest(Path(path))
        if Path(path).is_dir()
        else f"{part.model}@{part.revision or 'main'}"
    )
    how = orjson.dumps(
        [part.template, decisive(part.engine)], option=orjson.OPT_SORT_KEYS
    )
    return f"{who}:{part.dtype}:{hashlib.sha256(how).hexdigest()[:8]}"
