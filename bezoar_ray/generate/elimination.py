"""Evol-Instruct's elimination rules that need no model (arXiv 2304.12244, section 3.2); each names its fault."""

import re
from functools import cache
from importlib import resources

_LEAK = re.compile(r"#?\b(given|created|rewritten) prompt\b#?", re.IGNORECASE)


def spoilt_instruction(instruction: str) -> str | None:
    """Elimination rule 4: the scaffolding of our prompt leaks into the instruction; and one that is not there."""
    if not instruction:
        return "empty"
    return "scaffolding" if _LEAK.search(instruction) else None


def spoilt_answer(answer: str) -> str | None:
    """Elimination rules 2 and 3: a short apology; nothing but punctuation and stop words."""
    words = re.findall(r"\w+", answer.lower())
    if "sorry" in words and len(words) < 80:
        return "sorry"
    return "stop_words" if all(word in stop_words() for word in words) else None


@cache
def stop_words() -> frozenset[str]:
    """English words that say nothing by themselves."""
    return frozenset(
        (resources.files("bezoar_ray.generate") / "stop_words.txt").read_text().split()
    )
