"""Preferences with a strength: HelpSteer2-Preference's rows, and pairs in other forms."""

import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bezoar_ray import sources
from bezoar_ray.data.schema import Preference, preference_schema, preference_table
from bezoar_ray.recipe import SourceSection
from bezoar_ray.sources import preferences
from bezoar_ray.sources.record import Origin

ORIGIN = Origin("preference/preference.jsonl.gz", 7, "CC-BY-4.0")
ROW = {
    "split": "train",
    "prompt": "Hello\n<extra_id_1>Assistant\nHi.\n<extra_id_1>User\nWhy?",
    "response_1": "One.",
    "response_2": "Two.",
    "preference_strength": -2,
    "preference_statement": "@Response 1 is better than @Response 2.",
}


def write(path, rows) -> SourceSection:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return SourceSection(source=str(path))


@given(st.integers(-3, 3))
def test_the_sign_says_which_answer_is_better_and_the_rest_how_much(strength):
    found = preferences.preference({**ROW, "preference_strength": strength}, ORIGIN)
    assert found.strength == abs(strength)
    assert {found.chosen, found.rejected} == {"One.", "Two."}
    if strength:
        assert found.chosen == ("One." if strength < 0 else "Two.")
    assert [turn["role"] for turn in found.prompt] == ["user", "assistant", "user"]
    assert found.id == ORIGIN.id("preferences")


def test_a_table_gives_the_preferences_back():
    rows = [preferences.preference(ROW, ORIGIN)]
    table = preference_table(rows)
    assert table.schema == preference_schema()
    assert [Preference(**row) for row in table.to_pylist()] == rows


@pytest.mark.parametrize(
    "row",
    [
        {
            "chosen": "\n\nHuman: Why?\n\nAssistant: One.",
            "rejected": "\n\nHuman: Why?\n\nAssistant: Two.",
        },
        {"prompt": "Why?", "chosen": "One.", "rejected": "Two."},
    ],
)
def test_a_pair_without_a_strength_has_strength_1(row):
    found = preferences.preference(row, ORIGIN)
    assert found.strength == 1
    assert (found.chosen, found.rejected) == ("One.", "Two.")
    assert found.prompt == [{"role": "user", "content": "Why?"}]


def test_rows_of_another_split_are_left_out_without_a_word(tmp_path):
    rows = [ROW, {**ROW, "split": "val", "response_1": "Held out."}, ROW]
    section = write(tmp_path / "preference.jsonl", rows)
    train = sources.read_preferences([section])
    assert [row.chosen for row in train.rows] == ["One.", "One."]
    assert train.failed == []
    for name in ("val", "validation"):
        held_out = section.model_copy(update={"split": name})
        found = sources.read_preferences([held_out])
        assert [row.chosen for row in found.rows] == ["Held out."]
        assert found.failed == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preference_strength": 4}, "is 4, not from -3 .response_1 is much better"),
        ({"preference_strength": None}, "empty `preference_strength`"),
        ({"preference_strength": math.nan}, "empty `preference_strength`"),
        ({"preference_strength": "strong"}, "is 'strong', not a number"),
        ({"response_2": "One."}, "`response_1` and `response_2` are identical"),
        ({"response_1": " "}, "empty `response_1`"),
        ({"prompt": ""}, "empty `prompt`"),
    ],
)
def test_a_malformed_row_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        preferences.preference({**ROW, **change}, ORIGIN)


def test_a_row_in_no_known_form_says_what_is_missing(tmp_path):
    loaded = sources.read_preferences([write(tmp_path / "a.jsonl", [{"prompt": "Q"}])])
    (message,) = loaded.failed
    assert "a.jsonl:1: no `chosen`" in message
