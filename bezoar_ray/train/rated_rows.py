"""Rated answers and preferences: the rows of a reward model, and the held-out ones."""

from dataclasses import dataclass
from typing import TypeVar

import orjson

from bezoar_ray import layout
from bezoar_ray.data.schema import (
    Preference,
    Rating,
    preference_schema,
    preference_table,
    rating_schema,
    rating_table,
)
from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import Recipe, Rm
from bezoar_ray.runtime.embedded_world import ratings_fingerprint
from bezoar_ray.sources import read_preferences, read_ratings
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from bezoar_ray.train import pairs

HELDOUT = (layout.rated("ratings", "heldout"), layout.rated("preferences", "heldout"))
"""Files of the rows that are kept out of training."""
_FILES = (
    *HELDOUT,
    layout.rated("ratings", "train"),
    layout.rated("preferences", "train"),
)
_RECORD = f"{layout.RATED}/split.json"

Row = TypeVar("Row", Rating, Preference)


@dataclass(frozen=True)
class Heldout:
    """The rows on which a reward model is measured."""

    ratings: list[Rating]
    preferences: list[Preference]


def ensure(context: StageContext) -> int:
    """Write `data/rated/{ratings,preferences}`, unless this recipe's are there.

    Both are split together: no prompt that is held out of one is trained on in the
    other.

    Returns:
        How many malformed rows were left out.
    """
    recipe = context.recipe
    store = context.store
    settings = orjson.loads(orjson.dumps(_settings(recipe)))
    record = store.read_json(_RECORD) or {}
    is_complete = all(store.exists(file) for file in _FILES)
    if is_complete and record.get("settings") == settings:
        return record["seeds_failed"]
    store.remove(layout.RATED)
    ratings = read_ratings(recipe.seeds.helpsteer)
    preferences = read_preferences(recipe.seeds.preferences)
    pairs.name_malformed(context, ratings.failed, "rated answers")
    pairs.name_malformed(context, preferences.failed, "preferences")
    rm = section(recipe)
    rows: list[Rating | Preference] = [*ratings.rows, *preferences.rows]
    _, heldout = pairs.split(rows, rm.heldout_answers, recipe.seed)
    heldout_ids = {row.id for row in heldout}
    counts = {
        "ratings": sum(row.id not in heldout_ids for row in ratings.rows),
        "preferences": sum(row.id not in heldout_ids for row in preferences.rows),
    }
    for part, rated in _parts(ratings.rows, heldout_ids).items():
        store.replace_table(layout.rated("ratings", part), rating_table(rated))
    for part, preferred in _parts(preferences.rows, heldout_ids).items():
        table = preference_table(preferred)
        store.replace_table(layout.rated("preferences", part), table)
    malformed = len(ratings.failed) + len(preferences.failed)
    # The record comes last, as the files count only with it.
    record = {"settings": settings, "seeds_failed": malformed, **counts}
    store.replace_json(_RECORD, record)
    return malformed


def count(store: Store, kind: str) -> int:
    """Return how many rows of a kind, `ratings` or `preferences`, are trained on."""
    return store.read_json(_RECORD)[kind]


def read_heldout(store: Store) -> Heldout:
    """Read the held-out rows, in the order of their sources."""
    ratings, preferences = HELDOUT
    rating_rows = store.read_table(ratings, rating_schema()).to_pylist()
    preference_rows = store.read_table(preferences, preference_schema()).to_pylist()
    return Heldout(
        ratings=[Rating(**row) for row in rating_rows],
        preferences=[Preference(**row) for row in preference_rows],
    )


def section(recipe: Recipe) -> Rm:
    """Return the recipe's section `rm`.

    Raises:
        RecipeError: the recipe has none.
    """
    if recipe.rm is None:
        raise RecipeError("rm: the recipe has no such section, so there is no stage rm")
    return recipe.rm


def _parts(rows: list[Row], heldout_ids: set[str]) -> dict[str, list[Row]]:
    parts: dict[str, list[Row]] = {"train": [], "heldout": []}
    for row in rows:
        parts["heldout" if row.id in heldout_ids else "train"].append(row)
    return parts


def _settings(recipe: Recipe) -> dict[str, object]:
    """Return everything that the split depends on."""
    sources = [*recipe.seeds.helpsteer, *recipe.seeds.preferences]
    has_tiny = any(source.source == "tiny" for source in sources)
    seeds = recipe.seeds
    return {
        "ratings": [source.fingerprint_fields() for source in seeds.helpsteer],
        "preferences": [source.fingerprint_fields() for source in seeds.preferences],
        "world": ratings_fingerprint() if has_tiny else None,
        "seed": recipe.seed,
        "heldout": section(recipe).heldout_answers,
    }
