"""From rows to tokens: the recipe's chat template, with the answers alone in the loss."""

from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from bezoar_ray.data.schema import Pair, Sample
from bezoar_ray.llm.chat_tokens import chat_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # torch's label for "not in the loss"
TOO_LONG, NO_ANSWER, EQUAL = (
    "longer than max_length",
    "without an answer",
    "with equal sides",
)

# Columns, with how often their tokens go through the model.
CONVERSATION = {"input_ids": 1, "labels": 0}
PAIR = {"prompt_ids": 2, "chosen_ids": 1, "rejected_ids": 1}

Tokens = dict[str, list[int]]


def sample_tokens(
    tokenizer: "PreTrainedTokenizerBase", row: dict[str, Any], longest: int
) -> Tokens | str:
    """A sample as sft trains on it, or why it is left out: a truncated answer would teach not to end."""
    sample = Sample.from_row(row)
    return (
        _conversation(tokenizer, conversation(sample), longest)
        if sample.response.strip()
        else NO_ANSWER
    )


def chosen_tokens(
    tokenizer: "PreTrainedTokenizerBase", row: dict[str, Any], longest: int
) -> Tokens | str:
    """The chosen conversation of a pair as hh-sft trains on it, or why it is left out."""
    return _conversation(tokenizer, Pair(**row).conversation(), longest)


def pair_tokens(
    tokenizer: "PreTrainedTokenizerBase", row: dict[str, Any], longest: int
) -> Tokens | str:
    """A pair as preference methods train on it: what both sides begin with, and the two ends; or why it is left out."""
    pair = Pair(**row)
    chosen, rejected = (
        last_answer(tokenizer, pair.prompt, answer)
        for answer in (pair.chosen, pair.rejected)
    )
    sides = chosen["input_ids"], rejected["input_ids"]
    if sides[0] == sides[1]:
        return EQUAL
    if max(map(len, sides)) > longest:
        return TOO_LONG
    # A token may hold the end of the prompt and the beginning of one answer: then it belongs to the answers.
    begin = min(
        _begin(chosen["labels"]), _begin(rejected["labels"]), len(commonprefix(sides))
    )
    return {
        "prompt_ids": sides[0][:begin],
        "chosen_ids": sides[0][begin:],
        "rejected_ids": sides[1][begin:],
    }


def conversation(sample: Sample) -> list[dict[str, str]]:
    """The messages that a sample trains on; without a system message the template puts its own."""
    system = [{"role": "system", "content": sample.system}] if sample.system else []
    last = [
        {"role": "user", "content": sample.task},
        {"role": "assistant", "content": sample.response},
    ]
    return [*system, *sample.history, *last]


def encode(
    tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]]
) -> Tokens:
    """`input_ids` and `labels` of one conversation; labels are ignored outside the template's generation marks."""
    coded = chat_tokens(tokenizer, messages, return_assistant_tokens_mask=True)
    ids, marks = coded["input_ids"], coded["assistant_masks"]
    return {
        "input_ids": ids,
        "labels": [i if mark else IGNORED for i, mark in zip(ids, marks, strict=True)],
    }


def last_answer(
    tokenizer: "PreTrainedTokenizerBase", prompt: list[dict[str, str]], answer: str
) -> Tokens:
    """As `encode`, with the last answer alone in the labels."""
    coded = encode(tokenizer, [*prompt, {"role": "assistant", "content": answer}])
    labels = coded["labels"]
    end = max((i for i, label in enumerate(labels) if label != IGNORED), default=-1)
    begin = max((i + 1 for i in range(end) if labels[i] == IGNORED), default=0)
    return {**coded, "labels": [IGNORED] * begin + labels[begin:]}


def _conversation(
    tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], longest: int
) -> Tokens | str:
    tokens = encode(tokenizer, messages)
    if all(label == IGNORED for label in tokens["labels"]):
        return NO_ANSWER
    return tokens if len(tokens["input_ids"]) <= longest else TOO_LONG


def _begin(labels: list[int]) -> int:
    return next(i for i, label in enumerate(labels) if label != IGNORED)
