from bezoar_ray import samples
from bezoar_ray.rows import Sample, Verdict
from bezoar_ray.samples import read_samples, write_samples
from bezoar_ray.store import Store


def rows(count):
    verdicts = [Verdict("j", "accepted", 4.0, "good"), Verdict("k", "failed")]
    return [Sample(f"{n:03}", "orca", "x", seed_ids=["s"], verdicts=verdicts) for n in range(count)]


def test_samples_come_back_whole_and_in_the_order_of_their_ids(tmp_path):
    names = write_samples(Store(tmp_path), "orca", "accepted", rows(5)[::-1])
    assert names == ["data/orca/accepted/part-00000.parquet"]
    assert read_samples(Store(tmp_path), "orca", "accepted") == rows(5)


def test_many_samples_fill_several_files_and_few_leave_no_old_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "ROWS_PER_FILE", 2)
    assert len(write_samples(Store(tmp_path), "orca", "failed", rows(5))) == 3
    assert read_samples(Store(tmp_path), "orca", "failed") == rows(5)
    write_samples(Store(tmp_path), "orca", "failed", rows(1))
    assert read_samples(Store(tmp_path), "orca", "failed") == rows(1)
    assert write_samples(Store(tmp_path), "orca", "failed", []) == []
    assert read_samples(Store(tmp_path), "orca", "failed") == []
