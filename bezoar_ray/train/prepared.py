"""Training rows, tokenised and packed once: Ray Data writes an Arrow file that every worker opens memory-mapped."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from bezoar_ray.cluster import quieten
from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.models import model_path
from bezoar_ray.recipe import Recipe, Training
from bezoar_ray.rows import row_id
from bezoar_ray.stage import Context
from bezoar_ray.store import Store, digest
from bezoar_ray.train.data import Tokens
from bezoar_ray.train.packing import pack
from bezoar_ray.train.tokenizer import load_tokenizer

FOLDER = "train/data"
_VERSION = 2  # of what the files hold
_ROWS = 1_000  # tokenised and packed at a time

Encode = Callable[[Any, dict[str, Any], int], Tokens | str]
"""From (tokenizer, row, longest) to its columns of tokens, or why the row is left out."""


@dataclass(frozen=True)
class Prepared:
    """One data set of a stage, as its workers train on it."""

    name: str
    file: str
    """Arrow, in the run directory; besides the tokens it holds the `ids` of the rows in each of its items."""
    rows: int
    items: int
    """Rows of the file: as many as `rows`, or fewer where several are packed into one."""
    tokens: int
    longest: int
    """Tokens of the longest sequence; of a pair, the mean of its sides."""
    sequences: int
    """In an item: two in a pair."""
    left_out: dict[str, int]
    """Rows that are not trained on, by reason."""

    def open(self, store: Store) -> Any:
        """The items as a memory-mapped `datasets.Dataset`, whose fingerprint depends on them, not on their place."""
        from datasets import Dataset
        from datasets.table import MemoryMappedTable

        path = store.path(self.file)
        return Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=path.stem.rpartition("-")[2])

    def batch(self, part: Training) -> int:
        """Items in an optimiser step: as many as hold the recipe's `batch` of rows on average, the same each worker."""
        share = part.batch / part.workers * self.items / self.rows
        return part.workers * max(1, round(share))


def prepare(context: Context, stage: str, name: str, folder: str, encode: Encode, columns: dict[str, int]) -> Prepared:
    """Tokenise the rows of a folder in their order; what was prepared of the same is kept.

    Args:
        context: the run.
        stage: whose part of the recipe says what is too long, how many rows count and whether they are packed.
        name: of the data set.
        folder: its Parquet files, in the run directory.
        encode: from a row to its tokens; it runs on Ray Data's workers.
        columns: of tokens, with how often their tokens go through the model.
    """
    part, store = context.recipe.training(stage), context.store
    packed = getattr(part, "packing", False)
    mark = _mark(context, [part.max_length, part.limit, packed, sorted(columns), store.digest(folder)])
    start = f"{FOLDER}/{stage}-{name}"
    file, record = f"{start}-{mark}.arrow", f"{start}-{mark}.json"
    if found := store.read_json(record):
        return Prepared(**found)
    for old in (file for file in store.list(FOLDER) if file.startswith(f"{start}-")):
        store.remove(old)
    context.progress.say(f"tokenising {name}")
    files = [str(store.path(file)) for file in store.list(folder, ".parquet")]
    items = _encoded(_Work(context.recipe, encode, columns, part.max_length, packed), files, part.limit)
    with store.writing(file) as path:
        prepared = Prepared(name, file, **_write(items, columns, path))
    store.replace_json(record, asdict(prepared))
    return prepared


def left_out(found: Iterable[Prepared]) -> Counter[str]:
    """Rows of all data sets that are not trained on, by reason."""
    return sum((Counter(data.left_out) for data in found), Counter())


def checked(context: Context, stage: str, found: list[Prepared]) -> list[Prepared]:
    """The data sets of a stage, of which one at least has rows.

    Raises:
        BezoarError: nothing is left to train on; it says why.
    """
    if any(data.rows for data in found):
        return found
    because = ", ".join(f"{count} {why}" for why, count in left_out(found).items()) or "there were none"
    longest = context.recipe.training(stage).max_length
    raise BezoarError(f"{stage}: no row is left to train on: {because} (max_length is {longest})")


def _mark(context: Context, *more: Any) -> str:
    base, template = context.recipe.base, context.recipe.template
    text = orjson.dumps([_VERSION, base.model, base.revision, template, *more], option=orjson.OPT_SORT_KEYS)
    return row_id(text.decode(), *([digest(folder)] if (folder := Path(model_path(base.model))).is_dir() else []))


@dataclass(frozen=True)
class _Work:
    """What is done to the rows."""

    recipe: Recipe
    encode: Encode
    columns: dict[str, int]
    longest: int
    packed: bool

    @property
    def schema(self) -> pa.Schema:
        """Of the items."""
        names = (*self.columns, "seq_lengths") if self.packed else self.columns
        tokens = [(name, pa.list_(pa.int32())) for name in names]
        return pa.schema([("ids", pa.list_(pa.string())), ("left_out", pa.string()), *tokens])

    def __call__(self, table: pa.Table) -> pa.Table:
        """Some rows as items."""
        tokenizer = _tokenizer(self.recipe.model_dump_json())
        found = [(row["id"], self.encode(tokenizer, row, self.longest)) for row in table.to_pylist()]
        kept = [(row, tokens) for row, tokens in found if isinstance(tokens, dict)]
        items = _packed(kept, self.longest) if self.packed else [{"ids": [row], **tokens} for row, tokens in kept]
        items += [{"ids": [row], "left_out": why} for row, why in found if isinstance(why, str)]
        return pa.Table.from_pylist(items, schema=self.schema)


@lru_cache(maxsize=1)
def _tokenizer(recipe: str) -> Any:
    """Loaded once in a process of Ray's, which works on many rows and data sets."""
    return load_tokenizer(Recipe.model_validate_json(recipe))


def _encoded(work: _Work, files: list[str], limit: int | None) -> Iterator[pa.Table]:
    """The items, in the order of the rows."""
    import ray

    settings = ray.data.DataContext.get_current().copy()
    settings.execution_options.preserve_order = True
    quieten(settings)
    with ray.data.DataContext.current(settings):
        rows = ray.data.read_parquet(files, partitioning=None)  # a folder called a=b would add a column a
        rows = rows.limit(limit) if limit else rows
        items = rows.map_batches(lambda table: work(table), batch_size=_ROWS, batch_format="pyarrow")
        yield from items.iter_batches(batch_size=None, batch_format="pyarrow")


def _packed(rows: list[tuple[str, Tokens]], longest: int) -> list[dict[str, Any]]:
    """Several rows to an item, with the ids of them all."""
    numbered = [{**tokens, "row": [n] * len(tokens["input_ids"])} for n, (_, tokens) in enumerate(rows)]
    items = pack(numbered, longest)
    for item in items:
        item["ids"] = [rows[n][0] for n in dict.fromkeys(item.pop("row"))]
    return items


def _write(items: Iterator[pa.Table], columns: dict[str, int], path: Path) -> dict[str, Any]:
    """An Arrow file of the items that are trained on; returns what is known of them."""
    import pyarrow.compute as pc

    rows = count = tokens = longest = 0
    sequences = max(columns.values())
    left_out: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        writer: Any = None
        for table in items:
            left_out.update(table["left_out"].drop_null().to_pylist())
            kept = table.filter(pc.is_null(table["left_out"])).drop_columns("left_out")
            writer = writer or stack.enter_context(pa.ipc.new_stream(str(path), kept.schema))
            writer.write_table(kept)
            rows, count = rows + _values(kept["ids"]), count + kept.num_rows
            lengths = sum(
                times * kept[name].combine_chunks().value_lengths().to_numpy() for name, times in columns.items()
            )
            tokens, longest = tokens + int(lengths.sum()), max(longest, int(lengths.max(initial=0)) // sequences)
    return {
        "rows": rows, "items": count, "tokens": tokens, "longest": longest, "sequences": sequences,
        "left_out": dict(left_out),
    }  # fmt: skip


def _values(lists: pa.ChunkedArray) -> int:
    """How many values the lists hold in all."""
    return len(lists.combine_chunks().flatten())
