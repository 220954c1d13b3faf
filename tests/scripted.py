"""A teacher and a judge whose answers follow from what they are asked alone, so that two runs can be compared."""

import hashlib
from typing import Any

import orjson

from bezoar_ray.llm.chat import Messages

_WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heron",
    "inlet",
    "jetty",
    "kelp",
    "larch",
    "moor",
    "night",
    "ocean",
    "pearl",
]


def says(messages: Messages) -> str:
    """What a prompt of the three schemes, of the filter or of MT-Bench's judge is answered with."""
    text, mark = messages[-1]["content"], int(_hash(messages), 16)
    said = words(messages)
    if "<response>" in text:
        return f'{{"reason": "drawn", "rating": {1 + mark % 5}}}'
    if "<answer_a_1>" in text:
        return f"Drawn: [[{'ABC'[mark % 3]}]]"
    if "<answer_1>" in text:
        return f"Drawn. Rating: [[{1 + mark % 10}]]"
    if "<example>" in text:
        return "".join(
            f"<example>Tell of {' '.join(said[at : at + 6])}.</example>"
            for at in range(0, 30, 6)
        )
    if "'Not equal'" in text:
        return "Not equal"
    return f"{'Describe' if '#Given Prompt#' in text else 'They are'} {' '.join(said[:12])}."


def words(asked: Any) -> list[str]:
    """Words that follow from what is asked."""
    return [_WORDS[int(digit, 16)] for digit in _hash(asked)]


def _hash(asked: Any) -> str:
    return hashlib.sha256(orjson.dumps(asked)).hexdigest()
