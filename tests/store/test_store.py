"""What every run directory does, in a folder or in a bucket."""

import asyncio
import os
import time
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa
import pytest

from bezoar_ray.data.row import StageRow
from bezoar_ray.data.spool import Spool, spool_rows
from bezoar_ray.errors import RecipeError
from bezoar_ray.llm.chat import Reply
from bezoar_ray.llm.ledger import SESSION, Ledger, accounts
from bezoar_ray.store import Store


@dataclass(frozen=True)
class Number(StageRow):
    id: str


def test_files_are_replaced_listed_read_and_removed(store):
    store.replace("a/b.txt", "old")
    store.replace("a/b.txt", "new")
    store.replace("a/c/d.json", b"{}")
    store.replace("ab.txt", "beside")
    assert store.read("a/b.txt") == b"new" and store.read_json("a/c/d.json") == {}
    assert store.list("a") == ["a/b.txt", "a/c/d.json"] and store.list(
        "a", ".json"
    ) == ["a/c/d.json"]
    assert store.exists("a") and store.exists("a/c/d.json") and not store.exists("a/x")
    store.remove("a")
    assert not store.exists("a") and store.exists("ab.txt") and store.list("a") == []
    store.remove("a")


def test_what_is_removed_while_files_are_listed_is_no_fault(store):
    for name in "abcdef":
        store.replace(f"x/{name}/file", b"")
    found = store._files.list("x")
    first = next(found)
    for name in "abcdef":
        store.remove(f"x/{name}")
    assert first.startswith("x/") and len(list(found)) < 6


def test_what_is_not_there_is_none_or_not_found(store):
    assert store.read_json("none.json") is None
    with pytest.raises(FileNotFoundError):
        store.read("none.txt")


def test_tables_are_read_in_the_order_of_their_names(store):
    schema = pa.schema([("n", pa.int64())])
    for name, n in (("part-1", 2), ("part-0", 1)):
        store.replace_table(f"data/{name}.parquet", pa.table({"n": [n]}, schema=schema))
    assert store.read_table("data", schema)["n"].to_pylist() == [1, 2]
    assert store.read_table("none", schema).num_rows == 0


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_name_cannot_leave_the_run_directory(store, name):
    for use in (
        store.path,
        store.read,
        store.list,
        store.remove,
        lambda name: store.replace(name, b""),
    ):
        with pytest.raises(RecipeError, match="outside the run directory"):
            use(name)


def test_libraries_write_and_read_whole_folders(store):
    with store.writing("model") as folder:
        folder.mkdir(exist_ok=True)
        (folder / "a.bin").write_bytes(b"1" * 1000)
        (folder / "sub").mkdir(exist_ok=True)
        (folder / "sub/b.bin").write_bytes(b"2")
    assert store.list("model") == ["model/a.bin", "model/sub/b.bin"]
    assert (store.path("model") / "sub/b.bin").read_bytes() == b"2"
    assert store.path("model/a.bin").read_bytes() == b"1" * 1000
    store.replace("model/a.bin", "changed")
    assert (store.path("model") / "a.bin").read_bytes() == b"changed"


def test_a_fingerprint_follows_the_content(store):
    store.replace("x/a", "1")
    before = store.digest("x")
    store.replace("x/a", "2")
    assert store.digest("x") != before
    store.replace("x/a", "1")
    assert store.digest("x") == before


def test_another_run_directory_takes_over_files(store):
    other = Store(f"{store.root}-other")
    other.replace("data/a.txt", "a")
    other.replace("data/sub/b.txt", "b")
    store.adopt(other, "data")
    assert (
        store.list("data") == ["data/a.txt", "data/sub/b.txt"]
        and store.read("data/sub/b.txt") == b"b"
    )


def test_spooled_rows_are_read_from_anywhere(store):
    with store.scratch() as scratch:
        path = f"{scratch}/rows.arrow"
        spool = spool_rows((Number(str(n)) for n in range(1000)), path, Number)
        reopened = Spool(path, spool.batches, Number)
        rows = [row for block in spool.blocks(16) for row in reopened.read(block)]
        assert [int(row.id) for row in rows] == list(range(1000))
    assert not store.exists("scratch")


def test_a_ledger_finds_its_answers_and_its_account_again(store):
    async def written() -> None:
        ledger = Ledger(store.root, "judge", "one")
        await asyncio.gather(*(ledger.intend(f"{n:02x}", 0.5) for n in range(50)))
        await asyncio.gather(
            *(
                ledger.record_usage(
                    f"{n:02x}", "m", Reply(f"text {n}", "stop", 3, 2), 0.25
                )
                for n in range(40)
            )
        )
        assert ledger.find("07").text == "text 7"
        await ledger.close()

    async def read() -> list[str]:
        ledger = Ledger(store.root, "judge", "two")
        found = [ledger.find(f"{n:02x}") for n in range(50)]
        await ledger.close()
        return [reply.text for reply in found if reply]

    asyncio.run(written())
    assert asyncio.run(read()) == [f"text {n}" for n in range(40)]
    found = accounts(store.root, "two")["judge"]
    assert (found["sent"], found["attempts"], found["from_ledger"]) == (40, 50, 41)
    assert found["usd"] == pytest.approx(40 * 0.25 + 10 * 0.5)
    assert found["last_run"]["from_ledger"] == 40


def test_long_segments_are_cut_into_objects_and_read_as_one(store, monkeypatch):
    monkeypatch.setattr("bezoar_ray.llm.ledger_files._OBJECT_BYTES", 2_000)
    monkeypatch.setattr(
        "bezoar_ray.llm.ledger_files._PAUSE_IN_BUCKET", {"s3": 0.0, "gs": 0.0}
    )

    async def written() -> None:
        ledger = Ledger(store.root, "teacher", "one")
        for n in range(60):
            await ledger.intend(
                f"{n:02x}", 0.0
            )  # and its answer in another object, perhaps
            await ledger.record_usage(
                f"{n:02x}", "m", Reply("x" * 150 + str(n), "stop", 1, 1), 0.0
            )
        assert ledger.find("03").text.endswith("x3")
        await ledger.close()

    async def died() -> tuple[int, int]:
        ledger = Ledger(store.root, "teacher", "one")
        deaths = sum(ledger.deaths(f"{n:02x}") for n in range(60))
        found = sum(ledger.find(f"{n:02x}") is not None for n in range(60))
        await ledger.close()
        return deaths, found

    asyncio.run(written())
    assert asyncio.run(died()) == (0, 60)
    if store.remote:
        assert len(store.list("ledger/teacher")) > 5


def test_in_a_bucket_a_writers_lines_gather_between_two_puts(store, monkeypatch):
    put, at = Store.replace, []

    def replace(self, name, data):
        at.append(time.monotonic())
        put(self, name, data)

    async def go() -> None:
        ledger = Ledger(store.root, "teacher", "one")
        await asyncio.gather(*(later(ledger, n) for n in range(40)))
        await ledger.close()

    async def later(ledger: Ledger, n: int) -> None:
        await asyncio.sleep(n * 0.02)
        await ledger.record_usage(f"{n:02x}", "m", Reply("x", "stop", 1, 1), 0.0)

    monkeypatch.setattr(Store, "replace", replace)
    asyncio.run(go())
    assert all(later - before >= 0.25 for before, later in pairwise(at)) and len(
        at
    ) in (range(2, 6) if store.remote else [0])
    assert accounts(store.root, "one")["teacher"]["sent"] == 40


def test_another_command_that_takes_over_ends_the_first_ones_calls(store):
    async def go() -> None:
        ledger = Ledger(store.root, "judge", "one")
        store.replace(SESSION, "one")
        await ledger.check_owner()
        store.replace(SESSION, "two")
        with pytest.raises(Exception, match="owned by another command"):
            await ledger.intend("aa", 0.0)
        await ledger.close()

    asyncio.run(go())


def test_logs_lie_on_this_node(store):
    store.log("a.log").write_text("said")
    assert store.log("a.log").read_text() == "said" and os.path.isabs(
        store.log("a.log")
    )
