"""Training rows, tokenised once: Ray Data writes an Arrow file that every worker opens memory-mapped."""

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
from bezoar_ray.train.encoding import Tokens
from bezoar_ray.train.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


_VERSION = 4  # of what the files hold
_ROWS = 1_000  # tokenised at a time

Encode = Callable[["PreTrainedTokenizerBase", dict[str, Any], int], Tokens | str]
"""From (tokenizer, row, longest) to its columns of tokens, or why the row is left out."""


@dataclass(frozen=True)
class TokenizedDataset:
    """One data set of a stage, as its workers train on it."""

    name: str
    file: str
    """Arrow, in the run directory: the tokens of each row, and its `id`."""
    rows: int
    tokens: int
    longest: int
    """Tokens of the longest row; of a pair, the mean of its sides."""
    longest_sequence: int
    """Tokens of the longest sequence: of a pair, of one of its sides."""
    sequences: int
    """In a row: two in a pair."""
    left_out: dict[str, int]
    """Rows that are not trained on, by reason."""

    def open(self, store: Store) -> "Dataset":
        """The rows as a memory-mapped `datasets.Dataset`, whose fingerprint depends on them, not on their place."""
        from datasets import Dataset
        from datasets.table import MemoryMappedTable

        path = store.path(self.file)
        return Dataset(
            MemoryMappedTable.from_file(str(path)),
            fingerprint=path.stem.rpartition("-")[2],
        )


def prepare(
    context: StageContext,
    stage: str,
    name: str,
    files: list[str],
    encode: Encode,
    columns: dict[str, int],
) -> TokenizedDataset:
    """Tokenise the rows of some files in their order; what was prepared of the same is kept.

    Args:
        context: the run.
        stage: whose part of the recipe says what is too long, how many rows count.
        name: of the data set.
        files: its Parquet files, all in one folder of the run directory.
        encode: from a row to its tokens; it runs on Ray Data's workers.
        columns: of tokens, with how often their tokens go through the model.
    """
    part, store = context.recipe.training(stage), context.store
    mark = _mark(
        context, [part.max_length, part.limit, sorted(columns), store.digest_of(files)]
    )
    start = f"{layout.TOKENIZED}/{STAGES[stage].key}-{name}"
    file, record = f"{start}-{mark}.arrow", f"{start}-{mark}.json"
    if found := store.read_json(record):
        return TokenizedDataset(**found)
    for old in (
        file for file in store.list(layout.TOKENIZED) if file.startswith(f"{start}-")
    ):
        store.remove(old)
    context.progress.say(f"tokenising {name}")
    tables = _encoded(
        _Work(context.recipe, encode, columns, part.max_length),
        store,
        files,
        part.limit,
    )
    with store.writing(file) as path:
        prepared = _write(tables, columns, path, name, file)
    store.replace_json(record, asdict(prepared))
    return prepared


def left_out(found: Iterable[TokenizedDataset]) -> Counter[str]:
    """Rows of all data sets that are not trained on, by reason."""
    return sum((Counter(data.left_out) for data in found), Counter())


def checked(
    context: StageContext, stage: str, found: list[TokenizedDataset]
) -> list[TokenizedDataset]:
    """The data sets of a stage, of which one at least has rows.

    Raises:
        BezoarError: nothing is left to train on; it says why.
    """
    if any(data.rows for data in found):
        return found
    because = (
        ", ".join(f"{count} {why}" for why, count in left_out(found).items())
        or "there were none"
    )
    longest = context.recipe.training(stage).max_length
    raise BezoarError(
        f"{stage}: no row is left to train on: {because} (max_length is {longest})"
    )


def _mark(context: StageContext, *more: object) -> str:
    base, template = context.recipe.base, context.recipe.template
    text = orjson.dumps(
        [_VERSION, base.model, base.revision, template, *more],
        option=orjson.OPT_SORT_KEYS,
    )
    return row_id(
        text.decode(),
        *(
            [digest(folder)]
            if (folder := Path(model_path(base.model))).is_dir()
            else []
        ),
    )


@dataclass(frozen=True)
class _Work:
    """What is done to the rows."""

    recipe: Recipe
    encode: Encode
    columns: dict[str, int]
    longest: int

    def __call__(self, table: pa.Table) -> pa.Table:
        """Some rows as tokens, or with why they are `left_out`."""
        tokenizer = _tokenizer(self.recipe.model_dump_json())
        found = [
            (row["id"], self.encode(tokenizer, row, self.longest))
            for row in table.to_pylist()
        ]
        rows = [
            {"id": row, **({"left_out": got} if isinstance(got, str) else got)}
            for row, got in found
        ]
        tokens = [(name, pa.list_(pa.int32())) for name in self.columns]
        return pa.Table.from_pylist(
            rows, pa.schema([("id", pa.string()), ("left_out", pa.string()), *tokens])
        )


@lru_cache(maxsize=1)
def _tokenizer(recipe: str) -> "PreTrainedTokenizerBase":
    """Loaded once in a process of Ray's, which works on many rows and data sets."""
    return load_tokenizer(Recipe.model_validate_json(recipe))


def _encoded(
    work: _Work, store: Store, files: list[str], limit: int | None
) -> Iterator[pa.Table]:
    """The rows as tokens, in their order; every file is read by the node that takes it."""
    import ray

    root = str(store.root)
    settings = ray.data.DataContext.get_current().copy()
    settings.execution_options.preserve_order = True
    quieten(settings)
    with ray.data.DataContext.current(settings):
        names = ray.data.from_items(
            [{"file": name} for name in files], override_num_blocks=len(files)
        )
        rows = names.map_batches(
            lambda batch: _rows(root, batch["file"][0]), batch_size=1
        )
        rows = rows.limit(limit) if limit else rows
        tokens = rows.map_batches(
            lambda table: work(table), batch_size=_ROWS, batch_format="pyarrow"
        )
        yield from tokens.iter_batches(batch_size=None, batch_format="pyarrow")


def _rows(root: str, file: str) -> Iterator[pa.Table]:
    with pq.ParquetFile(Store(root).open(file)) as found:
        for batch in found.iter_batches(_ROWS):
            yield pa.Table.from_batches([batch])


def _write(
    tables: Iterator[pa.Table],
    columns: dict[str, int],
    path: Path,
    name: str,
    file: str,
) -> TokenizedDataset:
    """Write the rows that are trained on to an Arrow file at `path`, which becomes `file` of the run directory."""
    import pyarrow.compute as pc

    rows = tokens = longest = longest_sequence = 0
    sequences = max(columns.values())
    left_out: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        writer: Any = None
        for table in tables:
            left_out.update(table["left_out"].drop_null().to_pylist())
            kept = table.filter(pc.is_null(table["left_out"])).drop_columns("left_out")
            writer = writer or stack.enter_context(
                pa.ipc.new_stream(str(path), kept.schema)
            )
            writer.write_table(kept)
            rows += kept.num_rows
            lengths = {
                column: kept[column].combine_chunks().value_lengths().to_numpy()
                for column in columns
            }
            whole = sum(times * lengths[column] for column, times in columns.items())
            tokens += int(whole.sum())
            longest = max(longest, int(whole.max(initial=0)) // sequences)
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
    """Tokens of the longest sequence: what all of a row's begin with, and the end of one."""
    shared = sum(
        lengths[name] for name, times in columns.items() if times == sequences > 1
    )
    ends = [lengths[name] for name, times in columns.items() if times == 1]
    return max(int((shared + end).max(initial=0)) for end in ends)
