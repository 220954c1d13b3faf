"""Separate the answer of a model from the reasoning before it.

Only reasoning at the beginning of a text is removed: an answer may mention the tags, or
use them as XML.
"""

import re

# Pairs of tags around reasoning. A chat template may have written the opening one
# already.
_PAIRS_OF_TEMPLATES = (
    ("<think>", "</think>"),  # DeepSeek, Qwen, most others
    ("[THINK]", "[/THINK]"),  # Mistral
    ("◁think▷", "◁/think▷"),  # Kimi
)
_PAIRS = (
    *_PAIRS_OF_TEMPLATES,
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
# One message of a channel (gpt-oss): its name, and its text up to the next control
# token.
_CHANNEL = re.compile(
    r"<\|channel\|>\s*(\w+)(?:(?!<\|message\|>).)*<\|message\|>"
    r"(.*?)(?=<\|(?:end|return|start|channel)\|>|\Z)",
    re.DOTALL,
)
_CHANNEL_TAGS = {
    "<|channel|>",
    "<|message|>",
    "<|start|>",
    "<|end|>",
    "<|return|>",
    "<|constrain|>",
}

REASONING_TAGS = {tag for pair in _PAIRS for tag in pair} | _CHANNEL_TAGS
"""All tags around reasoning. Some models have them as special tokens."""


def without_reasoning(text: str) -> str:
    """Return the answer in a text; empty if the text ends within the reasoning.

    Where the chat template has opened the reasoning, only the closing tag is in the
    text. Where there are several channels (gpt-oss), the final one is the answer.
    """
    channels = _CHANNEL.findall(text)
    if channels:
        # Without a final channel, the model was cut off while it reasoned.
        answers = [message for name, message in channels if name == "final"]
        return "".join(answers).strip()
    rest = text.lstrip()
    for opening, closing in _PAIRS:
        if rest.startswith(opening) and closing in rest:
            return _without_closed_pairs(rest)
    # Only these tags are a template's. The others, left open, may be XML of an answer.
    for opening, closing in _PAIRS_OF_TEMPLATES:
        if rest.startswith(opening):
            return ""
        before, found_closing, after = text.partition(closing)
        # With the opening tag before it, the pair is part of the answer.
        if found_closing and opening not in before:
            return after.strip()
    return text


def _without_closed_pairs(text: str) -> str:
    """Remove all closed pairs of tags at the beginning of a text."""
    for opening, closing in _PAIRS:
        if text.startswith(opening) and closing in text:
            return _without_closed_pairs(text.partition(closing)[2].strip())
    return text
