"""Manifests: the files of a finished stage, and the fingerprint of its inputs.

A file of a stage counts only if the stage's manifest lists it. The manifest is written
last and as a whole, so a stage that was interrupted has none.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from bezoar_ray import layout
from bezoar_ray.data.decision import decisions_fingerprint
from bezoar_ray.recipe import OWN_DECISIONS, Recipe, Section, SourceSection
from bezoar_ray.runtime.embedded_world import ratings_fingerprint, world_fingerprint
from bezoar_ray.stages import STAGES, manifest_of, stages_before
from bezoar_ray.store import Store

# Each result in these folders is stored with the key of its inputs, so evaluate can
# reuse the valid ones when it runs again.
_KEPT = (layout.HARNESS, layout.REWARD_BENCH)


@dataclass(frozen=True)
class StageManifest:
    """The results of a finished stage."""

    fingerprint: str
    seconds: float
    files: list[str]
    summary: dict[str, Any] = field(default_factory=dict)


def fingerprint(recipe: Recipe, stage: str, store: Store | None = None) -> str:
    """Return 16 hex digits over all that a stage and the stages before it read.

    Args:
        store: The run directory, whose own decisions count where the recipe reads them.
    """
    inputs: list[Any] = []
    stages = (*recipe.stages_before(stage), stage)
    for name in stages:
        # A stage that the recipe lacks changes nothing for the others.
        if name not in recipe.stages:
            continue
        entry = STAGES[name]
        values = [_recipe_value(recipe, path) for path in entry.reads]
        inputs.append([entry.key, values])
    text = orjson.dumps(inputs, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    if b'"tiny' in text:  # the embedded world changes with the code that makes it
        text += world_fingerprint().encode()
    if _reads_tiny_ratings(recipe, stages):
        text += ratings_fingerprint().encode()
    if store and "filter" in stages and recipe.filter.decisions == OWN_DECISIONS:
        text += decisions_fingerprint(store).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def exists(store: Store, stage: str) -> bool:
    """Whether the stage has finished, with this recipe or another."""
    return store.exists(manifest_of(stage, store))


def is_done(store: Store, stage: str, fingerprint: str) -> bool:
    """Whether the stage has finished with this fingerprint, and its files exist."""
    if not exists(store, stage):
        return False
    manifest = load(store, stage)
    if manifest.fingerprint != fingerprint:
        return False
    return all(store.exists(file) for file in manifest.files)


def load(store: Store, stage: str) -> StageManifest:
    """Read the manifest of a stage."""
    return StageManifest(**store.read_json(manifest_of(stage, store)))


def save(store: Store, stage: str, manifest: StageManifest) -> None:
    """Write the manifest of a stage: from now on, the stage is done."""
    store.replace_json(layout.manifest(stage), asdict(manifest))


def forget(store: Store, stage: str) -> None:
    """Remove the files of a stage and of those that use them, before it runs again."""
    for name in STAGES:
        if not exists(store, name):
            continue
        files = load(store, name).files
        if name != stage and not _uses(name, files, stage):
            continue
        # The manifest goes first: an interruption must not leave it without its files.
        store.remove(manifest_of(name, store))
        for file in files:
            if not file.startswith(_KEPT):
                store.remove(file)


def _uses(stage: str, files: list[str], earlier: str) -> bool:
    """Whether a stage that left these files used the results of an earlier one."""
    folders = {file.rsplit("/", 1)[0] for file in files}
    methods = [""]
    for name in STAGES[stage].checkpoint_names:
        if layout.checkpoint(name).folder in folders:
            methods.append(name)
    return any(earlier in stages_before(stage, method) for method in methods)


def _reads_tiny_ratings(recipe: Recipe, stages: Iterable[str]) -> bool:
    """Whether one of the stages reads the embedded ratings."""
    names = set(stages).intersection(recipe.stages)
    sections: list[SourceSection | None] = []
    if "rm" in names:
        sections += [*recipe.seeds.helpsteer, *recipe.seeds.preferences]
    bench = recipe.evaluate.reward_bench
    if "evaluate" in names and bench:
        sections += [bench.one, bench.two]
    return any(section and section.source == "tiny" for section in sections)


def _recipe_value(recipe: Recipe, path: str) -> object:
    """Return the value at a dotted path, with the fields that enter a fingerprint."""
    value: Any = recipe
    for key in path.split("."):
        value = getattr(value, key)
    if isinstance(value, tuple):
        return [_fingerprint_fields(item) for item in value]
    return _fingerprint_fields(value)


def _fingerprint_fields(value: Any) -> object:
    return value.fingerprint_fields() if isinstance(value, Section) else value
