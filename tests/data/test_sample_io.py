import random

from bezoar_ray.data import sample_io
from bezoar_ray.data.sample_io import (
    ExternalSorter,
    SampleFiles,
    count_samples,
    read_samples,
)
from bezoar_ray.data.schema import Sample, Verdict, row_id, sample_table
from bezoar_ray.store import Store
from tests.rows_on_disk import write_samples


def rows(count, status="accepted"):
    verdicts = [Verdict("j", "accepted", 4.0, "good"), Verdict("k", "failed")]
    made = [
        Sample(
            row_id(n),
            "orca",
            "x",
            seed_ids=["s"],
            status=status,
            verdicts=verdicts,
            reason="é\n",
        )
        for n in range(count)
    ]
    return sorted(made, key=lambda sample: sample.id)


def test_samples_come_back_whole_and_in_the_order_of_their_ids(tmp_path):
    names = write_samples(Store(tmp_path), "orca", "accepted", rows(5)[::-1])
    assert names == ["data/orca/accepted/part-00000.parquet"]
    assert read_samples(Store(tmp_path), "orca", "accepted") == rows(5)
    assert count_samples(Store(tmp_path), "orca", "accepted") == 5


def test_files_of_versions_that_knew_no_history_are_read(tmp_path):
    (name,) = write_samples(Store(tmp_path), "orca", "accepted", rows(2))
    table = Store(tmp_path).read_table(name, sample_table([]).schema)
    Store(tmp_path).replace_table(name, table.drop_columns(["history", "task_source"]))
    assert read_samples(Store(tmp_path), "orca", "accepted") == rows(2)


def test_files_of_an_earlier_run_are_gone(tmp_path):
    write_samples(Store(tmp_path), "orca", "failed", rows(3, "failed"))
    files = SampleFiles(Store(tmp_path), ["orca"], ["failed", "accepted"])
    files.write(rows(2))
    assert files.names == ["data/orca/accepted/part-00000.parquet"]
    assert read_samples(Store(tmp_path), "orca", "failed") == []


def test_rows_that_come_in_any_order_are_read_back_in_that_of_their_ids_some_at_a_time(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(sample_io, "ROWS_PER_FILE", 100)
    made = rows(1000)
    with ExternalSorter(1000) as sorter:
        for sample in random.Random(0).sample(made, 1000):
            sorter.add(sample)
        for _ in range(2):
            parts = list(sorter)
            assert [sample for part in parts for sample in part] == made
        assert max(map(len, parts)) < 200
