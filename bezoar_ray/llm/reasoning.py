"""What a model thinks before it answers, as far as that stands in its text: the answer is what comes after it."""

import re

_PAIRS = (  # begin and end, where they were seen
    (r"<think(?:ing)?>", r"</think(?:ing)?>"),  # DeepSeek, Qwen, most others
    (r"<(?:reasoning|thought|scratchpad|seed:think)>", r"</(?:reasoning|thought|scratchpad|seed:think)>"),
    (r"\[THINK\]", r"\[/THINK\]"),  # Mistral
    (r"◁think▷", r"◁/think▷"),  # Kimi
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
)
_WHOLE = re.compile("|".join(f"{begin}.*?{end}" for begin, end in _PAIRS), re.DOTALL | re.IGNORECASE)
_END = re.compile("|".join(end for _, end in _PAIRS), re.IGNORECASE)
_BEGIN = re.compile("|".join(begin for begin, _ in _PAIRS), re.IGNORECASE)
_CHANNEL = re.compile(
    r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>(.*?)(?=<\|(?:end|return|start|channel)\|>|\Z)", re.DOTALL
)


def without_reasoning(text: str) -> str:
    """The answer in a text. It is empty where the text ends before the reasoning does.

    A template often begins the reasoning itself, so an end without a beginning ends it, too. Of several channels
    (gpt-oss), the final one is the answer.
    """
    channels = _CHANNEL.findall(text)
    if channels:
        return "".join(said for name, said in channels if name == "final").strip()
    rest = _WHOLE.sub("", text)
    if rest == text and not (_END.search(text) or _BEGIN.match(text.lstrip())):
        return text
    rest = _END.split(rest)[-1]
    begin = _BEGIN.match(rest.lstrip())
    return "" if begin else rest.strip()
