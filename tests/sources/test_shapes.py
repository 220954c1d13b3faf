"""What each shape of row becomes, and what is said of one that is malformed."""

import pytest

from bezoar_ray.sources import dolly, flan, hh_rlhf
from bezoar_ray.sources.raw import Origin

ORIGIN = Origin("folder/rows.jsonl", 7, "MIT")
QUERY = {"inputs": "2 + 2?", "targets": "4", "task_source": "P3", "task_name": "sums", "template_type": "zs_noopt"}


def test_a_dolly_row_loses_its_citation_marks():
    row = {"instruction": "When?", "context": "In 1990.[42] Or[3][4] so.", "response": "1990", "category": "closed_qa"}
    seed = dolly.seed(row, ORIGIN)
    assert seed.input == "In 1990. Or so."
    assert (seed.source, seed.license, seed.category) == ("folder/rows.jsonl", "MIT", "closed_qa")
    assert seed.task == "When?\n\nInput:\nIn 1990. Or so."


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": "x"}, "no `instruction`"),
        ({"instruction": "  "}, "empty `instruction`"),
        ({"instruction": 3}, "`instruction` holds int"),
    ],
)
def test_a_malformed_dolly_row_says_what_is_wrong(row, message):
    with pytest.raises(ValueError, match=message):
        dolly.seed(row, ORIGIN)


@pytest.mark.parametrize(
    ("found", "name"), [("P3", "T0"), ("NIv2", "NIV2"), ("Flan2021", "Flan2021"), ("CoT", "CoT"), ("Dialog", "Dialog")]
)
def test_flan_sub_mixtures_get_the_papers_names(found, name):
    seed = flan.seed(QUERY | {"task_source": found}, ORIGIN)
    assert (seed.task_source, seed.instruction, seed.response) == (name, "2 + 2?", "4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ""}, "empty `targets`"),
        ({"targets": None}, "empty `targets`"),
        ({"task_source": "Alpaca"}, "'Alpaca'"),
        ({"template_type": "zs"}, "'zs'"),
    ],
)
def test_a_malformed_flan_row_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        flan.seed(QUERY | change, ORIGIN)


def test_a_transcript_becomes_a_prompt_and_two_answers():
    start = "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: Two\n\nlines?\n\nAssistant:"
    pair = hh_rlhf.pair({"chosen": start + " Yes.", "rejected": start + " No."}, ORIGIN)
    assert pair.prompt == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Two\n\nlines?"},
    ]
    assert (pair.chosen, pair.rejected) == ("Yes.", "No.")
    assert pair.conversation()[-1] == {"role": "assistant", "content": "Yes."}


def test_a_mark_within_a_paragraph_is_text():
    turns = hh_rlhf.messages("\n\nHuman: Write 'Assistant: hi'\n\nAssistant: Human: no")
    assert [turn["content"] for turn in turns] == ["Write 'Assistant: hi'", "Human: no"]


ASKED = "\n\nHuman: Q\n\nAssistant:"


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        (ASKED + " a", ASKED + " a ", "identical"),
        (ASKED + " a", ASKED, "`rejected`: a turn is empty"),
        (ASKED + " a", "\n\nHuman: other\n\nAssistant: b", "differ before"),
        ("hello", ASKED + " b", "`chosen`: it does not begin"),
        (ASKED + " a\n\nHuman: more", ASKED + " b", "does not end with an Assistant turn"),
        (ASKED + " a\n\nAssistant: b", ASKED + " b", "two turns of one side"),
        ("\n\nAssistant: a", "\n\nAssistant: b", "answers a Human one"),
    ],
)
def test_a_malformed_pair_says_what_is_wrong(chosen, rejected, message):
    with pytest.raises(ValueError, match=message):
        hh_rlhf.pair({"chosen": chosen, "rejected": rejected}, ORIGIN)
