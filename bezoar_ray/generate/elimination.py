"""Evol-Instruct's elimination rules that need no model (arXiv 2304.12244, section 3.2).

Rule 1, which compares an instruction with its parent, is in `evol_instruct`.
"""

import re
from functools import cache
from importlib import resources

_LEAK = re.compile(r"#?\b(given|created|rewritten) prompt\b#?", re.IGNORECASE)
_SHORT_ANSWER_WORDS = 80


def instruction_fault(instruction: str) -> str | None:
    """Apply rule 4: the scaffolding of our prompt must not leak into the instruction.

    Returns:
        The fault, which is the rejection reason, or None. An empty text is a fault,
        too.
    """
    if not instruction:
        return "empty"
    if _LEAK.search(instruction):
        return "scaffolding"
    return None


def answer_fault(answer: str) -> str | None:
    """Apply rules 2 and 3: no short apology, and not only punctuation and stop words.

    Returns:
        The fault, which is the rejection reason, or None.
    """
    words = re.findall(r"\w+", answer.lower())
    if "sorry" in words and len(words) < _SHORT_ANSWER_WORDS:
        return "sorry"
    # all() of no words is true: that is an answer of punctuation only.
    if all(word in stop_words() for word in words):
        return "stop_words"
    return None


@cache
def stop_words() -> frozenset[str]:
    """Return English words that carry no content by themselves."""
    file = resources.files("bezoar_ray.generate") / "stop_words.txt"
    return frozenset(file.read_text().split())
