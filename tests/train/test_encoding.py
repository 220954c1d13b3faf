"""What is in the loss: the answers with their end mark, and nothing else."""

from typing import Any

from bezoar_ray.data.schema import Sample
from bezoar_ray.recipe import Recipe
from bezoar_ray.train import encoding
from bezoar_ray.train.tokenizer import load_tokenizer

TALK = [
    {"role": "user", "content": "What colour is animal1?"},
    {"role": "assistant", "content": "Green."},
    {"role": "user", "content": "And animal2?"},
    {"role": "assistant", "content": "Blue."},
]


def trained(tokenizer, row: dict[str, list[int]]) -> str:
    return tokenizer.decode(
        [label for label in row["labels"] if label != encoding.IGNORED]
    )


def test_only_answers_and_their_end_are_trained(recipe: Recipe) -> None:
    tokenizer = load_tokenizer(recipe)
    row = encoding.encode(tokenizer, TALK)
    assert trained(tokenizer, row) == "Green.</s>Blue.</s>"
    text = tokenizer.decode(row["input_ids"])
    assert text.startswith("<s>### System:\n") and text.endswith(
        "### Response:\nBlue.</s>"
    )


def test_the_last_answer_alone_is_scored(recipe: Recipe) -> None:
    tokenizer = load_tokenizer(recipe)
    row = encoding.last_answer(tokenizer, TALK[:3], "Blue.")
    assert trained(tokenizer, row) == "Blue.</s>"
    assert row["input_ids"] == encoding.encode(tokenizer, TALK)["input_ids"]


def test_an_orca_row_brings_its_own_system_message(recipe: Recipe) -> None:
    tokenizer = load_tokenizer(recipe)
    sample = Sample(
        "1",
        "orca",
        "flan",
        system="Be brief.",
        instruction="Add.",
        input="2 and 3",
        response="5",
    )
    text = tokenizer.decode(
        encoding.encode(tokenizer, sample.conversation())["input_ids"]
    )
    assert (
        "### System:\nBe brief.\n\n### Instruction:\nAdd.\n\nInput:\n2 and 3\n\n### Response:\n5</s>"
        in text
    )


def sample(response: str = "Five.") -> dict[str, Any]:
    return Sample(
        "1", "lamini", "x", instruction="Add 2 and 3.", response=response
    ).to_row()


def test_a_row_that_is_too_long_is_left_out_not_cut(recipe: Recipe) -> None:
    tokenizer = load_tokenizer(recipe)
    length = len(encoding.sample_tokens(tokenizer, sample(), 1000)["input_ids"])
    assert encoding.sample_tokens(tokenizer, sample(), length) != encoding.TOO_LONG
    assert encoding.sample_tokens(tokenizer, sample(), length - 1) == encoding.TOO_LONG


def test_a_row_without_an_answer_is_left_out(recipe: Recipe) -> None:
    assert (
        encoding.sample_tokens(load_tokenizer(recipe), sample(" \n"), 1000)
        == encoding.NO_ANSWER
    )


def pair(chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "id": "1",
        "source": "s",
        "license": "MIT",
        "prompt": TALK[:3],
        "chosen": chosen,
        "rejected": rejected,
    }


def test_a_pair_is_what_its_sides_share_and_their_two_answers(recipe: Recipe) -> None:
    tokenizer = load_tokenizer(recipe)
    found = encoding.pair_tokens(tokenizer, pair("Blue.", "Blueish."), 1000)
    prompt, chosen, rejected = (
        tokenizer.decode(found[name])
        for name in ("prompt_ids", "chosen_ids", "rejected_ids")
    )
    assert prompt.endswith("### Instruction:\nAnd animal2?\n\n### Response:\n")
    assert (chosen, rejected) == ("Blue.</s>", "Blueish.</s>")


def test_a_pair_that_is_too_long_or_no_choice_is_left_out(recipe: Recipe) -> None:
    tokenizer = load_tokenizer(recipe)
    found = encoding.pair_tokens(tokenizer, pair("Blue.", "Red, I think."), 1000)
    longest = len(found["prompt_ids"]) + len(found["rejected_ids"])
    assert (
        encoding.pair_tokens(tokenizer, pair("Blue.", "Red, I think."), longest)
        == found
    )
    assert (
        encoding.pair_tokens(tokenizer, pair("Blue.", "Red, I think."), longest - 1)
        == encoding.TOO_LONG
    )
    assert (
        encoding.pair_tokens(tokenizer, pair("Blue.", "Blue."), 1000) == encoding.EQUAL
    )


def rating(*ratings: float | None) -> dict[str, Any]:
    return {
        "id": "1",
        "source": "s",
        "license": "MIT",
        "prompt": TALK[:3],
        "response": "Blue.",
        "ratings": list(ratings),
    }


def test_a_rated_answer_is_trained_under_its_ratings(recipe: Recipe) -> None:
    tokenizer = load_tokenizer(recipe)
    found = encoding.steered_tokens(tokenizer, rating(4, 3, None, 0, 2), 1000)
    assert isinstance(found, dict)
    text = tokenizer.decode(found["input_ids"])
    line = "helpfulness:4,correctness:3,complexity:0,verbosity:2"
    assert text.startswith(f"<s>### System:\n{line}\n\n### Instruction:\nWhat")
    # The first answer of the conversation may have other ratings.
    assert trained(tokenizer, found) == "Blue.</s>"


def test_a_rated_answer_that_is_too_long_or_teaches_nothing_is_left_out(
    recipe: Recipe,
) -> None:
    tokenizer = load_tokenizer(recipe)
    rated = rating(4, 3, 4, 0, 2)
    found = encoding.steered_tokens(tokenizer, rated, 1000)
    assert isinstance(found, dict)
    length = len(found["input_ids"])
    assert encoding.steered_tokens(tokenizer, rated, length) == found
    too_long = encoding.steered_tokens(tokenizer, rated, length - 1)
    assert too_long == encoding.TOO_LONG
    unrated = rating(None, None, None, None, None)
    assert encoding.steered_tokens(tokenizer, unrated, 1000) == encoding.NO_RATING
    empty = rated | {"response": " \n"}
    assert encoding.steered_tokens(tokenizer, empty, 1000) == encoding.NO_ANSWER
