import os
import subprocess
import sys

import pyarrow as pa
import pytest

from bezoar_ray.errors import RecipeError, RunLocked
from bezoar_ray.store import Store, digest


def test_a_file_is_replaced_whole_and_leaves_no_partial_one(tmp_path):
    store = Store(tmp_path)
    store.replace("a/b.txt", "old")
    store.replace("a/b.txt", "new")
    assert store.read("a/b.txt") == b"new"
    assert os.listdir(tmp_path / "a") == ["b.txt"]


def test_tables_are_read_in_the_order_of_their_names(tmp_path):
    store, schema = Store(tmp_path), pa.schema([("n", pa.int64())])
    for name, n in (("part-1", 2), ("part-0", 1)):
        store.replace_table(f"data/{name}.parquet", pa.table({"n": [n]}, schema=schema))
    assert store.read_table("data", schema)["n"].to_pylist() == [1, 2]
    assert store.read_table("none", schema).num_rows == 0


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_name_cannot_leave_the_run_directory(tmp_path, name):
    with pytest.raises(RecipeError, match="outside the run directory"):
        Store(tmp_path / "run").replace(name, b"")


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot write"), Store(tmp_path / "file").lock():
        pass


def test_a_second_process_is_told_who_holds_the_run(tmp_path):
    code = f"from bezoar_ray.store import Store\nwith Store({str(tmp_path)!r}).lock(): pass"
    with Store(tmp_path).lock():
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"in use by process {os.getpid()} on host" in second.stderr
    assert RunLocked.__name__ in second.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_digest_follows_content_and_names(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/x").write_text("1")
    (tmp_path / "b/x").write_text("1")
    (tmp_path / "c/y").write_text("1")
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
