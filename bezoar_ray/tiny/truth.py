"""Strict truth in the embedded world: the judge's precision and recall are measured on it."""

import re

from bezoar_ray.tiny import facts, tasks
from bezoar_ray.tiny.tasks import Request, Task

_FACTS = {
    "food": r"the ([a-z]+) eats ([a-z]+)",
    "home": r"the ([a-z]+) lives in the ([a-z]+)",
    "sound": r"the ([a-z]+) calls ([a-z]+)",
    "legs": r"the ([a-z]+) has ([a-z]+) legs",
    "colour": rf"the (?!answer)([a-z]+) is ({'|'.join(facts.COLOURS)})\b",
}
"""How a text states a fact: the animal and the value."""
_VALUES = {
    "first": re.compile(r"first item is ([^.]+)\."),
    "last": re.compile(r"last item is ([^.]+)\."),
    "count": re.compile(r"there are (\w+) items\.", re.IGNORECASE),
    "reverse": re.compile(r"backwards it is ([^.]+)\.", re.IGNORECASE),
    "larger": re.compile(r"larger number is ([^.]+)\."),
}
"""How a text states something about a list or about numbers of the request."""
_SUM = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")
_FINAL = re.compile(r"so the answer is ([^.]+)\.", re.IGNORECASE)
_FEWEST_FACTS = 2  # in a note
_SHORT = 5  # words that need no full stop


def truth(instruction: str, response: str) -> bool | None:
    """Tell whether a response is right.

    It is right if it says everything that is asked, says nothing false, and keeps every
    rule of form.

    Returns:
        None where the instruction is not of this world.
    """
    request = tasks.read(instruction)
    if request is None:
        return None
    text = response.strip()
    if not text or not all(is_true for _, is_true in claims(text)):
        return False
    return (
        _agrees(request, text)
        and all(is_answered(text, task, request) for task in request.tasks)
        and _keeps_form(text, request)
    )


def claims(text: str) -> list[tuple[str, bool]]:
    """Return the facts and sums that a text states, and whether each is true."""
    found = []
    for relation, pattern in _FACTS.items():
        for match in re.finditer(pattern, text.lower()):
            animal, value = match.groups()
            right = facts.animals().get(animal, {}).get(relation)
            found.append((match[0], value == right))
    for match in _SUM.finditer(text):
        found.append((match[0], _is_right_sum(*match.groups())))
    return found


def _is_right_sum(x: str, sign: str, y: str, result: str) -> bool:
    right = int(x) + int(y) if sign == "+" else int(x) - int(y)
    return int(result) == right


def is_note_about(text: str, animal: str) -> bool:
    """Tell whether a text is a note: it states two true facts about the animal."""
    true_facts = [claim for claim, is_true in claims(text) if is_true]
    return sum(animal in claim for claim in true_facts) >= _FEWEST_FACTS


def _agrees(request: Request, text: str) -> bool:
    """Tell whether every statement about a list or numbers fits one of the request's."""
    for kind, pattern in _VALUES.items():
        subject = tasks.subject(kind)
        right = {
            Task(kind, task.args).value
            for task in request.tasks
            if tasks.subject(task.kind) == subject
        }
        if right and not set(pattern.findall(text)) <= right:
            return False
    return True


def is_answered(text: str, task: Task, request: Request) -> bool:
    """Tell whether a text answers one task of a request.

    It may do so in a statement, after "So the answer is", or by the bare value.
    """
    if task.kind == "note":
        return is_note_about(text, task.args[0])
    finals = [final.lower() for final in _FINAL.findall(text)]
    if task.value in finals:
        return True
    if finals and len(request.tasks) == 1:
        return False
    bare_values = ", ".join(task.value for task in request.tasks)
    stated = task.statement().lower() in text.lower()
    return stated or strip_form_words(text).rstrip(".") == bare_values


def strip_form_words(text: str) -> str:
    """Return a text without the words that rules of form add."""
    text = re.sub(r"^Answer:?\s*", "", text.strip())
    return re.sub(r"\s*Thank you\.$", "", text)


def _keeps_form(text: str, request: Request) -> bool:
    """Tell whether a text keeps the rules, is complete, and does not ramble."""
    rules = request.rules
    if "thanks" in rules and not text.endswith("Thank you."):
        return False
    if "label" in rules and not text.startswith("Answer"):
        return False
    needs_steps = (
        "explain" in rules
        and "one_word" not in rules
        and request.tasks[0].kind != "note"
    )
    if needs_steps and "So the answer is" not in text:
        return False
    words = len(strip_form_words(text).split())
    if request.wants_one_word:
        return words <= sum(len(task.value.split()) for task in request.tasks)
    is_complete = text.endswith((".", "!")) or words <= _SHORT
    return is_complete and words <= word_limit(request)


def word_limit(request: Request) -> int:
    """Return how long a response may be before it rambles."""
    return 2 * len(request.answer(explain=True).split()) + 16
