"""Training rows, tokenized once.

Ray Data writes an Arrow file, which every worker opens memory-mapped.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from bezoar_ray import layout
from bezoar_ray.data.schema import row_id
from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.model_identity import model_path
from bezoar_ray.recipe import Recipe
from bezoar_ray.runtime.session import quieten
from bezoar_ray.stages import STAGES, StageContext
from bezoar_ray.store import Store, digest
from bezoar_ray.train.encoding import Tokens, Values
from bezoar_ray.train.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


_VERSION = 4
"""Of the files' content. Raise it when the tokens of a row change."""
_ROWS = 1_000  # tokenized at a time

Encode = Callable[
    ["PreTrainedTokenizerBase", dict[str, Any], int], Tokens | Values | str
]
"""From (tokenizer, row, longest) to the row's token columns, or why it is left out."""


@dataclass(frozen=True)
class TokenizedDataset:
    """One data set of a stage, as its workers train on it."""

    name: str
    file: str
    """Arrow file in the run directory, with the tokens and the `id` of each row."""
    rows: int
    tokens: int
    longest: int
    """Tokens of the longest row; of a pair, the mean of its sides."""
    longest_sequence: int
    """Tokens of the longest sequence; of a pair, one of its sides."""
    sequences: int
    """Sequences in a row; a pair has two."""
    left_out: dict[str, int]
    """Rows that are not trained on, by reason."""

    def open(self, store: Store) -> "Dataset":
        """Open the rows as a memory-mapped `datasets.Dataset`.

        Its fingerprint, under which TRL keeps the reference's log-probabilities,
        depends on the rows and not on where the file is.
        """
        from datasets import Dataset
        from datasets.table import MemoryMappedTable

        path = store.path(self.file)
        fingerprint = path.stem.rpartition("-")[2]
        return Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=fingerprint)


def prepare(
    context: StageContext,
    stage: str,
    name: str,
    files: list[str],
    encode: Encode,
    columns: dict[str, int],
    values: tuple[str, ...] = (),
) -> TokenizedDataset:
    """Tokenize the rows of some files, in their order.

    If the same rows were tokenized before with the same settings, the file is reused.

    Args:
        context: the run.
        stage: its section of the recipe sets `max_length` and `limit`.
        name: of the data set.
        files: its Parquet files, all in one folder of the run directory.
        encode: from a row to its tokens; it runs on Ray Data's workers.
        columns: the token columns, with how often their tokens go through the model.
        values: columns of numbers that are not tokens, such as ratings.
    """
    section = context.recipe.training(stage)
    store = context.store
    fingerprint = _fingerprint(
        context.recipe,
        [section.max_length, section.limit, sorted(columns), store.digest_of(files)],
    )
    prefix = f"{layout.TOKENIZED}/{STAGES[stage].key}-{name}"
    file = f"{prefix}-{fingerprint}.arrow"
    record_file = f"{prefix}-{fingerprint}.json"
    record = store.read_json(record_file)
    if record:
        return TokenizedDataset(**record)
    # Files of other settings, or of an attempt that died before its record.
    for old_file in store.list(layout.TOKENIZED):
        if old_file.startswith(f"{prefix}-"):
            store.remove(old_file)
    context.progress.say(f"tokenizing {name}")
    tokenizing = _TokenizeRows(
        context.recipe, encode, columns, values, section.max_length
    )
    tables = _tokenize(tokenizing, store, files, section.limit)
    with store.writing(file) as path:
        dataset = _write(tables, columns, path, name, file)
    # The record comes last, as the file counts only with it.
    store.replace_json(record_file, asdict(dataset))
    return dataset


def left_out(datasets: Iterable[TokenizedDataset]) -> Counter[str]:
    """Count the rows of all data sets that are not trained on, by reason."""
    counts: Counter[str] = Counter()
    for dataset in datasets:
        counts.update(dataset.left_out)
    return counts


def check_rows(
    context: StageContext, stage: str, datasets: list[TokenizedDataset]
) -> None:
    """Check that at least one data set of a stage has rows.

    Raises:
        BezoarError: no row is left to train on; it gives the reasons.
    """
    if any(dataset.rows for dataset in datasets):
        return
    counts = left_out(datasets)
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    max_length = context.recipe.training(stage).max_length
    raise BezoarError(
        f"{stage}: no row is left to train on: {reasons or 'the source has none'} "
        f"(max_length is {max_length})"
    )


def _fingerprint(recipe: Recipe, settings: list[object]) -> str:
    """Return a fingerprint of template, tokenizer, settings and source rows."""
    base = recipe.base
    fields = [_VERSION, base.model, base.revision, recipe.template, settings]
    text = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS).decode()
    folder = Path(model_path(base.model))
    if folder.is_dir():
        return row_id(text, digest(folder))
    return row_id(text)


@dataclass(frozen=True)
class _TokenizeRows:
    """Tokenizes tables of rows on Ray Data's workers."""

    recipe: Recipe
    encode: Encode
    columns: dict[str, int]
    values: tuple[str, ...]
    longest: int

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the rows' ids with their tokens, or with why they are `left_out`."""
        # As JSON, since lru_cache needs an argument that can be hashed.
        tokenizer = _cached_tokenizer(self.recipe.model_dump_json())
        rows = []
        for row in table.to_pylist():
            tokens = self.encode(tokenizer, row, self.longest)
            if isinstance(tokens, str):
                rows.append({"id": row["id"], "left_out": tokens})
            else:
                rows.append({"id": row["id"], **tokens})
        fields = [("id", pa.string()), ("left_out", pa.string())]
        fields += [(column, pa.list_(pa.int32())) for column in self.columns]
        fields += [(column, pa.list_(pa.float32())) for column in self.values]
        return pa.Table.from_pylist(rows, pa.schema(fields))


@lru_cache(maxsize=1)
def _cached_tokenizer(recipe_json: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer once per process, which tokenizes many tables."""
    return load_tokenizer(Recipe.model_validate_json(recipe_json))


def _tokenize(
    tokenizing: _TokenizeRows, store: Store, files: list[str], limit: int | None
) -> Iterator[pa.Table]:
    """Yield the tokenized rows in their order.

    Each file is read by the node that processes it.
    """
    import ray

    root = str(store.root)
    settings = ray.data.DataContext.get_current().copy()
    # The order of the rows decides which of them a seed puts into a step.
    settings.execution_options.preserve_order = True
    quieten(settings)
    with ray.data.DataContext.current(settings):
        # One block for each file, and nothing but its name leaves the driver.
        items = [{"file": file} for file in files]
        names = ray.data.from_items(items, override_num_blocks=len(files))
        rows = names.map_batches(
            lambda batch: _read_rows(root, batch["file"][0]), batch_size=1
        )
        if limit:
            rows = rows.limit(limit)
        tokens = rows.map_batches(
            lambda table: tokenizing(table), batch_size=_ROWS, batch_format="pyarrow"
        )
        yield from tokens.iter_batches(batch_size=None, batch_format="pyarrow")


def _read_rows(root: str, file: str) -> Iterator[pa.Table]:
    with pq.ParquetFile(Store(root).open(file)) as parquet:
        for batch in parquet.iter_batches(_ROWS):
            yield pa.Table.from_batches([batch])


def _write(
    tables: Iterator[pa.Table],
    columns: dict[str, int],
    path: Path,
    name: str,
    file: str,
) -> TokenizedDataset:
    """Write the rows that are trained on to an Arrow file.

    Args:
        tables: tokenized rows.
        columns: the token columns, with how often their tokens go through the model.
        path: where the file is written.
        name: of the data set.
        file: the file's name in the run directory.
    """
    import pyarrow.compute as pc

    rows = 0
    tokens = 0
    longest = 0
    longest_sequence = 0
    sequences = max(columns.values())
    left_out: Counter[str] = Counter()
    # The schema is known with the first table, so the writer opens in the loop.
    with contextlib.ExitStack() as stack:
        writer: Any = None
        for table in tables:
            left_out.update(table["left_out"].drop_null().to_pylist())
            kept = table.filter(pc.is_null(table["left_out"])).drop_columns("left_out")
            if writer is None:
                stream = pa.ipc.new_stream(str(path), kept.schema)
                writer = stack.enter_context(stream)
            writer.write_table(kept)
            lengths = {}
            for column in columns:
                lists = kept[column].combine_chunks()
                lengths[column] = lists.value_lengths().to_numpy()
            row_tokens = sum(
                times * lengths[column] for column, times in columns.items()
            )
            longest_row = int(row_tokens.max(initial=0))
            rows += kept.num_rows
            tokens += int(row_tokens.sum())
            longest = max(longest, longest_row // sequences)
            longest_sequence = max(
                longest_sequence, _longest_sequence(lengths, columns, sequences)
            )
    return TokenizedDataset(
        name=name,
        file=file,
        rows=rows,
        tokens=tokens,
        longest=longest,
        longest_sequence=longest_sequence,
        sequences=sequences,
        left_out=dict(left_out),
    )


def _longest_sequence(
    lengths: dict[str, Any], columns: dict[str, int], sequences: int
) -> int:
    """Return the tokens of the longest sequence.

    A sequence is the beginning that all sequences of its row share, and one end.
    """
    shared: Any = 0
    ends = []
    for column, times in columns.items():
        if times == 1:
            ends.append(lengths[column])
        elif times == sequences:
            shared = shared + lengths[column]
    return max(int((shared + end).max(initial=0)) for end in ends)
