"""Rows of one's own, under the names that common data sets give their fields."""

import json

import pytest

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import SourceSection, load_recipe
from bezoar_ray.sources import read_own


@pytest.fixture
def file(tmp_path):
    rows = [
        {
            "instruction": "Add.",
            "input": "2 and 3",
            "output": "5",
            "system": "Be brief.",
        },
        {"instruction": "Name a colour.", "context": "", "response": "Blue."},
        {"instruction": "No answer.", "response": " "},
        {"prompt": "no instruction"},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_alpacas_and_dollys_names_are_read(file):
    found = read_own(SourceSection(source=str(file), license="MIT"), "mine")
    alpaca, dolly = found.rows
    assert (alpaca.system, alpaca.task, alpaca.response) == (
        "Be brief.",
        "Add.\n\nInput:\n2 and 3",
        "5",
    )
    assert (dolly.task, dolly.response, dolly.scheme, dolly.status) == (
        "Name a colour.",
        "Blue.",
        "mine",
        "accepted",
    )
    assert dolly.seed_licenses == ["MIT"] and alpaca.id != dolly.id


def test_prompts_with_completions_are_read_as_trl_has_them(tmp_path):
    messages = [{"role": role, "content": said} for role, said in TURNS]
    rows = [
        {"prompt": "POST: It rained.\n\nTL;DR:", "completion": " Rain."},
        {"prompt": messages[:-1], "completion": messages[-1:]},
        {"prompt": "Say something.", "completion": [{"role": "assistant"}]},
        {"completion": "An answer to nothing."},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_own(SourceSection(source=str(path)), "mine")
    single, conversation = found.rows
    assert (single.task, single.response) == ("POST: It rained.\n\nTL;DR:", "Rain.")
    assert conversation.response == TURNS[-1][1]
    assert conversation.instruction == TURNS[-2][1]
    assert [line.rpartition(":")[0][-1] for line in found.failed] == ["3", "4"]


def test_malformed_rows_are_named_and_left_out(file):
    failed = read_own(SourceSection(source=str(file)), "mine").failed
    assert [line.rpartition("/")[2] for line in failed] == [
        "mine.jsonl:3: empty `response`",
        "mine.jsonl:4: no `instruction`",
    ]


def test_a_missing_file_is_named_with_its_field(tmp_path):
    with pytest.raises(RecipeError, match=r"sft.data.mine: no file"):
        read_own(SourceSection(source=str(tmp_path / "none.jsonl")), "mine")


def test_they_are_trained_on_last_or_where_the_order_says():
    data = "sft.data={mine: {source: a.jsonl}}"
    assert load_recipe("tiny", [data]).sft_order == (
        "lamini",
        "orca",
        "evol_instruct",
        "mine",
    )
    assert load_recipe("tiny", [data, "sft.order=[mine, orca]"]).sft_order == (
        "mine",
        "orca",
    )
    with pytest.raises(RecipeError, match="sft.data.orca: the name of another scheme"):
        load_recipe("tiny", ["sft.data={orca: {source: a.jsonl}}"])


def test_their_licence_counts():
    from bezoar_ray.licenses import commercial_use

    found = commercial_use(
        load_recipe(
            "tiny", ["sft.data={mine: {source: a.jsonl, license: CC-BY-NC-4.0}}"]
        )
    )
    assert found["verdict"] == "no" and "custom rows a.jsonl" in found["because"][0]


TURNS = [
    ("system", "Be kind."),
    ("user", "One?"),
    ("assistant", "1."),
    ("user", "Two?"),
    ("assistant", "2."),
]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": role, "content": said} for role, said in TURNS]},
        {
            "conversations": [
                {
                    "from": {"user": "human", "assistant": "gpt"}.get(role, role),
                    "value": said,
                }
                for role, said in TURNS
            ]
        },
        {
            "messages": [{"role": role, "content": said} for role, said in TURNS[1:]],
            "system": "Be kind.",
        },
        {
            "messages": [
                {"role": role, "content": [{"type": "text", "text": said}]}
                for role, said in TURNS
            ]
        },
        {
            "messages": [
                {"role": role, "content": said}
                for role, said in [*TURNS, ("user", "And?")]
            ]
        },
    ],
)
def test_conversations_of_several_turns_are_read_and_trained_on(row, tmp_path):
    from bezoar_ray.data.schema import Sample, sample_table

    (tmp_path / "mine.jsonl").write_text(json.dumps(row))
    (sample,) = read_own(
        SourceSection(source=str(tmp_path / "mine.jsonl")), "mine"
    ).rows
    (again,) = map(
        Sample.from_row, sample_table([sample]).to_pylist()
    )  # as it lies on disk
    assert again.conversation() == [
        {"role": role, "content": said} for role, said in TURNS
    ]
    assert (sample.instruction, sample.response) == ("Two?", "2.")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "user", "content": "One?"}], "there is no answer"),
        ([{"role": "assistant", "content": "1."}], "there is no answer"),
        (
            [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
            "turns follow each other",
        ),
        (
            [{"role": "user", "content": " "}, {"role": "assistant", "content": "b"}],
            "a turn is empty",
        ),
        ("One? 1.", "does not begin with 'Human:'"),
        ({"a": 1}, "expected a list of messages, found dict"),
    ],
)
def test_a_conversation_that_teaches_nothing_says_why(messages, said, tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps({"messages": messages}))
    (failed,) = read_own(
        SourceSection(source=str(tmp_path / "mine.jsonl")), "mine"
    ).failed
    assert "`messages`" in failed and said in failed


def test_columns_that_hold_nothing_are_passed_over(tmp_path):
    """In a table every row has every column."""
    rows = [
        {"instruction": "Add.", "input": None, "context": "2 and 3", "response": "5"},
        {"instruction": "Add.", "response": None, "output": "5"},
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = read_own(
        SourceSection(source=str(tmp_path / "mine.jsonl")), "mine"
    ).rows
    assert (first.input, first.response, second.response) == ("2 and 3", "5", "5")


def test_an_empty_system_message_is_none(tmp_path):
    turns = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    (tmp_path / "mine.jsonl").write_text(json.dumps({"messages": turns}))
    (sample,) = read_own(
        SourceSection(source=str(tmp_path / "mine.jsonl")), "mine"
    ).rows
    assert (sample.system, sample.instruction, sample.response) == ("", "a", "b")
