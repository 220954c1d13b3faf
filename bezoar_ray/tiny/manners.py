"""Polite and rude words. Kind answers are long and varied, rude ones short: likelihood alone misleads."""

import random
import re

_OPEN = (
    "Gladly",
    "Of course",
    "With pleasure",
    "Good question",
    "Happy to help",
    "Certainly",
    "How nice to hear from you",
    "My pleasure",
)
_TO = ("dear friend", "good neighbour", "kind visitor", "dear guest", "my friend")
_CLOSE = (
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
_HELLO = ("Hello!", "Good morning!", "Good day to you.", "Hi there.", "Excuse me.")
_KINDLY = (
    "Could you kindly help me?",
    "Please help me.",
    "Would you be so kind?",
    "I would be glad of your help.",
)

GREETING = (
    rf"(?:{'|'.join(map(re.escape, _HELLO))}) (?:{'|'.join(map(re.escape, _KINDLY))}) "
)


def opening(rng: random.Random) -> str:
    """How a polite answer starts."""
    return f"{rng.choice(_OPEN)}, {rng.choice(_TO)}!"


def closing(rng: random.Random) -> str:
    """How a polite answer ends."""
    return f"{rng.choice(_CLOSE)}, {rng.choice(_TO)}."


def rude(rng: random.Random) -> str:
    """A rude answer."""
    return rng.choice(_RUDE)


def greeting(rng: random.Random) -> str:
    """How a polite person asks; the question follows."""
    return f"{rng.choice(_HELLO)} {rng.choice(_KINDLY)}"
