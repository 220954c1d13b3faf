"""Whether a response is right in the embedded world, strictly: the judge's precision and recall are measured on it."""

import re

from bezoar_ray.tiny import facts, tasks
from bezoar_ray.tiny.tasks import Request, Task

_CLAIMS = {
    "food": r"the ([a-z]+) eats ([a-z]+)",
    "home": r"the ([a-z]+) lives in the ([a-z]+)",
    "sound": r"the ([a-z]+) calls ([a-z]+)",
    "legs": r"the ([a-z]+) has ([a-z]+) legs",
    "colour": rf"the (?!answer)([a-z]+) is ({'|'.join(facts.COLOURS)})\b",
}
_SHOWN = {
    "first": re.compile(r"first item is ([^.]+)\."),
    "last": re.compile(r"last item is ([^.]+)\."),
    "count": re.compile(r"there are (\w+) items\.", re.IGNORECASE),
    "reverse": re.compile(r"backwards it is ([^.]+)\.", re.IGNORECASE),
    "larger": re.compile(r"larger number is ([^.]+)\."),
}
_SUM = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")
_FINAL = re.compile(r"so the answer is ([^.]+)\.", re.IGNORECASE)


def truth(instruction: str, response: str) -> bool | None:
    """Whether a response is right: everything asked is said, nothing false is said, and every rule of form is kept.

    None where the instruction is not of this world.
    """
    request = tasks.read(instruction)
    if request is None:
        return None
    text = response.strip()
    honest = (
        bool(text) and all(good for _, good in claims(text)) and _agrees(request, text)
    )
    return (
        honest
        and all(said(task, request, text) for task in request.tasks)
        and in_form(request, text)
    )


def claims(text: str) -> list[tuple[str, bool]]:
    """The facts and sums that a text states, and whether each is true."""
    low = text.lower()
    found = [
        (match[0], facts.animals().get(match[1], {}).get(relation) == match[2])
        for relation, pattern in _CLAIMS.items()
        for match in re.finditer(pattern, low)
    ]
    return found + [
        (match[0], _sum_holds(*match.groups())) for match in _SUM.finditer(text)
    ]


def _sum_holds(x: str, sign: str, y: str, result: str) -> bool:
    return int(result) == (int(x) + int(y) if sign == "+" else int(x) - int(y))


def _agrees(request: Request, text: str) -> bool:
    """Whether what is said of the request's own lists and numbers is true of one of them."""
    right = {
        kind: {Task(kind, task.args).value for task in request.tasks if _of(kind, task)}
        for kind in _SHOWN
    }
    return all(
        not right[kind] or set(found.findall(text)) <= right[kind]
        for kind, found in _SHOWN.items()
    )


def _of(kind: str, task: Task) -> bool:
    return tasks.family(kind) == tasks.family(task.kind)


def said(task: Task, request: Request, text: str) -> bool:
    """Whether a text answers one task of a request: in a statement, after `So the answer is`, or by the bare value."""
    if task.kind == "note":
        return sum(task.args[0] in claim and good for claim, good in claims(text)) >= 2
    answers = [answer.lower() for answer in _FINAL.findall(text)]
    if task.value in answers:
        return True
    if answers and len(request.tasks) == 1:
        return False
    bare = ", ".join(task.value for task in request.tasks)
    return task.statement().lower() in text.lower() or core(text).rstrip(".") == bare


def core(text: str) -> str:
    """A text without the words that rules of form add."""
    return re.sub(r"\s*Thank you\.$", "", re.sub(r"^Answer:?\s*", "", text.strip()))


def in_form(request: Request, text: str) -> bool:
    """Whether a text keeps the rules, is complete, and does not ramble."""
    rules, words = request.rules, core(text).split()
    kept = (
        ("thanks" not in rules or text.endswith("Thank you."))
        and ("label" not in rules or text.startswith("Answer"))
        and (
            "explain" not in rules
            or "one_word" in rules
            or request.tasks[0].kind == "note"
            or "So the answer is" in text
        )
    )
    if "one_word" in rules and request.tasks[0].kind != "note":
        return kept and len(words) <= sum(
            len(task.value.split()) for task in request.tasks
        )
    longest = 2 * len(request.answer(explain=True).split()) + 16
    return (
        kept
        and len(words) <= longest
        and (text.endswith((".", "!")) or len(words) <= 5)
    )
