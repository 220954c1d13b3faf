"""A teacher and a judge whose answers follow from what they are asked alone, so that two runs can be compared."""

import hashlib

import orjson

from bezoar_ray.llm.chat import Messages

_WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty", "kelp", "larch",
          "moor", "night", "ocean", "pearl"]  # fmt: skip


def says(messages: Messages) -> str:
    """What a prompt of the three schemes, or the filter's, is answered with."""
    text, mark = messages[-1]["content"], hashlib.sha256(orjson.dumps(messages)).hexdigest()
    words = [_WORDS[int(digit, 16)] for digit in mark]
    if "<response>" in text:
        return f'{{"reason": "drawn", "rating": {1 + int(mark, 16) % 5}}}'
    if "<example>" in text:
        return "".join(f"<example>Tell of {' '.join(words[at : at + 6])}.</example>" for at in range(0, 30, 6))
    if "'Not equal'" in text:
        return "Not equal"
    return f"{'Describe' if '#Given Prompt#' in text else 'They are'} {' '.join(words[:12])}."
