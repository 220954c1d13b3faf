"""What earlier commands have recorded is found through arrays that actors share."""

import asyncio
import tracemalloc
from pathlib import Path

import numpy as np
import orjson
import pytest

from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.chat import Reply
from bezoar_ray.llm.ledger import Ledger
from bezoar_ray.llm.ledger_index import read_index

COUNT = 5_000
KEYS = [
    f"{n:08x}{n:08x}" + "00" * 8 for n in range(COUNT)
]  # bytes that are zero count, too


def record(root: Path, writer: str, answers: dict[str, str], torn: bytes = b"") -> Path:
    """A segment, as its writer left it."""
    path = root / f"ledger/judge/{writer}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    replies = [
        {"reply": key, "model": "m", "answer": Reply(text, "stop", 1, 1), "usd": 0.0}
        for key, text in answers.items()
    ]
    lines = [
        line
        for reply in replies
        for line in ({"intent": reply["reply"], "usd": 0.0}, reply)
    ]
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines) + torn)
    return path


def ask(root: Path, keys: list[str], index=None) -> list[str | None]:
    """What a ledger of the session `new` answers."""

    async def go() -> list[str | None]:
        ledger = Ledger(root, "judge", "new", index)
        found = [ledger.find(key) for key in keys]
        assert [key in ledger for key in keys] == [reply is not None for reply in found]
        assert ledger.has_answers == any(found)
        await ledger.close()
        return [reply and reply.text for reply in found]

    return asyncio.run(go())


def test_every_answer_of_earlier_commands_is_found(tmp_path):
    record(tmp_path, "old1-a", {key: f"a {key}" for key in KEYS[::2]})
    record(
        tmp_path,
        "old2-b",
        {key: f"b {key}" for key in KEYS[1:-1:2]},
        torn=b'{"reply": "abc", "ans',
    )
    index = read_index(tmp_path, "judge", "new")
    assert len(index) == COUNT - 1
    wanted = [f"{'b' if n % 2 else 'a'} {key}" for n, key in enumerate(KEYS[:-1])] + [
        None
    ]
    assert ask(tmp_path, KEYS, index) == ask(tmp_path, KEYS) == wanted


def test_of_several_answers_to_a_call_the_last_one_counts(tmp_path):
    for writer in ("old1-a", "old2-b", "old1-c"):
        record(tmp_path, writer, {KEYS[7]: writer})
    assert ask(tmp_path, [KEYS[7]], read_index(tmp_path, "judge", "new")) == ["old2-b"]
    record(tmp_path, "new-d", {KEYS[7]: "new-d"})
    assert ask(tmp_path, [KEYS[7]], read_index(tmp_path, "judge", "new")) == ["new-d"]


def test_an_actor_that_starts_late_finds_what_this_command_has_recorded_meanwhile(
    tmp_path,
):
    record(tmp_path, "old-a", {KEYS[0]: "old"})
    index = read_index(tmp_path, "judge", "new")
    record(
        tmp_path, "aaa-b", {KEYS[1]: "of nobody's session"}
    )  # sorted before those of the index
    record(
        tmp_path,
        "new-c",
        {KEYS[2]: "new"},
        torn=orjson.dumps({"intent": KEYS[3], "usd": 0.0}) + b"\n",
    )
    assert ask(tmp_path, KEYS[:4], index) == ["old", "of nobody's session", "new", None]

    async def deaths() -> list[int]:
        ledger = Ledger(tmp_path, "judge", "new", index)
        found = [ledger.deaths(key) for key in KEYS[:4]]
        await ledger.close()
        return found

    assert asyncio.run(deaths()) == [0, 0, 0, 1]


def test_a_ledger_without_answers_has_none(tmp_path):
    assert ask(tmp_path, KEYS[:3], read_index(tmp_path, "judge", "new")) == [None] * 3


def test_with_an_index_an_actor_holds_none_of_the_earlier_answers(tmp_path):
    record(tmp_path, "old-a", dict.fromkeys(KEYS, "x" * 100))
    index = read_index(tmp_path, "judge", "new")
    assert index.keys.nbytes + index.locations.nbytes == 24 * COUNT
    assert ask(tmp_path, [KEYS[9]], index) == ["x" * 100]  # what it imports
    tracemalloc.start()
    ask(tmp_path, [KEYS[9]], index)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 * COUNT


def test_actors_of_a_node_share_one_index(ray_session, tmp_path):
    import ray

    record(tmp_path, "old-a", dict.fromkeys(KEYS, "x"))
    index = ray.get(ray.put(read_index(tmp_path, "judge", "new")))
    for shared in (index.keys, index.locations):
        assert (
            not shared.flags.owndata and not shared.flags.writeable
        )  # it lies in Ray's object store
    assert ask(tmp_path, [KEYS[9]], index) == ["x"]
    assert np.all(index.keys[:-1] <= index.keys[1:])


def test_a_segment_that_has_gone_is_named_and_nothing_is_paid_for_again(tmp_path):
    path = record(tmp_path, "old-a", {KEYS[0]: "old"})
    index = read_index(tmp_path, "judge", "new")
    path.unlink()
    with pytest.raises(
        BezoarError,
        match="ledger/judge: the segment old-a is missing.*paid for again",
    ):
        Ledger(tmp_path, "judge", "new", index)
