"""Manifests: which files of a stage count, and what they were made from. Written last, whole."""

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from bezoar_ray import layout
from bezoar_ray.recipe import Recipe, Section
from bezoar_ray.runtime.embedded_world import world_fingerprint
from bezoar_ray.stages import STAGES, manifest_of
from bezoar_ray.store import Store

_KEYED = (
    layout.HARNESS
)  # each result there stands under the key of what it was measured with


@dataclass(frozen=True)
class StageManifest:
    """What a stage left."""

    fingerprint: str
    seconds: float
    files: list[str]
    summary: dict[str, Any] = field(default_factory=dict)


def fingerprint(recipe: Recipe, stage: str) -> str:
    """16 hex digits over what a stage reads: its part of the recipe, and all that the stages before it read."""
    what: list[Any] = []
    for name, known in STAGES.items():
        what.append([known.key, [_part(recipe, path) for path in known.reads]])
        if name == stage:
            break
    text = orjson.dumps(what, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    if b'"tiny' in text:  # the embedded world changes with the code that makes it
        text += world_fingerprint().encode()
    return hashlib.sha256(text).hexdigest()[:16]


def exists(store: Store, stage: str) -> bool:
    """Whether the stage has been done, with this recipe or another."""
    return store.exists(manifest_of(stage, store))


def is_done(store: Store, stage: str, fingerprint: str) -> bool:
    """Whether the stage's files are there and were made from the same recipe."""
    if not exists(store, stage):
        return False
    manifest = load(store, stage)
    if manifest.fingerprint != fingerprint:
        return False
    return all(store.exists(file) for file in manifest.files)


def load(store: Store, stage: str) -> StageManifest:
    """A stage's manifest."""
    return StageManifest(**store.read_json(manifest_of(stage, store)))


def save(store: Store, stage: str, manifest: StageManifest) -> None:
    """Record that a stage is done."""
    store.replace_json(layout.manifest(stage), asdict(manifest))


def forget(store: Store, stage: str) -> None:
    """Remove the files of a stage and of the stages after it, before it is done anew."""
    later = list(STAGES)[list(STAGES).index(stage) :]
    for name in later:
        if exists(store, name):
            files = load(store, name).files
            store.remove(manifest_of(name, store))
            for file in files:
                if not file.startswith(_KEYED):
                    store.remove(file)


def _part(recipe: Recipe, path: str) -> object:
    value: Any = recipe
    for key in path.split("."):
        value = getattr(value, key)
    if isinstance(value, tuple):
        return [
            item.fingerprint_fields() if isinstance(item, Section) else item
            for item in value
        ]
    return value.fingerprint_fields() if isinstance(value, Section) else value
