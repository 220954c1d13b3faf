"""HH-RLHF pairs: which are held out, and which hh-sft and align train on."""

import hashlib
from itertools import groupby

import orjson

from bezoar_ray import layout
from bezoar_ray.data.schema import Pair, pair_schema, pair_table
from bezoar_ray.recipe import Recipe
from bezoar_ray.sources import read_pairs
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from bezoar_ray.tiny import fingerprint

FOLDER = layout.PAIRS
PARTS = ("sft", "pairs", "heldout")
SHOWN = 5  # malformed rows that are named one by one
LARGEST_SHARE = 0.2  # of all pairs, held out at most


def ensure(context: StageContext) -> int:
    """Write `data/hh_rlhf/{sft,pairs,heldout}`, unless they are there for the same recipe.

    Returns:
        How many malformed pairs were left out.
    """
    recipe, store, name = context.recipe, context.store, f"{FOLDER}/split.json"
    wanted = orjson.loads(orjson.dumps(_settings(recipe)))
    there = store.read_json(name) or {}
    if there.get("settings") == wanted and all(
        store.exists(file(part)) for part in PARTS
    ):
        return there["seeds_failed"]
    store.remove(FOLDER)
    loaded = read_pairs(recipe.seeds.hh_rlhf)
    name_malformed(context, loaded.failed, "pairs")
    training, heldout = split(loaded.rows, recipe.evaluate.heldout_pairs, recipe.seed)
    parts = dict(
        zip(
            PARTS,
            (training[: recipe.hh_sft.limit], training[: recipe.align.limit], heldout),
            strict=True,
        )
    )
    for part, rows in parts.items():
        store.replace_table(file(part), pair_table(rows))
    counts = {part: len(rows) for part, rows in parts.items()}
    store.replace_json(
        name, {"settings": wanted, "seeds_failed": len(loaded.failed), **counts}
    )
    return len(loaded.failed)


def name_malformed(context: StageContext, failed: list[str], what: str) -> None:
    """Say which rows of a source are left out, or how many where they are many."""
    for message in failed[:SHOWN]:
        context.progress.say(f"left out: {message}")
    if failed[SHOWN:]:
        context.progress.say(f"left out: {len(failed)} malformed {what} in all")


def read(store: Store, part: str) -> list[Pair]:
    """The pairs of `sft`, `pairs` or `heldout`, in the order of the source."""
    return [
        Pair(**row) for row in store.read_table(file(part), pair_schema()).to_pylist()
    ]


def split(pairs: list[Pair], wanted: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs, both in the order given; a fifth is held out at most.

    HH-RLHF holds several pairs of one dialogue, one turn longer each, so that a held-out answer could stand in a
    training prompt. All pairs that open alike therefore fall on the same side, drawn by the hash of their opening.
    """
    most = min(wanted, int(LARGEST_SHARE * len(pairs)))
    heldout: set[str] = set()
    keyed = sorted(pairs, key=lambda pair: (_rank(pair, seed), pair.id))
    for _, group in groupby(keyed, key=lambda pair: _rank(pair, seed)):
        ids = {pair.id for pair in group}
        if len(heldout) + len(ids) <= most:
            heldout |= ids
    return [p for p in pairs if p.id not in heldout], [
        p for p in pairs if p.id in heldout
    ]


def file(part: str) -> str:
    """The one file of `sft`, `pairs` or `heldout`."""
    return f"{FOLDER}/{part}/part-0.parquet"


def _rank(pair: Pair, seed: int) -> str:
    opening = next((m["content"] for m in pair.prompt if m["role"] == "user"), "")
    return hashlib.sha256(f"{seed}\x1f{opening}".encode()).hexdigest()


def _settings(recipe: Recipe) -> dict[str, object]:
    sources = [part.fingerprint_fields() for part in recipe.seeds.hh_rlhf]
    limits = {
        "sft": recipe.hh_sft.limit,
        "pairs": recipe.align.limit,
        "heldout": recipe.evaluate.heldout_pairs,
    }
    world = (
        fingerprint()
        if any(part.source == "tiny" for part in recipe.seeds.hh_rlhf)
        else None
    )
    return {"sources": sources, "world": world, "seed": recipe.seed, **limits}
