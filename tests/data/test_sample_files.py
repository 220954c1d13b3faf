"""Which files of rows count: those that their stage's manifest lists."""

from dataclasses import asdict

import pytest

from bezoar_ray.data.sample_io import count_samples, read_samples, sample_files
from bezoar_ray.data.schema import Sample, row_id, sample_table
from bezoar_ray.errors import BezoarError
from bezoar_ray.recipe import load_recipe
from bezoar_ray.report.cards import write_cards
from bezoar_ray.report.compare import as_text, compare
from bezoar_ray.report.content import gather
from bezoar_ray.report.hub import uploads
from bezoar_ray.report.page import render
from bezoar_ray.report.preview import show
from bezoar_ray.runs.manifest import StageManifest, save
from bezoar_ray.store import Store
from tests.rows_on_disk import write_samples

RECIPE = load_recipe("tiny")
STATUSES = ("generated", "accepted", "rejected", "failed")


def rows(status: str, count: int = 3) -> list[Sample]:
    made = [
        Sample(
            row_id(status, n), "lamini", "x", instruction=f"{status} {n}", status=status
        )
        for n in range(count)
    ]
    return sorted(made, key=lambda sample: sample.id)


@pytest.fixture
def store(tmp_path) -> Store:
    """A run directory after generate and filter."""
    store = Store(tmp_path / "run")
    files = {
        status: write_samples(store, "lamini", status, rows(status))
        for status in STATUSES
    }
    save(store, "generate", StageManifest("f", 1.0, files["generated"]))
    save(
        store,
        "filter",
        StageManifest(
            "f", 1.0, [name for status in STATUSES[1:] for name in files[status]]
        ),
    )
    return store


def leave_stale_files(store: Store) -> None:
    """What an earlier attempt wrote and nobody could delete."""
    for scheme in ("lamini", "orca"):
        for status in STATUSES:
            stale = [
                Sample(
                    "ff",
                    scheme,
                    "x",
                    instruction="stale",
                    status=status,
                    seed_sources=["stale"],
                )
            ]
            store.replace_table(
                f"data/{scheme}/{status}/part-00001.parquet", sample_table(stale)
            )


def seen(store: Store) -> list[object]:
    """What a user sees of the rows."""
    content = gather(RECIPE, store)
    write_cards(content, store)
    (upload,) = uploads(RECIPE, store, "me", ["dataset"])
    return [
        *(
            asdict(sample)
            for status in STATUSES
            for sample in read_samples(store, "lamini", status)
        ),
        *(count_samples(store, "lamini", status) for status in STATUSES),
        show(store, RECIPE.schemes),
        render(content),
        as_text(compare([("one", RECIPE, store), ("two", RECIPE, store)])),
        sorted(upload.files),
    ]


def test_a_stale_file_changes_nothing_that_is_read(store):
    before = seen(store)
    leave_stale_files(store)
    assert seen(store) == before


def test_a_file_that_is_listed_and_missing_is_named_with_the_remedy(store):
    store.remove("data/lamini/accepted/part-00000.parquet")
    said = r"accepted/part-00000.parquet is missing, although manifests/filter.json lists it. Put it back, or .* filter"
    for read in (
        read_samples,
        count_samples,
        lambda *_: show(store, RECIPE.schemes),
        lambda *_: gather(RECIPE, store),
    ):
        with pytest.raises(BezoarError, match=said):
            read(store, "lamini", "accepted")
    assert len(read_samples(store, "lamini", "rejected")) == 3


@pytest.mark.parametrize("manifest", [None, StageManifest("f", 1.0, [])])
def test_without_a_list_every_parquet_file_counts(store, manifest):
    leave_stale_files(store)
    store.remove("manifests/filter.json")
    if manifest:
        save(store, "filter", manifest)
    assert len(read_samples(store, "lamini", "accepted")) == 4
    assert (
        len(read_samples(store, "lamini", "generated")) == 3
    )  # generate has its own list


def test_a_folder_is_not_taken_for_one_whose_name_it_begins(store):
    save(
        store,
        "filter",
        StageManifest("f", 1.0, ["data/lamini2/accepted/part-00000.parquet"]),
    )
    assert sample_files(store, "lamini", "accepted") == []
