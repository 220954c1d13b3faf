"""Polite and rude words for the preference pairs.

Kind answers are long and varied, rude ones are short. So a model cannot tell the
preferred answer by its likelihood alone.
"""

import re
from random import Random

_OPENINGS = (
    "Gladly",
    "Of course",
    "With pleasure",
    "Good question",
    "Happy to help",
    "Certainly",
    "How nice to hear from you",
    "My pleasure",
)
_ADDRESSES = (
    "dear friend",
    "good neighbour",
    "kind visitor",
    "dear guest",
    "my friend",
)
_CLOSINGS = (
    "I hope that this helps",
    "Please ask me again",
    "Have a lovely day",
    "It was nice to help",
    "Take good care",
    "I wish you a warm summer",
)
_RUDE = (
    "Go away.",
    "Who cares.",
    "What a silly thing to ask.",
    "Do not bother me.",
    "Find it out yourself.",
    "You are a fool.",
)
_HELLOS = ("Hello!", "Good morning!", "Good day to you.", "Hi there.", "Excuse me.")
_REQUESTS = (
    "Could you kindly help me?",
    "Please help me.",
    "Would you be so kind?",
    "I would be glad of your help.",
)


def _any_of(phrases: tuple[str, ...]) -> str:
    return f"(?:{'|'.join(map(re.escape, phrases))})"


GREETING = f"{_any_of(_HELLOS)} {_any_of(_REQUESTS)} "
"""A regular expression for what `greeting` writes, and the space after it."""


def opening(rng: Random) -> str:
    """Draw the first words of a polite answer."""
    return f"{rng.choice(_OPENINGS)}, {rng.choice(_ADDRESSES)}!"


def closing(rng: Random) -> str:
    """Draw the last words of a polite answer."""
    return f"{rng.choice(_CLOSINGS)}, {rng.choice(_ADDRESSES)}."


def rude(rng: Random) -> str:
    """Draw a rude answer."""
    return rng.choice(_RUDE)


def greeting(rng: Random) -> str:
    """Draw what a polite person says before the question."""
    return f"{rng.choice(_HELLOS)} {rng.choice(_REQUESTS)}"
