"""What is in the loss: the answers with their end mark, and nothing else."""

from bezoar_ray.recipe import Recipe
from bezoar_ray.rows import Sample
from bezoar_ray.train import data
from bezoar_ray.train.tokenizer import load_tokenizer

TALK = [
    {"role": "user", "content": "What colour is animal1?"},
    {"role": "assistant", "content": "Green."},
    {"role": "user", "content": "And animal2?"},
    {"role": "assistant", "content": "Blue."},
]


def trained(tokenizer, row: dict[str, list[int]]) -> str:
    return tokenizer.decode([label for label in row["labels"] if label != data.IGNORED])


def test_only_answers_and_their_end_are_trained(recipe: Recipe) -> None:
    tokenizer = load_tokenizer(recipe)
    row = data.encode(tokenizer, TALK)
    assert trained(tokenizer, row) == "Green.</s>Blue.</s>"
    text = tokenizer.decode(row["input_ids"])
    assert text.startswith("<s>### System:\n") and text.endswith("### Response:\nBlue.</s>")


def test_the_last_answer_alone_is_scored(recipe: Recipe) -> None:
    tokenizer = load_tokenizer(recipe)
    row = data.last_answer(tokenizer, TALK[:3], "Blue.")
    assert trained(tokenizer, row) == "Blue.</s>"
    assert row["input_ids"] == data.encode(tokenizer, TALK)["input_ids"]


def test_an_orca_row_brings_its_own_system_message(recipe: Recipe) -> None:
    tokenizer = load_tokenizer(recipe)
    sample = Sample("1", "orca", "flan", system="Be brief.", instruction="Add.", input="2 and 3", response="5")
    text = tokenizer.decode(data.encode(tokenizer, data.conversation(sample))["input_ids"])
    assert "### System:\nBe brief.\n\n### Instruction:\nAdd.\n\nInput:\n2 and 3\n\n### Response:\n5</s>" in text


def test_a_row_that_is_too_long_is_left_out_not_cut() -> None:
    short, long = {"input_ids": [1] * 4}, {"input_ids": [1] * 5}
    assert data.fitting([short, long], 4) == [short]
