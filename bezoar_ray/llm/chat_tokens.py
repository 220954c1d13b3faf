"""A conversation as token ids, in which nobody but the chat template writes control tokens.

A tokenizer takes `<s>` or `<|im_end|>` for a control token wherever it stands: an answer about HTML would begin or end
in its middle. So control tokens are spelt in two ways, as themselves and by a mark that no text holds. While the
template renders, what a text says is spelt by marks. Then the spellings change places, and a twin of the tokenizer, to
which the marks are the control tokens, encodes what was rendered.
"""

import json
import re
import secrets
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

_FIRST, _FURTHER = 0xF0000, 0x100000  # Unicode's planes for private use
_PLANE = 0xFFFE  # characters in one
_RENDERED = ("tools", "documents")  # further options whose texts the template puts in


class ControlTokens:
    """The control tokens of one tokenizer, and their marks."""

    def __init__(self, backend: "Tokenizer"):
        self._backend = backend
        tokens = [
            token.content
            for token in backend.get_added_tokens_decoder().values()
            if token.special
        ]
        self._marks = {
            token: _mark(number, token) for number, token in enumerate(tokens)
        }
        self._other = self._marks | {mark: token for token, mark in self._marks.items()}
        longest_first = sorted(
            self._other, key=len, reverse=True
        )  # as `tokenizers` looks for them
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def swap(self, value: Any) -> Any:
        """The text with control tokens in the other spelling; of lists and dicts, all texts in them."""
        if isinstance(value, str):
            return self._pattern.sub(lambda found: self._other[found[0]], value)
        if isinstance(value, dict):
            return {key: self.swap(item) for key, item in value.items()}
        return (
            [self.swap(item) for item in value]
            if isinstance(value, list | tuple)
            else value
        )

    @cached_property
    def placeholder_tokenizer(self) -> "Tokenizer":
        """The `tokenizers.Tokenizer` with marks in place of its control tokens, and the same ids."""
        from tokenizers import Tokenizer

        tree = json.loads(self._backend.to_str()) | {
            "truncation": None,
            "padding": None,
        }
        for token in tree["added_tokens"]:
            if token["special"]:
                token["content"] = self._marks[token["content"]]
        tree["model"] = self._respelt(tree["model"])
        return Tokenizer.from_str(json.dumps(tree))

    def _respelt(self, model: dict[str, Any]) -> dict[str, Any]:
        """No text can become a control token, also where the model's own vocabulary holds it, or merges lead to it."""
        marks, vocabulary = self._marks, model["vocab"]
        if isinstance(vocabulary, dict):
            vocabulary = {
                marks.get(piece, piece): number for piece, number in vocabulary.items()
            }
        else:  # of Unigram
            vocabulary = [
                [marks.get(piece, piece), score] for piece, score in vocabulary
            ]
        found = model | {"vocab": vocabulary}
        if "merges" in model:
            found["merges"] = [
                [a, b] for a, b in model["merges"] if not marks.keys() & {a, b, a + b}
            ]
        if model.get("unk_token"):
            found["unk_token"] = marks.get(model["unk_token"], model["unk_token"])
        return found


def _mark(number: int, token: str) -> str:
    """As long as the token, so that places in a text stay; drawn at random, so that nobody can write it."""
    return chr(_FIRST + number) + "".join(
        chr(_FURTHER + secrets.randbelow(_PLANE)) for _ in token[1:]
    )


def control_tokens_of(tokenizer: "PreTrainedTokenizerBase") -> ControlTokens:
    """The spelling of a transformers tokenizer, which has to be a fast one."""
    return _control_tokens(tokenizer.backend_tokenizer)


_control_tokens = lru_cache(maxsize=8)(ControlTokens)


def chat_tokens(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict[str, str]],
    **options: object,
) -> dict[str, list[int]]:
    """As `tokenizer.apply_chat_template` with the same options, but for what texts say: `input_ids`, and
    `assistant_masks` with `return_assistant_tokens_mask`."""
    return _apart(tokenizer, messages, options) or tokenizer.apply_chat_template(
        messages, return_dict=True, **options
    )


def chat_ids(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict[str, str]],
    **options: object,
) -> list[int]:
    """As `chat_tokens`, for tokenizers that know nothing but ids, too, as those of mistral_common."""
    if found := _apart(tokenizer, messages, options):
        return found["input_ids"]
    return tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=False, **options
    )


def _apart(
    tokenizer: "PreTrainedTokenizerBase", messages: object, options: dict[str, object]
) -> dict[str, list[int]] | None:
    """None where no text spells a control token, or the tokenizer is slow or renders in its own way."""
    chosen = options.get("chat_template") or getattr(tokenizer, "chat_template", None)
    if not (chosen and getattr(tokenizer, "backend_tokenizer", None)):
        return None
    from transformers.utils.chat_template_utils import render_jinja_template

    texts = {"conversations": [messages]} | {
        name: options[name] for name in _RENDERED if options.get(name)
    }
    control_tokens = control_tokens_of(tokenizer)
    hidden = control_tokens.swap(texts)
    if hidden == texts:
        return None
    template = tokenizer.get_chat_template(
        options.get("chat_template"), options.get("tools")
    )
    settings = (
        tokenizer.special_tokens_map | options | hidden | {"chat_template": template}
    )
    (rendered,), spans = render_jinja_template(**settings)
    coded = control_tokens.placeholder_tokenizer.encode(
        control_tokens.swap(rendered), add_special_tokens=False
    )
    masks = {"assistant_masks": _mask(coded, spans[0])} if spans else {}
    return {"input_ids": coded.ids, **masks}


def _mask(coded: "Encoding", spans: list[tuple[int, int]]) -> list[int]:
    """1 for each token of the spans of characters, as transformers counts them."""
    mask = [0] * len(coded.ids)
    for begin, end in spans:
        first, last = coded.char_to_token(begin), coded.char_to_token(end - 1)
        if first is None:
            break
        stop = last + 1 if last else len(mask)
        mask[first:stop] = [1] * (stop - first)
    return mask


def protect_chat_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make `apply_chat_template` of the tokenizer that vLLM's server asks give token ids where a text spells a control
    token; vLLM takes ids as well as a text, which it would encode as a whole."""
    plain = tokenizer.apply_chat_template

    def apply_chat_template(conversation: object, **options: object) -> object:
        found = _apart(tokenizer, conversation, options)
        if found is None:
            return plain(conversation=conversation, **options)
        return found if options.get("return_dict") else found["input_ids"]

    tokenizer.apply_chat_template = apply_chat_template
