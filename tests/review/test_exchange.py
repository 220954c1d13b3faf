"""Decisions leave as files and come back, also by way of other tools."""

import orjson
import pytest

from bezoar_ray import cli
from bezoar_ray.data.decision import by_row, latest, read_own_decisions
from bezoar_ray.recipe import recipe_of
from bezoar_ray.review.decisions import DecisionLog
from bezoar_ray.review.queue import judge_fingerprint, rubric_fingerprint
from bezoar_ray.store import Store
from tests.review.conftest import make_rows, write_run
from tests.review.test_decisions import decide

ROWS = make_rows(6, 4)
IDS = [row.id for row in ROWS]
DECISIONS = [
    decide(IDS[0], seconds=2.5),
    decide(IDS[1], "reject", reason="wrong\u2028sum"),
    decide(IDS[2], response="Better.", input="d"),
    decide(IDS[3], "skip"),
    decide(IDS[0], "reject", reviewer="bob"),
]


@pytest.fixture
def other(tmp_path) -> Store:
    """Another run directory with the same rows."""
    return write_run(tmp_path / "other", ROWS)


def review(store: Store, *arguments: str) -> int:
    return cli.main(["review", str(store.root), *arguments])


def fill(store: Store) -> None:
    DecisionLog(store).append(*DECISIONS)


def effects(store: Store) -> dict:
    found = latest(read_own_decisions(store))
    return {key: (one.decision, one.reason, one.edits) for key, one in found.items()}


def test_exported_decisions_are_the_same_after_an_import(
    run_store, other, tmp_path, capsys
):
    fill(run_store)
    file = str(tmp_path / "decisions.jsonl")
    assert review(run_store, "--export", file) == 0
    assert review(other, "--import", file) == 0
    assert "5 decisions added" in capsys.readouterr().out
    assert effects(other) == effects(run_store) and len(effects(other)) == 5
    mine, theirs = (by_row(read_own_decisions(one)) for one in (run_store, other))
    assert mine[IDS[1]].time == theirs[IDS[1]].time
    # Again, it adds nothing.
    assert review(other, "--import", file) == 0
    assert "0 decisions added" in capsys.readouterr().out


def test_undone_decisions_are_not_exported(run_store, tmp_path):
    fill(run_store)
    DecisionLog(run_store).append(decide(IDS[1], "undo"))
    file = tmp_path / "decisions.jsonl"
    review(run_store, "--export", str(file))
    rows = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    assert len(rows) == 4 and IDS[1] not in {row["id"] for row in rows}


def test_decisions_on_rows_of_another_run_are_left_out_and_counted(
    run_store, tmp_path, capsys
):
    fill(run_store)
    file = str(tmp_path / "decisions.jsonl")
    review(run_store, "--export", file)
    small = write_run(tmp_path / "small", ROWS[:1])
    review(small, "--import", file)
    output = capsys.readouterr().out
    assert "2 decisions added" in output and "3 decisions left out" in output


def test_label_studio_gets_rows_and_gives_decisions_back(
    run_store, other, tmp_path, capsys
):
    fill(run_store)
    file = tmp_path / "tasks.json"
    assert review(run_store, "--export", str(file), "--format", "label-studio") == 0
    tasks = orjson.loads(file.read_bytes())
    assert len(tasks) == 10
    assert "secret reason" not in file.read_text()
    by_id = {task["data"]["id"]: task for task in tasks}
    assert by_id[IDS[4]]["data"]["instruction"] == "Task 4"
    assert "A good row" in by_id[IDS[4]]["data"]["rubric"]
    # What a person annotates there has the same form as what was sent as a prediction.
    for task in tasks:
        task["annotations"] = [
            {
                "result": prediction["result"],
                "completed_by": {"id": 1, "email": f"{prediction['model_version']}@x"},
                "updated_at": "2026-03-09T22:16:08.728378Z",
                "lead_time": 4.288,
                "was_cancelled": False,
            }
            for prediction in task.pop("predictions")
        ]
    by_id[IDS[5]]["annotations"] = [
        {
            "result": [],
            "completed_by": 7,
            "created_at": "2026-03-09T22:16:08Z",
            "was_cancelled": True,
        }
    ]
    file.write_bytes(orjson.dumps(tasks))
    assert review(other, "--import", str(file), "--format", "label-studio") == 0
    expected = {(id, f"{name}@x"): e for (id, name), e in effects(run_store).items()}
    assert effects(other) == expected | {(IDS[5], "7"): ("skip", "", {})}
    decision = latest(read_own_decisions(other))[IDS[2], "ada@x"]
    recipe = recipe_of(other)
    assert decision.seconds == 4.288 and decision.scheme == "lamini"
    assert decision.time == "2026-03-09T22:16:08.728378+00:00"
    # A tool knows no fingerprints: they are those of the run.
    assert decision.rubric == rubric_fingerprint(recipe.filter.rubric("lamini"))
    assert decision.judge == judge_fingerprint(recipe)


def test_argilla_gets_rows_and_gives_decisions_back(run_store, other, tmp_path, capsys):
    fill(run_store)
    file = tmp_path / "records.json"
    assert review(run_store, "--export", str(file), "--format", "argilla") == 0
    records = orjson.loads(file.read_bytes())
    assert len(records) == 10 and "secret reason" not in file.read_text()
    for record in records:
        # As `Record.to_dict` gives it, after two people have answered.
        record["responses"] = {
            name: [{"value": one["value"], "user_id": "u1"}]
            for name, one in record["suggestions"].items()
        }
        record["_server_id"] = "x"
    records[0]["responses"].setdefault("reason", []).append(
        {"value": "not sure yet", "user_id": "u2"}
    )
    file.write_bytes(orjson.dumps(records))
    assert review(other, "--import", str(file), "--format", "argilla") == 0
    found = effects(other)
    assert found[IDS[1], "u1"] == ("reject", "wrong\u2028sum", {})
    assert found[IDS[2], "u1"] == (
        "accept",
        "",
        {"input": "d", "response": "Better."},
    )
    assert {name for _, name in found} == {"u1"}
    # Argilla does not tell when somebody answered; a second import adds nothing.
    capsys.readouterr()
    assert review(other, "--import", str(file), "--format", "argilla") == 0
    assert "0 decisions added" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "form", "match"),
    [
        ("{}", "label-studio", "is not a list, as label-studio exports it"),
        ("no", "argilla", "is not valid JSON"),
        ('[{"data": {"id": "a"}}]', "label-studio", "entry 1: not as label-studio"),
        ('[{"id": "a", "fields": {}}]', "argilla", "entry 1: not as argilla"),
        (
            '[{"id": "a", "responses": {"decision": [{"value": "yes", "user_id": 1}]}}]',
            "argilla",
            "entry 1: not a decision: decision: Input should be",
        ),
        ("no\n", "jsonl", "f.json:1: not valid JSON"),
    ],
)
def test_a_file_of_another_kind_is_refused_and_adds_nothing(
    run_store, tmp_path, capsys, content, form, match
):
    file = tmp_path / "f.json"
    file.write_text(content)
    assert review(run_store, "--import", str(file), "--format", form) == 2
    assert match in capsys.readouterr().err
    assert read_own_decisions(run_store) == []


def test_a_missing_file_is_named(run_store, capsys):
    for form in ("jsonl", "argilla"):
        assert review(run_store, "--import", "/none.json", "--format", form) == 2
        assert "--import: " in capsys.readouterr().err
