"""From rows to tokens with the recipe's chat template; only answers are in the loss."""

from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from bezoar_ray.data.attribute_line import add_goal, rated_goal
from bezoar_ray.data.schema import Pair, Rating, Sample
from bezoar_ray.llm.chat_tokens import answer_ids, answer_tokens, chat_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # torch's label for "not in the loss"

# Why a row is left out; the summary counts rows by these reasons.
TOO_LONG = "longer than max_length"
NO_ANSWER = "without an answer"
EQUAL = "with equal sides"
NO_PREFERENCE = "without a preference"
NO_RATING = "without a rating"

# Token columns, with how often their tokens go through the model.
CONVERSATION = {"input_ids": 1, "labels": 0}
PAIR = {"prompt_ids": 2, "chosen_ids": 1, "rejected_ids": 1}
ANSWER = {"input_ids": 1}
PROMPT = {"prompt_ids": 1, "chosen_ids": 1}

Tokens = dict[str, list[int]]
Values = dict[str, list[float]]


def sample_tokens(
    tokenizer: "PreTrainedTokenizerBase", row: dict[str, Any], longest: int
) -> Tokens | str:
    """Tokenize a sample for sft, or return why the row is left out."""
    sample = Sample.from_row(row)
    if not sample.response.strip():
        return NO_ANSWER
    return _conversation_tokens(tokenizer, sample.conversation(), longest)


def chosen_tokens(
    tokenizer: "PreTrainedTokenizerBase", row: dict[str, Any], longest: int
) -> Tokens | str:
    """Tokenize a pair's chosen side for hh-sft, or return why it is left out."""
    return _conversation_tokens(tokenizer, Pair(**row).conversation(), longest)


def pair_tokens(
    tokenizer: "PreTrainedTokenizerBase", row: dict[str, Any], longest: int
) -> Tokens | str:
    """Tokenize a pair for a preference method, or return why it is left out.

    Returns:
        `prompt_ids`, which both sides begin with, and their ends `chosen_ids` and
        `rejected_ids`; or the reason.
    """
    pair = Pair(**row)
    chosen = last_answer(tokenizer, pair.prompt, pair.chosen)
    rejected = last_answer(tokenizer, pair.prompt, pair.rejected)
    chosen_ids = chosen["input_ids"]
    rejected_ids = rejected["input_ids"]
    if chosen_ids == rejected_ids:
        return EQUAL
    if max(len(chosen_ids), len(rejected_ids)) > longest:
        return TOO_LONG
    # A token may span the end of the prompt and the beginning of one answer.
    # Such a token belongs to the answers.
    shared = len(commonprefix([chosen_ids, rejected_ids]))
    begin = min(
        _first_labelled(chosen["labels"]),
        _first_labelled(rejected["labels"]),
        shared,
    )
    return {
        "prompt_ids": chosen_ids[:begin],
        "chosen_ids": chosen_ids[begin:],
        "rejected_ids": rejected_ids[begin:],
    }


def prompt_tokens(
    tokenizer: "PreTrainedTokenizerBase", row: dict[str, Any], longest: int
) -> Tokens | str:
    """Tokenize a pair's prompt for ppo, or return why the row is left out.

    Returns:
        `prompt_ids`, and `chosen_ids`: the chosen answer, with the token that ends it,
        of which an episode may begin with a prefix; or the reason.
    """
    pair = Pair(**row)
    ids, answer = answer_tokens(tokenizer, pair.prompt, pair.chosen)
    if answer.start == answer.stop:
        return NO_ANSWER
    if answer.stop > longest:
        return TOO_LONG
    return {"prompt_ids": ids[: answer.start], "chosen_ids": ids[answer]}


def rating_tokens(
    tokenizer: "PreTrainedTokenizerBase", row: dict[str, Any], longest: int
) -> Values | str:
    """Tokenize a rated answer for rm, or return why the row is left out.

    Returns:
        `input_ids`, which end with the answer, and `labels`: the ratings in the order
        of `ATTRIBUTES`, with -100 for a missing one; or the reason.
    """
    rating = Rating(**row)
    ids = answer_ids(tokenizer, rating.prompt, rating.response)
    if len(ids) > longest:
        return TOO_LONG
    ratings = [float(IGNORED) if r is None else r for r in rating.ratings]
    return {"input_ids": [*ids], "labels": ratings}


def steered_tokens(
    tokenizer: "PreTrainedTokenizerBase", row: dict[str, Any], longest: int
) -> Tokens | str:
    """Tokenize a rated answer for SteerLM 1, or return why the row is left out.

    The system message states the ratings. Only the rated answer is in the loss: earlier
    answers of the prompt may have other ratings.

    Returns:
        `input_ids` and `labels` of the conversation, or the reason.
    """
    rating = Rating(**row)
    goal = rated_goal(rating)
    if not goal:
        return NO_RATING
    if not rating.response.strip():
        return NO_ANSWER
    tokens = last_answer(tokenizer, add_goal(rating.prompt, goal), rating.response)
    if len(tokens["input_ids"]) > longest:
        return TOO_LONG
    return tokens


def preference_tokens(
    tokenizer: "PreTrainedTokenizerBase", row: dict[str, Any], longest: int
) -> Values | str:
    """Tokenize a preference for rm, or return why it is left out.

    Returns:
        As `pair_tokens`, where both sides end with the answer, and the `strength`.
    """
    strength = row.get("strength", 1.0)
    if not strength:
        return NO_PREFERENCE
    chosen = answer_ids(tokenizer, row["prompt"], row["chosen"])
    rejected = answer_ids(tokenizer, row["prompt"], row["rejected"])
    if chosen == rejected:
        return EQUAL
    if max(len(chosen), len(rejected)) > longest:
        return TOO_LONG
    # Each side keeps a token, from which the head reads.
    shared = len(commonprefix([chosen[:-1], rejected[:-1]]))
    return {
        "prompt_ids": [*chosen[:shared]],
        "chosen_ids": [*chosen[shared:]],
        "rejected_ids": [*rejected[shared:]],
        "strength": [strength],
    }


def encode(
    tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]]
) -> Tokens:
    """Return `input_ids` and `labels` of one conversation.

    Only tokens within the template's generation marks are labelled.
    """
    encoded = chat_tokens(tokenizer, messages, return_assistant_tokens_mask=True)
    ids = encoded["input_ids"]
    answer_mask = encoded["assistant_masks"]
    labels = [
        token if in_answer else IGNORED
        for token, in_answer in zip(ids, answer_mask, strict=True)
    ]
    return {"input_ids": ids, "labels": labels}


def last_answer(
    tokenizer: "PreTrainedTokenizerBase", prompt: list[dict[str, str]], answer: str
) -> Tokens:
    """Encode a prompt and its answer; only the answer is labelled.

    The prompt may hold earlier answers, which `encode` would label, too.
    """
    ids, answer_slice = answer_tokens(tokenizer, prompt, answer)
    labels = [IGNORED] * len(ids)
    labels[answer_slice] = ids[answer_slice]
    return {"input_ids": ids, "labels": labels}


def _conversation_tokens(
    tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], longest: int
) -> Tokens | str:
    tokens = encode(tokenizer, messages)
    if all(label == IGNORED for label in tokens["labels"]):
        return NO_ANSWER
    # A truncated answer would teach the model not to end, so the row is not cut.
    if len(tokens["input_ids"]) > longest:
        return TOO_LONG
    return tokens


def _first_labelled(labels: list[int]) -> int:
    return next(index for index, label in enumerate(labels) if label != IGNORED)
