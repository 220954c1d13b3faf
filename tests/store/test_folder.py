import errno
import os
import subprocess
import sys

import pyarrow as pa
import pytest

from bezoar_ray.errors import BezoarError, RecipeError, RunLocked
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
    with (
        pytest.raises(RecipeError, match="cannot write"),
        Store(tmp_path / "file").lock(),
    ):
        pass


def test_a_second_process_is_told_who_holds_the_run(tmp_path):
    code = f"from bezoar_ray.store import Store\nwith Store({str(tmp_path)!r}).lock(): pass"
    with Store(tmp_path).lock():
        second = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True
        )
    assert f"in use by process {os.getpid()} on host" in second.stderr
    assert RunLocked.__name__ in second.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_folder_that_is_linked_into_a_run_belongs_to_it(tmp_path):
    (tmp_path / "large-disk/sft").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").symlink_to(tmp_path / "large-disk")
    store = Store(tmp_path / "run")
    store.replace("checkpoints/sft/config.json", "{}")
    assert (tmp_path / "large-disk/sft/config.json").read_text() == "{}"
    assert list(store.list("checkpoints")) == ["checkpoints/sft/config.json"]
    store.remove("checkpoints/sft")
    assert (
        not (tmp_path / "large-disk/sft").exists()
        and (tmp_path / "run/checkpoints").is_symlink()
    )


def test_what_cannot_be_removed_stops_what_would_take_it_for_new(tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    store = Store(tmp_path)
    store.replace("data/lamini/accepted/part-0.parquet", "old")
    monkeypatch.setattr("bezoar_ray.store.folder.shutil.rmtree", refuse)
    with pytest.raises(
        BezoarError,
        match=r"cannot remove .*accepted: Permission denied\. Remove it by hand",
    ):
        store.remove("data/lamini/accepted")
    store.remove("data/lamini/none")  # nothing there is nothing to remove
    store.remove("data/lamini/accepted/part-0.parquet/below")


@pytest.mark.parametrize("kind", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, kind):
    def refuse(*_):
        raise OSError(kind, os.strerror(kind))

    monkeypatch.setattr("bezoar_ray.store.folder.fcntl.flock", refuse)
    with (
        pytest.raises(RecipeError, match="cannot lock .* choose a --run-dir"),
        Store(tmp_path).lock(),
    ):
        pass


def test_a_copy_does_not_write_into_a_file_that_another_run_shares(
    tmp_path, monkeypatch
):
    first, second, third = (
        Store(tmp_path / name) for name in ("first", "second", "third")
    )
    first.replace("a", "1")
    second.replace("a", "2")
    third.adopt(first, "a")  # a link: one file in two directories

    def late(source, target):
        os.symlink(tmp_path / "first/a", target)  # another process was quicker
        raise FileExistsError

    monkeypatch.setattr("bezoar_ray.store.folder.os.link", late)
    third.adopt(second, "a")
    assert (first.read("a"), third.read("a")) == (b"1", b"2")


def test_a_digest_follows_content_and_names(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/x").write_text("1")
    (tmp_path / "b/x").write_text("1")
    (tmp_path / "c/y").write_text("1")
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
