"""What people decide is kept: whatever ends the session, and whoever else decides."""

import os
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from bezoar_ray import layout
from bezoar_ray.data.decision import (
    Decision,
    by_row,
    decode_decisions,
    encode_decision,
    latest,
    now,
    read_decision_files,
    read_own_decisions,
)
from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.review.decisions import DecisionLog
from bezoar_ray.store import Store
from tests import s3


def decide(id: str, decision="accept", reviewer="ada", **fields) -> Decision:
    fields.setdefault("time", now())
    return Decision(id, "lamini", decision, reviewer, **fields)


WRITER = """
import sys
from bezoar_ray.data.decision import Decision, now
from bezoar_ray.review.decisions import DecisionLog
from bezoar_ray.store import Store

log = DecisionLog(Store(sys.argv[1]))
for number in range(10_000):
    log.append(Decision(f"{sys.argv[2]}-{number}", "lamini", "accept", "ada", now()))
    print(number, flush=True)
"""


def test_a_decision_is_on_disk_before_the_next_row_is_shown_however_the_session_ends(
    tmp_path,
):
    """A process is killed again and again while it writes."""
    confirmed = set()
    for session in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(session)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(20 + session):
            confirmed.add(f"{session}-{writer.stdout.readline().strip()}")
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
    found = {decision.id for decision in read_own_decisions(Store(tmp_path))}
    assert len(confirmed) == 110 and confirmed <= found


def test_a_line_torn_by_a_crash_is_left_out_and_the_next_session_is_whole(tmp_path):
    store = Store(tmp_path)
    log = DecisionLog(store)
    log.append(decide("a"), decide("b"))
    (name,) = store.list(layout.DECISIONS)
    path = store.path(name)
    path.write_bytes(path.read_bytes()[:-20])
    other = DecisionLog(store)
    other.append(decide("c"))
    assert {decision.id for decision in other.read()} == {"a", "c"}


def test_sessions_and_threads_write_at_once(tmp_path):
    logs = [DecisionLog(Store(tmp_path)) for _ in range(2)]

    def write(worker: int) -> None:
        for number in range(25):
            logs[worker % 2].append(decide(f"{worker}-{number}", reviewer=f"{worker}"))

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({decision.id for decision in logs[0].read()}) == 100
    assert len(list(tmp_path.rglob("*.jsonl"))) == 2


def test_a_session_without_decisions_leaves_no_file(tmp_path):
    log = DecisionLog(Store(tmp_path))
    log.append()
    log.close()
    assert list(tmp_path.rglob("*.jsonl")) == [] and log.read() == []


def test_a_decision_that_cannot_be_written_is_an_error_and_leaves_no_half_a_line(
    tmp_path,
):
    log = DecisionLog(Store(tmp_path))
    log.append(decide("a"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
        with pytest.raises(BezoarError, match="cannot write .*Free space"):
            log.append(decide("b"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.append(decide("c"))
    assert [decision.id for decision in log.read()] == ["a", "c"]


def test_in_a_bucket_the_sessions_are_read_together(monkeypatch):
    with s3.s3() as address:
        for name, value in s3.environment(address).items():
            monkeypatch.setenv(name, value)
        url = s3.new_bucket(address)
        logs = [DecisionLog(Store(url)) for _ in range(2)]
        for number in range(3):
            for log in logs:
                log.append(decide(f"{number}", reviewer=f"{logs.index(log)}"))
        for log in logs:
            log.close()
        found = latest(read_own_decisions(Store(url)))
    assert len(found) == 6


def test_the_last_line_of_a_reviewer_counts():
    first = decide("a", time="2026-01-01T00:00:00.000000+00:00")
    second = replace(first, decision="reject", time="2026-01-01T00:00:01.000000+00:00")
    undo = replace(first, decision="undo", time="2026-01-01T00:00:02.000000+00:00")
    # Files of sessions are read one after the other, whatever their times.
    assert latest([second, first]) == {("a", "ada"): second}
    assert latest([undo, second, first]) == {}


def test_of_two_reviewers_the_last_one_decides_and_a_skip_decides_nothing():
    first = decide("a", time="2026-01-01T00:00:00.000000+00:00")
    other = replace(
        first,
        reviewer="bob",
        decision="reject",
        time="2026-01-01T00:00:01.000000+00:00",
    )
    skip = replace(
        first,
        reviewer="eve",
        decision="skip",
        time="2026-01-01T00:00:02.000000+00:00",
    )
    assert by_row([first, other, skip]) == {"a": other}
    assert by_row([skip]) == {}


def test_an_edited_row_was_not_good_as_it_was():
    assert decide("a").approves
    assert not decide("a", response="Better.").approves
    assert decide("a", input="", response="Better.").edits == {
        "input": "",
        "response": "Better.",
    }


def test_a_decision_survives_its_line():
    decision = decide("a", "reject", reason="wrong\u2028sum", seconds=1.5, rubric="f")
    assert list(decode_decisions(encode_decision(decision), "f")) == [decision]


def test_files_from_elsewhere_may_lack_a_last_line_break_and_have_another_zone(
    tmp_path,
):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"id": "a", "scheme": "lamini", "decision": "accept", "reviewer": "ada", '
        '"time": "2026-01-01T02:00:00+02:00", "note": "unknown fields are passed over"}'
    )
    (decision,) = read_decision_files(str(path), "filter.decisions")
    assert decision.time == "2026-01-01T00:00:00.000000+00:00"


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"id": "a"}\n', r"mine.jsonl:1: not a decision: scheme: Field required"),
        ("no\n", r"mine.jsonl:1: not valid JSON"),
        (
            '{"id": "a", "scheme": "s", "decision": "maybe", "reviewer": "r", '
            '"time": "2026-01-01"}\n',
            "decision: Input should be 'accept', 'reject'",
        ),
        (
            '{"id": "a", "scheme": "s", "decision": "accept", "reviewer": "r", '
            '"time": "noon"}\n',
            "time: Invalid isoformat string: 'noon'",
        ),
    ],
)
def test_a_line_that_is_no_decision_is_named(tmp_path, line, match):
    path = tmp_path / "mine.jsonl"
    path.write_text(line)
    with pytest.raises(RecipeError, match=match):
        read_decision_files(str(path), "filter.decisions")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecipeError, match="filter.decisions: no file"):
        read_decision_files(str(tmp_path / "none.jsonl"), "filter.decisions")
