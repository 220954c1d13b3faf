"""Where a model's files are, and which identity its answers have in the ledger."""

import hashlib
from pathlib import Path

import orjson

from bezoar_ray.recipe import ModelSection
from bezoar_ray.recipe.section import decisive
from bezoar_ray.runtime.embedded_world import find_world
from bezoar_ray.store import at, digest


def model_path(name: str) -> str:
    """Return the folder of an embedded `tiny-*` model, and any other name unchanged.

    Of a model in a run directory in a bucket, it is this node's copy.
    """
    if "://" in name:
        store, folder = at(name)
        return str(store.path(folder))
    if name not in ("tiny-teacher", "tiny-base"):
        return name
    world = find_world()
    return str(world.teacher if name == "tiny-teacher" else world.base)


def identity(section: ModelSection) -> str:
    """Return who answers, for the ledger's key.

    This is `name@revision` at an endpoint or on the hub, and a fingerprint of local
    weights. For a model that runs here, the chat template, the type of the weights and
    the engine arguments that change an answer are added.
    """
    if section.base_url:
        # An endpoint does not show its weights; only the recipe's
        # revision tells two apart.
        return f"{section.model}@{section.revision or 'current'}"
    weights = _weights_identity(section)
    settings = orjson.dumps(
        [section.template, decisive(section.engine)], option=orjson.OPT_SORT_KEYS
    )
    settings_hash = hashlib.sha256(settings).hexdigest()[:8]
    return f"{weights}:{section.dtype}:{settings_hash}"


def _weights_identity(section: ModelSection) -> str:
    """Return the fingerprint of local weights, or `name@revision`."""
    folder = Path(model_path(section.model))
    if folder.is_dir():
        return digest(folder)
    return f"{section.model}@{section.revision or 'main'}"
