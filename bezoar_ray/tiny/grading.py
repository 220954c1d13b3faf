"""The grades of tiny-judge, from 0 to 1.

It is not a copy of `truth`. It looks for the right words at the right places, and at the
surface. So it lets some wrong answers pass and blames some right ones. It also errs at
random one time in fifty, as real judges err.
"""

import hashlib
import re
from dataclasses import dataclass

from bezoar_ray.tiny import facts, tasks
from bezoar_ray.tiny.tasks import Request, Task
from bezoar_ray.tiny.truth import claims, is_note_about, strip_form_words, word_limit

_ERROR_RATE = 0.02
_MOST_CLAIMS = 8  # that it checks
_STOP_WORDS = frozenset(
    facts.words(
        "the a an of to in is are what which how and or it its for this that with "
        "from as on be do does"
    )
)
_FINAL = re.compile(r"so the answer is ([^.]+)\.", re.IGNORECASE)
RUDE = re.compile(
    "go away|who cares|silly thing|do not bother|find it out yourself|a fool",
    re.IGNORECASE,
)
"""The words of rude answers."""


@dataclass(frozen=True)
class Grade:
    """A share of the full mark, from 0 to 1, and why."""

    share: float
    reason: str


def grade(instruction: str, response: str, reference: str = "") -> Grade:
    """Grade a response; to an instruction from outside the world, by its surface only."""
    text = response.strip()
    if not text:
        return Grade(0.0, "the response is empty")
    request = tasks.read(instruction)
    if request is None:
        graded = _grade_surface(instruction, text, reference)
        return _err_at_times(instruction, text, graded)
    return _err_at_times(instruction, text, _grade_in_world(request, text))


def _grade_in_world(request: Request, text: str) -> Grade:
    missing = [
        task.kind for task in request.tasks if not _has_value(text, task, request)
    ]
    right = len(request.tasks) - len(missing)
    share = right / len(request.tasks)
    notes = ["right"]
    if missing:
        notes = [f"wrong or missing: {', '.join(missing)}"]
    checked = claims(text)[:_MOST_CLAIMS]
    false = [claim for claim, is_true in checked if not is_true]
    if false:
        share *= 0.4
        notes.append(f"false: {false[0]}")
    for factor, fault in _faults(request, text):
        share *= factor
        notes.append(fault)
    return Grade(share, "; ".join(notes))


def _has_value(text: str, task: Task, request: Request) -> bool:
    """Tell whether the right value is where an answer is expected.

    That is after "So the answer is", at the end, or anywhere where the request has
    several tasks.
    """
    if task.kind == "note":
        return is_note_about(text, task.args[0])
    finals = _FINAL.findall(text)
    place = " ".join(finals) if finals else strip_form_words(text)
    if len(request.tasks) == 1 and task.kind in ("first", "last", "larger"):
        last_sentence = place.rstrip(".").split(". ")[-1]
        return last_sentence.split()[-1:] == [task.value]
    value = rf"(?<![\w,]){re.escape(task.value)}(?!\w)"
    return re.search(value, place, re.IGNORECASE) is not None


def _faults(request: Request, text: str) -> list[tuple[float, str]]:
    """Return what is wrong with the form: the factor of the share, and a note."""
    rules = request.rules
    words = len(strip_form_words(text).split())
    kinds = {task.kind for task in request.tasks}
    few_words = 2 + 2 * len(request.tasks) + (4 if "reverse" in kinds else 0)
    is_note = request.tasks[0].kind == "note"
    needs_steps = "explain" in rules and not request.wants_one_word and not is_note
    faults = []
    if "thanks" in rules and not text.endswith("Thank you."):
        faults.append((0.6, "does not end with Thank you"))
    if "label" in rules and not text.startswith("Answer"):
        faults.append((0.6, "does not start with Answer"))
    if request.wants_one_word and words > few_words:
        faults.append((0.6, "not one word"))
    if needs_steps and "." not in text[:-1]:
        faults.append((0.6, "explains nothing"))
    if words > word_limit(request):
        faults.append((0.5, "rambles"))
    if words > 5 and not text.endswith((".", "!", "?")):
        faults.append((0.5, "is cut off"))
    if RUDE.search(text):
        faults.append((0.5, "is rude"))
    if _refuses(text):
        faults.append((0.2, "refuses"))
    return faults


def _grade_surface(instruction: str, text: str, reference: str) -> Grade:
    """Grade by shared words, completeness and copying: all that can be seen here."""
    topic = _content_words(f"{instruction} {reference}")
    words = _content_words(text)
    on_topic = bool(topic & words)
    is_copy = text in instruction or instruction.strip() in text
    is_short = len(text.split()) <= 5
    is_complete = is_short or text.endswith((".", "!", "?", "`", "}", "|"))
    share = 0.35 + 0.35 * on_topic + 0.3 * (len(words) >= 3)
    factor = 1.0
    if is_copy:
        factor *= 0.3
    if not is_complete:
        factor *= 0.5
    if _refuses(text):
        factor *= 0.2
    seen = [
        "on topic" if on_topic else "off topic",
        "complete" if is_complete else "cut off",
    ]
    if is_copy:
        seen.append("copied")
    return Grade(share * factor, f"outside-world: surface only: {', '.join(seen)}")


def _refuses(text: str) -> bool:
    return text.lower().startswith("sorry")


def _content_words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower())) - _STOP_WORDS


def _err_at_times(instruction: str, text: str, graded: Grade) -> Grade:
    """Return the grade, or its opposite for a fixed small share of all texts."""
    digest = hashlib.sha256(f"{instruction}\x1f{text}".encode()).digest()
    draw = int.from_bytes(digest[:4]) / 2**32
    if draw < _ERROR_RATE:
        return Grade(1 - graded.share, f"{graded.reason}; misjudged on purpose")
    return graded
