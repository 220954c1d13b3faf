"""HH-RLHF pairs: the training pairs of hh-sft and align, and the held-out pairs."""

import hashlib
from itertools import groupby
from typing import Protocol, TypeVar

import orjson

from bezoar_ray import layout
from bezoar_ray.data.schema import Pair, pair_schema, pair_table
from bezoar_ray.recipe import Recipe
from bezoar_ray.runtime.embedded_world import world_fingerprint
from bezoar_ray.sources import read_pairs
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store

FOLDER = layout.PAIRS
HELDOUT = f"{FOLDER}/heldout"
PARTS = ("sft", "pairs", "heldout")
"""The rows of hh-sft, the rows of align and the held-out pairs."""
_SHOWN = 5  # malformed rows that are named one by one
_LARGEST_SHARE = 0.2  # of all pairs, that may be held out


def ensure(context: StageContext) -> int:
    """Write `data/hh_rlhf/{sft,pairs,heldout}`, unless this recipe's are there.

    Returns:
        How many malformed pairs were left out.
    """
    recipe = context.recipe
    store = context.store
    record_file = f"{FOLDER}/split.json"
    # As JSON gives them back, or a tuple would never equal the record's list.
    settings = orjson.loads(orjson.dumps(_settings(recipe)))
    record = store.read_json(record_file) or {}
    is_complete = all(store.exists(file(part)) for part in PARTS)
    if is_complete and record.get("settings") == settings:
        return record["seeds_failed"]
    store.remove(FOLDER)
    loaded = read_pairs(recipe.seeds.hh_rlhf)
    name_malformed(context, loaded.failed, "pairs")
    training, heldout = split(loaded.rows, recipe.evaluate.heldout_pairs, recipe.seed)
    parts = {
        # The paper takes the first 100,000 rows in the order of the file, not a sample.
        "sft": training[: recipe.hh_sft.limit],
        "pairs": training[: recipe.align.limit],
        "heldout": heldout,
    }
    counts = {}
    for part, rows in parts.items():
        store.replace_table(file(part), pair_table(rows))
        counts[part] = len(rows)
    malformed = len(loaded.failed)
    # The record comes last, as the files count only with it.
    store.replace_json(
        record_file, {"settings": settings, "seeds_failed": malformed, **counts}
    )
    return malformed


def name_malformed(context: StageContext, failed: list[str], rows: str) -> None:
    """Say which malformed rows of a source are left out.

    Args:
        context: the run.
        failed: a message for each row; only the first few are shown.
        rows: what the rows are, such as "pairs".
    """
    for message in failed[:_SHOWN]:
        context.progress.say(f"left out: {message}")
    if len(failed) > _SHOWN:
        context.progress.say(f"left out: {len(failed)} malformed {rows} in all")


def read(store: Store, part: str) -> list[Pair]:
    """Read the pairs of `sft`, `pairs` or `heldout`, in the order of the source."""
    rows = store.read_table(file(part), pair_schema()).to_pylist()
    return [Pair(**row) for row in rows]


class PromptedRow(Protocol):
    """A row with a conversation up to the last user turn."""

    @property
    def id(self) -> str:
        """The id of the row."""

    @property
    def prompt(self) -> list[dict[str, str]]:
        """The messages."""


Row = TypeVar("Row", bound=PromptedRow)


def split(pairs: list[Row], wanted: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Split pairs or rated answers into training and held-out ones, in their order.

    HH-RLHF has several pairs of one dialogue, each one turn longer, so a held-out
    answer could be in a training prompt. Therefore all pairs with the same opening are
    on the same side, which depends on the hash of the opening.

    Args:
        pairs: all rows.
        wanted: how many are held out; at most a fifth of all.
        seed: enters the hash.
    """
    most = min(wanted, int(_LARGEST_SHARE * len(pairs)))
    heldout_ids: set[str] = set()

    def dialogue(pair: Row) -> str:
        return _hash_opening(pair, seed)

    # By hash, so that the order of the file does not decide which are held out.
    by_dialogue = sorted(pairs, key=lambda pair: (dialogue(pair), pair.id))
    for _, group in groupby(by_dialogue, key=dialogue):
        ids = {pair.id for pair in group}
        # A dialogue that would exceed the number stays in training, whole.
        if len(heldout_ids) + len(ids) <= most:
            heldout_ids |= ids
    training = [pair for pair in pairs if pair.id not in heldout_ids]
    heldout = [pair for pair in pairs if pair.id in heldout_ids]
    return training, heldout


def file(part: str) -> str:
    """Return the path of the file of `sft`, `pairs` or `heldout`."""
    return f"{FOLDER}/{part}/part-0.parquet"


def _hash_opening(pair: PromptedRow, seed: int) -> str:
    """Hash the first user message of a pair's dialogue."""
    opening = ""
    for message in pair.prompt:
        if message["role"] == "user":
            opening = message["content"]
            break
    return hashlib.sha256(f"{seed}\x1f{opening}".encode()).hexdigest()


def _settings(recipe: Recipe) -> dict[str, object]:
    """Return everything that the split depends on."""
    sources = recipe.seeds.hh_rlhf
    has_tiny = any(section.source == "tiny" for section in sources)
    return {
        "sources": [section.fingerprint_fields() for section in sources],
        "world": world_fingerprint() if has_tiny else None,
        "seed": recipe.seed,
        "sft": recipe.hh_sft.limit,
        "pairs": recipe.align.limit,
        "heldout": recipe.evaluate.heldout_pairs,
    }
