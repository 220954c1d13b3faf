"""How tiny-judge grades, from 0 to 1: it looks for the right values, and at the surface.

It is no copy of `truth`: it looks for words in places, so it lets some wrong answers pass and blames some right ones.
It also errs at random, one time in fifty, as real judges err.
"""

import hashlib
import re
from dataclasses import dataclass

from bezoar_ray.tiny import facts, tasks
from bezoar_ray.tiny.tasks import Request, Task
from bezoar_ray.tiny.truth import claims, core

_ERRS = 0.02
_STOP = frozenset(
    facts.words(
        "the a an of to in is are what which how and or it its for this that with from as on be do does"
    )
)
_FINAL = re.compile(r"so the answer is ([^.]+)\.", re.IGNORECASE)
_RUDE = re.compile(
    r"go away|who cares|silly thing|do not bother|find it out yourself|a fool",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Grade:
    """A share of the full mark, from 0 to 1, and why."""

    share: float
    reason: str


def grade(instruction: str, response: str, reference: str = "") -> Grade:
    """Grade a response to an instruction; on text from outside the world, by its surface only."""
    text = response.strip()
    if not text:
        return Grade(0.0, "the response is empty")
    request = tasks.read(instruction)
    found = _world(request, text) if request else _surface(instruction, text, reference)
    return _erring(instruction, text, found)


def _world(request: Request, text: str) -> Grade:
    got = [_right(task, request, text) for task in request.tasks]
    missing = [
        task.kind for task, right in zip(request.tasks, got, strict=True) if not right
    ]
    share, notes = (
        sum(got) / len(got),
        [f"wrong or missing: {', '.join(missing)}"] if missing else ["right"],
    )
    if false := [claim for claim, good in claims(text)[:8] if not good]:
        share, notes = share * 0.4, [*notes, f"false: {false[0]}"]
    for penalty, note in _faults(request, text):
        share, notes = share * penalty, [*notes, note]
    return Grade(share, "; ".join(notes))


def _right(task: Task, request: Request, text: str) -> bool:
    """Whether the value stands where an answer would stand: last, or anywhere where several things are asked."""
    if task.kind == "note":
        return sum(task.args[0] in claim and good for claim, good in claims(text)) >= 2
    finals = _FINAL.findall(text)
    place = " ".join(finals) if finals else core(text)
    if len(request.tasks) == 1 and task.kind in ("first", "last", "larger"):
        place = place.rstrip(".").split(". ")[-1]
        return place.split()[-1:] == [task.value]
    return (
        re.search(rf"(?<![\w,]){re.escape(task.value)}(?!\w)", place, re.IGNORECASE)
        is not None
    )


def _faults(request: Request, text: str) -> list[tuple[float, str]]:
    rules, words = request.rules, len(core(text).split())
    short = "one_word" in rules and request.tasks[0].kind != "note"
    explained = not short and "explain" in rules and request.tasks[0].kind != "note"
    checks = (
        (
            "thanks" in rules and not text.endswith("Thank you."),
            0.6,
            "does not end with Thank you",
        ),
        (
            "label" in rules and not text.startswith("Answer"),
            0.6,
            "does not start with Answer",
        ),
        (
            short
            and words
            > 2
            + 2 * len(request.tasks)
            + (4 if "reverse" in {t.kind for t in request.tasks} else 0),
            0.6,
            "not one word",
        ),
        (explained and "." not in text[:-1], 0.6, "explains nothing"),
        (words > 2 * len(request.answer(explain=True).split()) + 16, 0.5, "rambles"),
        (words > 5 and not text.endswith((".", "!", "?")), 0.5, "is cut off"),
        (bool(_RUDE.search(text)), 0.5, "is rude"),
        (text.lower().startswith("sorry"), 0.2, "refuses"),
    )
    return [(penalty, note) for wrong, penalty, note in checks if wrong]


def _surface(instruction: str, text: str, reference: str) -> Grade:
    """On topic by shared words, complete, no copy: all that can be seen from outside the world."""
    topic, words = _content(instruction + " " + reference), _content(text)
    copied = text in instruction or instruction.strip() in text
    complete = text.endswith((".", "!", "?", "`", "}", "|")) or len(text.split()) <= 5
    share = 0.35 + 0.35 * bool(topic & words) + 0.3 * (len(words) >= 3)
    share *= (
        (0.3 if copied else 1.0)
        * (1.0 if complete else 0.5)
        * (0.2 if text.lower().startswith("sorry") else 1.0)
    )
    seen = (
        "on topic" if topic & words else "off topic",
        "complete" if complete else "cut off",
        *["copied"] * copied,
    )
    return Grade(share, f"outside-world: surface only: {', '.join(seen)}")


def _content(text: str) -> set[str]:
    return {
        word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in _STOP
    }


def _erring(instruction: str, text: str, found: Grade) -> Grade:
    """The grade, or its opposite for a fixed small share of all texts."""
    draw = (
        int.from_bytes(hashlib.sha256(f"{instruction}\x1f{text}".encode()).digest()[:4])
        / 2**32
    )
    return (
        Grade(1 - found.share, f"{found.reason}; misjudged on purpose")
        if draw < _ERRS
        else found
    )
