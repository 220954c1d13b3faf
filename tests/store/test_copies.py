"""A node's copies of a bucket's objects: which are deleted above the limit, and which never."""

import os
import subprocess
import sys
import tempfile

import pytest

from bezoar_ray.errors import RecipeError
from bezoar_ray.store import Store, copies
from bezoar_ray.store.bucket import Bucket

SIZE = 100_000
USE = """
import sys, time
from bezoar_ray.store import Store
print(Store(sys.argv[1]).path(sys.argv[2]), flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def node(tmp_path, monkeypatch):
    """A node's disk of its own, with room for two and a half objects, of which none is too young to go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv(copies.LIMIT, str(2.5 * SIZE / 2**30))
    monkeypatch.setattr(copies, "_GRACE", 0.0)
    monkeypatch.setattr(copies, "_locked_copies", {})
    yield tmp_path
    let_go()


@pytest.fixture
def store(url) -> Store:
    """Four checkpoints."""
    store = Store(url)
    for name in "abcd":
        store.replace(f"{name}/weights", name * SIZE)
    return store


def let_go():
    """As a process that ends does."""
    for handle in copies._locked_copies.values():
        os.close(handle)
    copies._locked_copies.clear()


def size(node) -> int:
    """Bytes on the node's disk, links counted once."""
    return sum(
        {
            (s := path.stat()).st_ino: s.st_size
            for path in node.rglob("*")
            if path.is_file()
        }.values()
    )


def test_above_the_limit_the_least_recently_used_go(store, node):
    found = {}
    for name in "abacad":
        found[name] = store.path(name) / "weights"
        let_go()
    assert {name for name, path in found.items() if path.exists()} == {"a", "d"}
    assert size(node) == 2 * SIZE
    assert store.path("b").joinpath("weights").read_text() == "b" * SIZE


def test_what_this_process_has_a_path_of_stays(store, node):
    found = [store.path(name) / "weights" for name in "abcd"]
    assert all(path.exists() for path in found) and size(node) == 4 * SIZE


def test_what_another_living_process_has_a_path_of_stays_until_it_ends(
    store, url, node
):
    with subprocess.Popen(
        [sys.executable, "-c", USE, url, "a"], stdout=subprocess.PIPE, text=True
    ) as process:
        path = node.joinpath(process.stdout.readline().strip(), "weights")
        for name in "bcd":
            store.path(name)
            let_go()
        assert path.read_text() == "a" * SIZE and size(node) == 2 * SIZE
        process.kill()
        process.wait()
    for name in "bc":
        store.path(name)
        let_go()
    assert not path.exists()


def test_a_file_that_is_open_can_be_read_on(store):
    with open(store.path("a") / "weights") as file:
        let_go()
        for name in "bcd":
            store.path(name)
        assert file.read() == "a" * SIZE


def test_who_asks_for_what_has_changed_lets_the_earlier_copy_go(store, node):
    first = store.path("a") / "weights"
    for text in "xyz":
        store.replace("a/weights", text * SIZE)
        assert (store.path("a") / "weights").read_text() == text * SIZE
    assert not first.exists() and size(node) == 2 * SIZE


def test_what_two_copies_share_is_there_as_long_as_one_is(store, node):
    whole = store.path("") / "a/weights"
    store.path("a")
    let_go()
    store.replace("b/weights", "x" * SIZE)
    assert (store.path("b") / "weights").read_text() == "x" * SIZE
    assert (
        not whole.exists() and (store.path("a") / "weights").read_text() == "a" * SIZE
    )


def test_a_copy_that_was_just_handed_out_stays(store, monkeypatch):
    monkeypatch.setattr(copies, "_GRACE", 600.0)
    found = []
    for name in "abcd":
        found.append(store.path(name) / "weights")
        let_go()
    assert all(path.exists() for path in found)


def test_what_a_process_left_that_died_while_it_copied_goes(store, monkeypatch, node):
    def dies(bucket, name, file):
        file.write_bytes(b"x" * SIZE)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Bucket, "_download", dies)
        store.path("a")
    for name in "bcd":
        store.path(name)
        let_go()
    assert size(node) == 2 * SIZE


@pytest.mark.parametrize("given", ["much", "-1", "nan", ""])
def test_a_limit_that_is_no_number_is_named(url, monkeypatch, given):
    monkeypatch.setenv(copies.LIMIT, given)
    with pytest.raises(
        RecipeError, match=f"BEZOAR_COPIES_GIB: '{given}' is not a number of GiB"
    ):
        Store(url)


def test_without_a_limit_half_of_the_disk_is_theirs(store, monkeypatch):
    monkeypatch.delenv(copies.LIMIT)
    found = []
    for name in "abcd":
        found.append(Store(str(store.root)).path(name) / "weights")
        let_go()
    assert all(path.exists() for path in found)
