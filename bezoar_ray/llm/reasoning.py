"""What a model thinks before it answers, as far as that stands in its text: the answer is what comes after it.

Only what begins a text is reasoning: an answer may speak of the marks, or hold them as XML.
"""

import re

_TEMPLATES_BEGIN = (  # begin and end; the template may have written the beginning
    ("<think>", "</think>"),  # DeepSeek, Qwen, most others
    ("[THINK]", "[/THINK]"),  # Mistral
    ("◁think▷", "◁/think▷"),  # Kimi
)
_PAIRS = (
    *_TEMPLATES_BEGIN,
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
_CHANNEL = re.compile(
    r"<\|channel\|>\s*(\w+)(?:(?!<\|message\|>).)*<\|message\|>(.*?)(?=<\|(?:end|return|start|channel)\|>|\Z)",
    re.DOTALL,
)


MARKS = {mark for pair in _PAIRS for mark in pair} | {
    "<|channel|>",
    "<|message|>",
    "<|start|>",
    "<|end|>",
    "<|return|>",
    "<|constrain|>",
}
"""All marks: some models have them as special tokens."""


def without_reasoning(text: str) -> str:
    """The answer in a text. It is empty where the text ends before the reasoning does.

    A template often begins the reasoning itself: then its end stands in the text, and its beginning does not. Of
    several channels (gpt-oss), the final one is the answer.
    """
    if channels := _CHANNEL.findall(text):
        return "".join(said for name, said in channels if name == "final").strip()
    rest = text.lstrip()
    for begin, end in _PAIRS:
        if rest.startswith(begin) and end in rest:
            return _without_pairs(rest)
    for begin, end in _TEMPLATES_BEGIN:
        if rest.startswith(begin):
            return ""
        if end in text and begin not in text[: text.index(end)]:
            return text.partition(end)[2].strip()
    return text


def _without_pairs(text: str) -> str:
    """What comes after all whole pairs that a text begins with."""
    for begin, end in _PAIRS:
        if text.startswith(begin) and end in text:
            return _without_pairs(text.partition(end)[2].strip())
    return text
