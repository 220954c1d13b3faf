"""The items as tokens: each answer after its prompt, by the recipe's chat template.

Models get these ids and never a text, which a server would begin with a second
beginning-of-sequence token.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING

from bezoar_ray.evaluate.reward_bench.items import BenchItem
from bezoar_ray.llm.chat_tokens import answer_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenizedAnswer:
    """One answer to a prompt."""

    ids: list[int]
    """The conversation up to the answer's end, from which a reward model reads. A
    template may write more after it."""
    answer: slice
    """Which of the ids are the answer's, its end included."""


def tokenize(
    items: Iterable[BenchItem], tokenizer: "PreTrainedTokenizerBase"
) -> list[list[TokenizedAnswer]]:
    """Tokenize the answers of each item.

    A token may span the end of the prompt and the beginning of one answer. Such a token
    belongs to that answer, and so do the tokens in its place to the others: all answers
    of an item begin at the same token.
    """
    tokenized = []
    for item in items:
        encoded = [answer_tokens(tokenizer, item.prompt, text) for text in item.answers]
        all_ids = [ids for ids, _ in encoded]
        begin = min(answer.start for _, answer in encoded)
        begin = min(begin, len(commonprefix(all_ids)))
        answers = []
        for ids, answer in encoded:
            end = answer.stop
            answers.append(TokenizedAnswer(ids[:end], slice(begin, end)))
        tokenized.append(answers)
    return tokenized
