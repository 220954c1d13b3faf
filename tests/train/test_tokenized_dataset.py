"""Rows are tokenised once, in their order, and every worker opens the same file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from bezoar_ray.data.sample_io import sample_files
from bezoar_ray.data.schema import Sample, pair_table, sample_table
from bezoar_ray.errors import BezoarError
from bezoar_ray.recipe import SourceSection
from bezoar_ray.runs.manifest import StageManifest, save
from bezoar_ray.stages import StageContext
from bezoar_ray.train import encoding, pairs
from bezoar_ray.train.tokenized_dataset import TokenizedDataset, prepare
from bezoar_ray.train.tokenizer import load_tokenizer
from bezoar_ray.train.training_stages import ALIGN, TRAINING_STAGES
from tests.train.conftest import run_stage


def changed(context: StageContext, **values: Any) -> StageContext:
    recipe = context.recipe
    return replace(
        context,
        recipe=recipe.model_copy(update={"sft": recipe.sft.model_copy(update=values)}),
    )


def of(context: StageContext, scheme: str = "lamini") -> TokenizedDataset:
    files = sample_files(context.store, scheme, "accepted")
    return prepare(
        context, "sft", scheme, files, encoding.sample_tokens, encoding.CONVERSATION
    )


def encoded(context: StageContext, count: int = 8) -> list[encoding.Tokens]:
    tokenizer = load_tokenizer(context.recipe)
    rows = context.store.read_table(
        "data/lamini/accepted", sample_table([]).schema
    ).to_pylist()
    return [encoding.sample_tokens(tokenizer, row, 10_000) for row in rows[:count]]


def test_rows_stay_in_order(ray_session: None, context: StageContext) -> None:
    found = of(context)
    rows = found.open(context.store)
    assert rows["id"][:] == [f"lamini{n}" for n in range(8)]
    assert [
        {"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows
    ] == encoded(context)
    assert (found.rows, found.left_out) == (8, {})
    assert found.tokens == sum(len(row["input_ids"]) for row in encoded(context))


def test_every_worker_maps_the_same_file_into_its_memory(
    ray_session: None, context: StageContext
) -> None:
    found = of(context)
    allocated = pa.total_allocated_bytes()
    rows = found.open(context.store)
    assert str(context.store.path(found.file)) in Path("/proc/self/maps").read_text()
    assert pa.total_allocated_bytes() == allocated and len(rows) == 8


def test_the_file_is_kept_until_something_in_it_would_change(
    ray_session: None, context: StageContext
) -> None:
    found = of(context)
    written = context.store.path(found.file).stat().st_mtime_ns
    assert of(changed(context, learning_rate=1.0, batch=8, packing=False)) == found
    assert context.store.path(found.file).stat().st_mtime_ns == written
    other = of(changed(context, limit=3))
    assert other.rows == 3 and other.file != found.file
    assert not context.store.exists(found.file)


def test_what_is_left_out_is_counted(ray_session: None, context: StageContext) -> None:
    longest = min(len(row["input_ids"]) for row in encoded(context)) + 1
    silent = Sample(
        "zz", "lamini", "op", instruction="What colour is animal1?", response=" "
    )
    context.store.replace_table(
        "data/lamini/accepted/part-1.parquet", sample_table([silent])
    )
    found = of(changed(context, max_length=longest))
    assert (
        found.left_out == {encoding.TOO_LONG: 8 - found.rows, encoding.NO_ANSWER: 1}
        and found.rows > 0
    )


def test_nothing_left_is_an_error_that_says_why(
    ray_session: None, context: StageContext
) -> None:
    with pytest.raises(
        BezoarError,
        match=r"sft: no row is left.*16 longer than max_length \(max_length is 4\)",
    ):
        run_stage(changed(context, max_length=4), "sft")


def prepare_all(context: StageContext) -> list[TokenizedDataset]:
    datasets = []
    for name in context.recipe.trained:
        stage = TRAINING_STAGES[name]
        datasets += stage.prepare(context)
    return datasets


def test_files_that_no_manifest_lists_are_not_trained_on(
    ray_session: None, context: StageContext
) -> None:
    own = [{"instruction": "What colour is animal1?", "response": "Green."}]
    (context.store.path("mine.jsonl")).write_bytes(orjson.dumps(own[0]))
    source = SourceSection(source=str(context.store.path("mine.jsonl")))
    context = changed(context, data={"mine": source})
    files = [
        name
        for name in context.store.list("data", ".parquet")
        if name.endswith("part-0.parquet")
    ]
    save(context.store, "filter", StageManifest("f", 1.0, files))
    pairs.ensure(context)
    before = prepare_all(context)
    heldout = pairs.read(context.store, "heldout")
    assert [data.name for data in before] == [
        "lamini",
        "evol_instruct",
        "mine",
        "hh_rlhf",
        "pairs",
    ]
    for name in ("lamini", "evol_instruct", "orca", "mine"):
        stale = Sample("zz", name, "op", instruction="Stale?", response="Stale.")
        context.store.replace_table(
            f"data/{name}/accepted/part-9.parquet", sample_table([stale])
        )
    for part in pairs.PARTS:
        rows = pairs.read(context.store, part)
        context.store.replace_table(
            f"data/hh_rlhf/{part}/part-9.parquet", pair_table(rows)
        )
    assert prepare_all(context) == before
    assert pairs.read(context.store, "heldout") == heldout


def test_a_run_directory_of_before_keeps_what_it_has_prepared(
    context: StageContext,
) -> None:
    folder = "data/lamini/accepted"
    assert context.store.digest_of(context.store.list(folder)) == context.store.digest(
        folder
    )


def test_pairs_keep_what_goes_through_the_model(
    ray_session: None, context: StageContext
) -> None:
    pairs.ensure(context)
    (found,) = ALIGN.prepare(context)
    rows = found.open(context.store)
    sides = sum(
        2 * len(i["prompt_ids"]) + len(i["chosen_ids"]) + len(i["rejected_ids"])
        for i in rows
    )
    assert (found.rows, found.tokens) == (20, sides)


@pytest.mark.parametrize("stage", ["hh-sft", "align"])
def test_a_source_without_a_pair_is_an_error_that_names_it(
    context: StageContext, tmp_path: Path, stage: str
) -> None:
    (tmp_path / "hh.jsonl").write_text("")
    seeds = context.recipe.seeds.model_copy(
        update={"hh_rlhf": (SourceSection(source=str(tmp_path / "hh.jsonl")),)}
    )
    empty = replace(context, recipe=context.recipe.model_copy(update={"seeds": seeds}))
    with pytest.raises(BezoarError, match="seeds.hh_rlhf gave no pairs to train on"):
        run_stage(empty, stage)
