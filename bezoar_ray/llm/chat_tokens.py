"""Turn a conversation into token ids, with control tokens from the chat template only.

A tokenizer takes `<s>` or `<|im_end|>` for a control token wherever it occurs. A text
about HTML would then begin or end a turn in its middle. So each control token gets a
placeholder, which no text can contain:

1. In the texts, control tokens are replaced by their placeholders.
2. The template renders the texts, and writes its own control tokens.
3. Control tokens and placeholders are swapped in the result: the template's tokens are
   now placeholders, and what a text spells is ordinary text again.
4. A copy of the tokenizer, which knows the placeholders as its control tokens, encodes
   it.
"""

import json
import re
import secrets
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

# Characters of Unicode's planes 15 and 16, which are reserved for private use.
_FIRST_CHARACTER = 0xF0000
_OTHER_CHARACTERS = 0x100000
_PLANE_SIZE = 0xFFFE
_OPTIONS_WITH_TEXTS = ("tools", "documents")  # the template renders these, too


class ControlTokens:
    """The control tokens of one tokenizer, with a placeholder for each."""

    def __init__(self, backend: "Tokenizer"):
        self._backend = backend
        tokens = [
            token.content
            for token in backend.get_added_tokens_decoder().values()
            # Added tokens that are not special, such as runs of
            # spaces, are ordinary text.
            if token.special
        ]
        self._placeholders = {
            token: _placeholder(number, token) for number, token in enumerate(tokens)
        }
        originals = {text: token for token, text in self._placeholders.items()}
        self._counterparts = self._placeholders | originals
        # `tokenizers` also looks for the longest token first.
        longest_first = sorted(self._counterparts, key=len, reverse=True)
        matches_nothing = "(?!)"
        self._pattern = re.compile(
            "|".join(map(re.escape, longest_first)) or matches_nothing
        )

    def swap(self, value: Any) -> Any:
        """Swap control tokens and placeholders in all texts of a value."""
        if isinstance(value, str):
            return self._pattern.sub(lambda match: self._counterparts[match[0]], value)
        if isinstance(value, dict):
            return {key: self.swap(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.swap(item) for item in value]
        return value

    @cached_property
    def placeholder_tokenizer(self) -> "Tokenizer":
        """The tokenizer with placeholders as its control tokens, and the same ids."""
        from tokenizers import Tokenizer

        tree = json.loads(self._backend.to_str())
        # tokenizer.json may hold the settings of its last use, which
        # would cut or pad here.
        tree["truncation"] = None
        tree["padding"] = None
        for token in tree["added_tokens"]:
            if token["special"]:
                token["content"] = self._placeholders[token["content"]]
        tree["model"] = self._with_placeholders(tree["model"])
        return Tokenizer.from_str(json.dumps(tree))

    def _with_placeholders(self, model: dict[str, Any]) -> dict[str, Any]:
        """Rename control tokens in a tokenizer's model, so that no text produces one.

        The model's own vocabulary may contain them, and merges may lead to them.
        """
        placeholders = self._placeholders
        renamed = dict(model)
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            renamed["vocab"] = {
                placeholders.get(piece, piece): id for piece, id in vocabulary.items()
            }
        else:  # a Unigram model lists its pieces with their scores
            renamed["vocab"] = [
                [placeholders.get(piece, piece), score] for piece, score in vocabulary
            ]
        if "merges" in model:
            renamed["merges"] = [
                [left, right]
                for left, right in model["merges"]
                if not placeholders.keys() & {left, right, left + right}
            ]
        unknown = model.get("unk_token")
        if unknown:
            renamed["unk_token"] = placeholders.get(unknown, unknown)
        return renamed


def _placeholder(number: int, token: str) -> str:
    """Make the placeholder of a control token.

    It is as long as the token, so that character offsets in a text stay valid. It is
    drawn at random, so that nobody can write it into a text.
    """
    characters = [chr(_FIRST_CHARACTER + number)]
    for _ in token[1:]:
        characters.append(chr(_OTHER_CHARACTERS + secrets.randbelow(_PLANE_SIZE)))
    return "".join(characters)


def control_tokens_of(tokenizer: "PreTrainedTokenizerBase") -> ControlTokens:
    """Return the control tokens of a fast transformers tokenizer."""
    return _control_tokens(tokenizer.backend_tokenizer)


# The copy is made of the tokenizer's whole JSON, so it is made once.
@lru_cache(maxsize=8)
def _control_tokens(backend: "Tokenizer") -> ControlTokens:
    return ControlTokens(backend)


def chat_tokens(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict[str, str]],
    **options: object,
) -> dict[str, list[int]]:
    """Encode a conversation as `tokenizer.apply_chat_template` does.

    It takes the same options. Only control tokens in texts are treated differently.

    Returns:
        `input_ids`, and `assistant_masks` with `return_assistant_tokens_mask`.
    """
    encoded = _encode_with_placeholders(tokenizer, messages, options)
    if encoded is None:
        return tokenizer.apply_chat_template(messages, return_dict=True, **options)
    return encoded


def answer_tokens(
    tokenizer: "PreTrainedTokenizerBase", prompt: list[dict[str, str]], answer: str
) -> tuple[list[int], slice]:
    """Encode a prompt and its answer.

    The template marks all turns of the assistant. The prompt may have some, and the
    last one is the answer.

    Returns:
        The ids of the whole conversation, and which of them are the answer's. The slice
        is empty if the template has no generation marks.
    """
    messages = [*prompt, {"role": "assistant", "content": answer}]
    encoded = chat_tokens(tokenizer, messages, return_assistant_tokens_mask=True)
    mask = encoded["assistant_masks"]
    end = len(mask)
    # Tokens of the template may follow the answer, such as a line break.
    while end > 0 and not mask[end - 1]:
        end -= 1
    begin = end
    while begin > 0 and mask[begin - 1]:
        begin -= 1
    return encoded["input_ids"], slice(begin, end)


def answer_ids(
    tokenizer: "PreTrainedTokenizerBase", prompt: list[dict[str, str]], answer: str
) -> list[int]:
    """Return the tokens of a prompt and its answer, up to the answer's end.

    A template may write more after an answer. A reward model reads the end itself.
    """
    ids, answer_slice = answer_tokens(tokenizer, prompt, answer)
    return ids[: max(1, answer_slice.stop)]


def chat_ids(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict[str, str]],
    **options: object,
) -> list[int]:
    """Encode a conversation as `chat_tokens` does, and return the ids only.

    This also works with tokenizers that return ids only, such as mistral_common's.
    """
    encoded = _encode_with_placeholders(tokenizer, messages, options)
    if encoded is None:
        return tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=False, **options
        )
    return encoded["input_ids"]


def _encode_with_placeholders(
    tokenizer: "PreTrainedTokenizerBase",
    messages: object,
    options: dict[str, object],
) -> dict[str, list[int]] | None:
    """Encode a conversation whose texts spell control tokens.

    Returns:
        As `chat_tokens`. None if no text spells a control token, or if the tokenizer is
        slow or renders conversations in its own way.
    """
    has_template = options.get("chat_template") or getattr(
        tokenizer, "chat_template", None
    )
    if not has_template or not getattr(tokenizer, "backend_tokenizer", None):
        return None
    from transformers.utils.chat_template_utils import render_jinja_template

    texts: dict[str, object] = {"conversations": [messages]}
    for name in _OPTIONS_WITH_TEXTS:
        if options.get(name):
            texts[name] = options[name]
    control_tokens = control_tokens_of(tokenizer)
    swapped_texts = control_tokens.swap(texts)
    # Nearly all conversations: they take transformers' own way, without any change.
    if swapped_texts == texts:
        return None
    template = tokenizer.get_chat_template(
        options.get("chat_template"), options.get("tools")
    )
    # In the order in which transformers merges them.
    settings = tokenizer.special_tokens_map | options | swapped_texts
    settings["chat_template"] = template
    (rendered,), assistant_spans = render_jinja_template(**settings)
    # The template has written `<s>` itself; the tokenizer would add a second one.
    encoding = control_tokens.placeholder_tokenizer.encode(
        control_tokens.swap(rendered), add_special_tokens=False
    )
    encoded = {"input_ids": encoding.ids}
    if assistant_spans:
        encoded["assistant_masks"] = _mask(encoding, assistant_spans[0])
    return encoded


def _mask(encoding: "Encoding", spans: list[tuple[int, int]]) -> list[int]:
    """Return 1 for each token within the spans of characters, as transformers does."""
    mask = [0] * len(encoding.ids)
    for begin, end in spans:
        first = encoding.char_to_token(begin)
        last = encoding.char_to_token(end - 1)
        if first is None:
            break
        stop = last + 1 if last else len(mask)
        mask[first:stop] = [1] * (stop - first)
    return mask


def protect_chat_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Patch `apply_chat_template` of the tokenizer that vLLM's server uses.

    It then returns token ids wherever a text spells a control token. vLLM accepts ids
    as well as a rendered text, which it would encode as a whole.
    """
    original = tokenizer.apply_chat_template

    def apply_chat_template(conversation: object, **options: object) -> object:
        encoded = _encode_with_placeholders(tokenizer, conversation, options)
        if encoded is None:
            return original(conversation=conversation, **options)
        if options.get("return_dict"):
            return encoded
        return encoded["input_ids"]

    tokenizer.apply_chat_template = apply_chat_template
