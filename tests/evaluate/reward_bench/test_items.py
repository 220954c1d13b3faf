"""Files of RewardBench: what is read, and what an error says."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bezoar_ray.errors import RecipeError
from bezoar_ray.evaluate.reward_bench.items import Version, load_items
from bezoar_ray.evaluate.reward_bench.protocol import ScoredItem, summarize
from bezoar_ray.recipe import SourceSection

PAIR = {
    "id": 7,
    "prompt": "Add 2 and 2.",
    "chosen": "    4\r\n",
    "chosen_model": "a",
    "rejected": "5",
    "rejected_model": "b",
    "subset": "math-prm",
}
BEST_OF_4 = {
    "id": "12",
    "prompt": "Name a prime.",
    "chosen": ["7"],
    "rejected": ["4", "6", "8"],
    "num_correct": 1,
    "num_incorrect": 3,
    "total_completions": 4,
    "models": ["a", "b", "c", "d"],
    "subset": "Math",
    "additional_metadata": None,
}
TIED = BEST_OF_4 | {
    "id": "tied:3",
    "subset": "Ties",
    "chosen": ["2", "3"],
    "rejected": ["4"],
    "num_correct": 2,
}
REF = TIED | {"id": "ref:3", "chosen": ["2"], "num_correct": 1}


def write(folder: Path, *rows: dict) -> SourceSection:
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceSection(source=str(path))


def error(folder: Path, version: Version, *rows: dict) -> str:
    with pytest.raises(RecipeError) as raised:
        load_items(write(folder, *rows), version)
    return str(raised.value)


def test_version_1_has_a_chosen_and_a_rejected_answer(tmp_path):
    path = tmp_path / "filtered.parquet"
    pq.write_table(pa.Table.from_pylist([PAIR]), path)
    (item,) = load_items(SourceSection(source=str(path)), "one")
    assert (item.id, item.subset, item.right) == ("7", "math-prm", 1)
    assert item.prompt == [{"role": "user", "content": "Add 2 and 2."}]
    # White space stays, since the answers of `hep-*` begin with an indentation.
    assert item.answers == ("    4\n", "5")


def test_a_prompt_of_version_1_may_be_a_conversation(tmp_path):
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Add 2 and 2."},
    ]
    rows = PAIR | {"prompt": turns}, PAIR | {"prompt": ["Add."]}
    conversation, single = load_items(write(tmp_path, *rows), "one")
    assert conversation.prompt == turns
    assert single.prompt == [{"role": "user", "content": "Add."}]
    message = error(tmp_path, "one", PAIR | {"prompt": turns[:2]})
    assert "`prompt` ends with a turn of the assistant" in message


def test_version_2_has_the_right_answers_first(tmp_path):
    best, tied, ref = load_items(write(tmp_path, BEST_OF_4, TIED, REF), "two")
    assert best.answers == ("7", "4", "6", "8")
    assert best.right == 1
    assert (tied.answers, tied.right) == (("2", "3", "4"), 2)
    assert (tied.ties_kind, tied.ties_prompt) == ("tied", "3")
    assert (ref.ties_kind, ref.ties_prompt) == ("ref", "3")


def test_a_limit_counts_the_items_of_each_subset(tmp_path):
    """The rows are sorted by subset, so the first ones of the file would be of one."""
    rows = [BEST_OF_4 | {"id": str(number)} for number in range(3)]
    rows += [BEST_OF_4 | {"id": str(number), "subset": "Focus"} for number in range(3)]
    rows += [REF | {"id": f"ref:{number}"} for number in range(3)]
    rows += [TIED | {"id": f"tied:{number}"} for number in range(3)]
    items = load_items(write(tmp_path, *rows), "two", limit=2)
    assert [(item.subset, item.id) for item in items] == [
        ("Math", "0"),
        ("Math", "1"),
        ("Focus", "0"),
        ("Focus", "1"),
        ("Ties", "ref:0"),
        ("Ties", "ref:1"),
        ("Ties", "tied:0"),
        ("Ties", "tied:1"),
    ]


@pytest.mark.parametrize(
    ("version", "change", "expected"),
    [
        ("one", {"chosen": ""}, "empty `chosen`"),
        ("one", {"rejected": None}, "`rejected` holds None, not text"),
        ("one", {"prompt": " "}, "empty `prompt`"),
        ("one", {"subset": None}, "empty `subset`"),
        ("one", {"chosen": ["4"]}, "Give the file as evaluate.reward_bench.two"),
        ("two", {"chosen": []}, "`chosen` is [], not a list of answers"),
        ("two", {"rejected": "4"}, "`rejected` is '4', not a list of answers"),
        ("two", {"rejected": ["4", ""]}, "empty `rejected`"),
        ("two", {"num_correct": 2}, "`num_correct` is 2, and `chosen` has 1 answers"),
        (
            "two",
            {"chosen": ["5", "7"], "num_correct": 2},
            "`chosen` has 2 answers in the subset 'Math'",
        ),
        ("two", {"subset": "ties", "id": "3"}, "'3' of Ties has another id than `ref:"),
        ("two", {"subset": "Ties", "id": "tied:3"}, "'tied:3' of Ties has one right"),
    ],
)
def test_a_malformed_row_is_named_with_file_line_and_column(
    tmp_path, version, change, expected
):
    good = PAIR if version == "one" else BEST_OF_4
    message = error(tmp_path, version, good, good | change)
    assert message.startswith(f"evaluate.reward_bench.{version}: ")
    assert "items.jsonl" in message
    assert expected in message
    if "Ties" not in expected:
        assert "items.jsonl:2: " in message


def test_other_columns_are_named_with_those_that_are_needed(tmp_path):
    message = error(tmp_path, "one", {"instruction": "?", "output": "!"})
    assert "no `id`. The columns are instruction, output; needed are id, prompt" in (
        message
    )
    message = error(tmp_path, "two", PAIR)
    assert "as in RewardBench 1. Give the file as evaluate.reward_bench.one" in message


def test_an_item_of_ties_that_is_there_twice_is_named(tmp_path):
    assert "'ref:3' of Ties is there twice" in error(tmp_path, "two", REF, TIED, REF)


def test_an_empty_file_and_a_broken_line_are_errors(tmp_path):
    assert "has no rows" in error(tmp_path, "one")
    path = tmp_path / "broken.jsonl"
    path.write_text(json.dumps(PAIR) + "\n{")
    with pytest.raises(RecipeError, match="broken.jsonl:2: not valid JSON"):
        load_items(SourceSection(source=str(path)), "one")


def test_the_embedded_files_have_every_section():
    versions: dict[Version, int] = {"one": 160, "two": 120}
    for version, count in versions.items():
        items = load_items(SourceSection(source="tiny"), version)
        assert len(items) == count
        scored = [ScoredItem(item, range(len(item.answers), 0, -1)) for item in items]
        # The right answers are first, so descending scores are right everywhere.
        summary = summarize(version, scored, left_out=0)
        assert "other" not in summary["sections"]
        assert all(
            section["score"] == 1.0
            for name, section in summary["sections"].items()
            if name != "Ties"
        )
        assert summary["overall"] > 0.9
