"""The tasks of the embedded world: how they are asked, what is true, and how a request is read back from its text.

A request is one or more tasks and rules about the form of the answer. Writers (seeds, the teacher's lessons, exams) and
the judge share this one grammar, so that whatever the teacher composes from it can be judged.
"""

import random
import re
from dataclasses import dataclass, field, replace
from functools import cache

from bezoar_ray.tiny import facts, manners

_FACTS = {
    "food": (
        "What does the {a} eat?",
        "Tell me what the {a} eats.",
        "Which food does the {a} like?",
        "Name the food of the {a}.",
    ),
    "home": (
        "Where does the {a} live?",
        "Tell me where the {a} lives.",
        "Which place is home to the {a}?",
        "Name the home of the {a}.",
    ),
    "colour": (
        "What colour is the {a}?",
        "Tell me the colour of the {a}.",
        "Which colour has the {a}?",
        "Name the colour of the {a}.",
    ),
    "sound": (
        "What does the {a} call?",
        "Tell me the call of the {a}.",
        "Which sound does the {a} make?",
        "Name the sound of the {a}.",
    ),
    "legs": (
        "How many legs has the {a}?",
        "Tell me how many legs the {a} has.",
        "Count the legs of the {a}.",
        "Name the number of legs of the {a}.",
    ),
}
_LISTS = {
    "first": (
        "Which item comes first: {l}?",
        "Name the first item of this list: {l}.",
        "Tell me the first word of the list {l}.",
    ),
    "last": (
        "Which item comes last: {l}?",
        "Name the last item of this list: {l}.",
        "Tell me the last word of the list {l}.",
    ),
    "count": (
        "How many items are here: {l}?",
        "Count the items of this list: {l}.",
        "Tell me how many words the list {l} has.",
    ),
    "reverse": (
        "Reverse this list: {l}.",
        "Write this list backwards: {l}.",
        "Turn this list around: {l}.",
    ),
}
_SUMS = {
    "add": ("What is {x} + {y}?", "Add {x} and {y}.", "Tell me what {x} plus {y} is."),
    "subtract": (
        "What is {x} - {y}?",
        "Take {y} from {x}.",
        "Tell me what {x} minus {y} is.",
    ),
    "larger": (
        "Which number is larger, {x} or {y}?",
        "Name the larger number: {x} or {y}.",
        "Tell me which is more, {x} or {y}.",
    ),
}
_NOTES = {
    "note": (
        "Write a short note about the {a}.",
        "Describe the {a}.",
        "Tell me about the {a}.",
    )
}
PHRASINGS = {**_FACTS, **_LISTS, **_SUMS, **_NOTES}

_ORDERS = {
    "first": "Say which item comes first",
    "last": "Say which item comes last",
    "count": "Say how many items there are",
    "reverse": "Write the items backwards",
}
# Shapes that only seeds use: with an input block (dolly) and with a definition or a story (FLAN).
INPUTS = {
    kind: (f"{order} in the input.\n\nInput:\n{{l}}",)
    for kind, order in _ORDERS.items()
}
DEFINITIONS = {
    kind: (
        f"Definition: You are given a list of items. {order}.\n\nInput: {{l}}\nOutput:",
    )
    for kind, order in _ORDERS.items()
}
STORIES = {
    "add": (
        "{p} has {x} coins and finds {y} more. How many coins does {p} have now?",
        "There are {x} birds and {y} more come. How many birds are there now?",
    ),
    "subtract": (
        "{p} has {x} coins and loses {y}. How many coins does {p} have left?",
        "There are {x} birds and {y} fly away. How many birds are left?",
    ),
}

STATEMENTS = {
    "food": "The {a} eats {v}.",
    "home": "The {a} lives in the {v}.",
    "colour": "The {a} is {v}.",
    "sound": "The {a} calls {v}.",
    "legs": "The {a} has {v} legs.",
    "first": "The first item is {v}.",
    "last": "The last item is {v}.",
    "count": "There are {v} items.",
    "reverse": "Backwards it is {v}.",
    "add": "{x} + {y} = {v}.",
    "subtract": "{x} - {y} = {v}.",
    "larger": "The larger number is {v}.",
}
ALSO = {
    "food": "what it eats",
    "home": "where it lives",
    "colour": "which colour it has",
    "sound": "how it calls",
    "legs": "how many legs it has",
    "count": "how many items there are",
    "larger": "which number is larger",
}
RULES = {
    "one_word": "Answer in one word.",
    "thanks": "End with the words Thank you.",
    "label": "Start with the word Answer.",
    "explain": "Explain your answer step by step.",
    "animal": "Think of a grown one in summer.",
    "list": "Take the words exactly as they stand.",
    "sum": "Give the exact whole number.",
}
_SLOTS = {
    "a": r"(?P<a>[a-z]+)",
    "l": r"(?P<l>[a-z]+(?:, [a-z]+)+)",
    "x": r"(?P<x>\d{1,3})",
    "y": r"(?P<y>\d{1,3})",
    "p": r"(?P<p>[A-Z][a-z]+)",
}


def family(kind: str) -> str:
    """`animal`, `list` or `sum`."""
    return "list" if kind in _LISTS else "sum" if kind in _SUMS else "animal"


@dataclass(frozen=True)
class Task:
    """One thing that is asked: a kind and its arguments (an animal, a list's words, or two numbers)."""

    kind: str
    args: tuple[str, ...]

    @property
    def value(self) -> str:
        """The right answer, bare; empty for a note."""
        if self.kind in facts.RELATIONS:
            return facts.animals()[self.args[0]][self.kind]
        return _VALUES[self.kind](self.args) if self.kind in _VALUES else ""

    @property
    def slots(self) -> dict[str, str]:
        """What fills the slots of a phrasing or statement."""
        where = family(self.kind)
        if where == "animal":
            return {"a": self.args[0]}
        return (
            {"l": ", ".join(self.args)}
            if where == "list"
            else {"x": self.args[0], "y": self.args[1]}
        )

    def statement(self, value: str | None = None) -> str:
        """The answer as a sentence, with another value where one is given."""
        if self.kind == "note":
            return " ".join(
                Task(r, self.args).statement() for r in ("food", "home", "colour")
            )
        return STATEMENTS[self.kind].format(
            **self.slots, v=self.value if value is None else value
        )

    def explained(self, value: str | None = None) -> str:
        """The answer with its steps."""
        if self.kind == "note":
            return self.statement()
        start = (
            f"The list is {', '.join(self.args)}. "
            if family(self.kind) == "list"
            else ""
        )
        return f"{start}{self.statement(value)} So the answer is {self.value if value is None else value}."


_VALUES = {
    "first": lambda args: args[0],
    "last": lambda args: args[-1],
    "count": lambda args: (
        facts.NUMBERS[len(args)] if len(args) < len(facts.NUMBERS) else str(len(args))
    ),
    "reverse": lambda args: ", ".join(reversed(args)),
    "add": lambda args: str(int(args[0]) + int(args[1])),
    "subtract": lambda args: str(int(args[0]) - int(args[1])),
    "larger": lambda args: str(max(map(int, args))),
}


@dataclass(frozen=True)
class Request:
    """What an instruction asks for: its tasks, and the rules for the answer's form."""

    tasks: tuple[Task, ...]
    rules: tuple[str, ...] = ()

    def answer(
        self, values: tuple[str, ...] | None = None, explain: bool = False
    ) -> str:
        """A right answer in the form asked for; a wrong one where `values` are given in place of the right ones."""
        values = values or tuple(task.value for task in self.tasks)
        if "one_word" in self.rules and self.tasks[0].kind != "note":
            text = ", ".join(values)
        elif explain or "explain" in self.rules:
            text = " ".join(
                task.explained(v) for task, v in zip(self.tasks, values, strict=True)
            )
        else:
            text = " ".join(
                task.statement(v) for task, v in zip(self.tasks, values, strict=True)
            )
        text = f"Answer: {text}" if "label" in self.rules else text
        return f"{text} Thank you." if "thanks" in self.rules else text


@dataclass(frozen=True)
class Asked:
    """An instruction: its text and what it asks for."""

    text: str
    request: Request = field(hash=False)

    def plus(
        self, suffix: str, *, tasks: tuple[Task, ...] = (), rules: tuple[str, ...] = ()
    ) -> "Asked":
        """The instruction with a sentence added."""
        gap = "\n" if "\n" in self.text or suffix.startswith("Do the same") else " "
        old = self.request
        return Asked(
            self.text + gap + suffix,
            replace(old, tasks=old.tasks + tasks, rules=old.rules + rules),
        )


def ask(
    rng: random.Random, task: Task, phrasings: dict[str, tuple[str, ...]] = PHRASINGS
) -> Asked:
    """A task in one of its wordings."""
    text = rng.choice(phrasings[task.kind]).format(
        **task.slots, p=rng.choice(facts.PEOPLE)
    )
    return Asked(text, Request((task,)))


def by_somebody(rng: random.Random, asked: Asked) -> Asked:
    """The instruction as somebody's question."""
    return replace(
        asked,
        text=f"{rng.choice(facts.PEOPLE)} of the {rng.choice(facts.HOMES)} asks: {asked.text}",
    )


def rule(asked: Asked, name: str) -> Asked:
    """The instruction with one of `RULES`."""
    return asked.plus(RULES[name], rules=(name,))


def also(asked: Asked, kind: str) -> Asked:
    """The instruction, asking for one more thing about the same animal, list or numbers."""
    return asked.plus(
        f"Say also {ALSO[kind]}.", tasks=(Task(kind, asked.request.tasks[0].args),)
    )


def same(asked: Asked, rows: list[tuple[str, ...]]) -> Asked:
    """The instruction, asking for the same of each row of a table."""
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    tasks = tuple(Task(asked.request.tasks[0].kind, row) for row in rows)
    return asked.plus(f"Do the same for this table:\n{table}", tasks=tasks)


@cache
def _patterns() -> list[tuple[str, re.Pattern]]:
    shapes = (PHRASINGS, INPUTS, DEFINITIONS, STORIES)
    return [
        (kind, _pattern(text))
        for shape in shapes
        for kind, texts in shape.items()
        for text in texts
    ]


def _pattern(text: str) -> re.Pattern:
    parts, seen = [], set()
    for part in re.split(r"(\{\w\})", text):
        slot = part[1:-1] if re.fullmatch(r"\{\w\}", part) else ""
        parts.append(
            re.escape(part)
            if not slot
            else f"(?P={slot})"
            if slot in seen
            else _SLOTS[slot]
        )
        seen.add(slot)
    return re.compile("".join(parts))


def read(text: str) -> Request | None:
    """What an instruction asks for, or None where it is not of this world."""
    body, extras = _strip(text.strip())
    first = _task(body)
    if first is None:
        return None
    tasks, rules = [first], []
    for name, value in extras:
        if name == "rule":
            rules.append(value)
        else:
            tasks += (
                [Task(value, first.args)]
                if name == "also"
                else [Task(first.kind, row) for row in value]
            )
    return Request(tuple(tasks), tuple(rules)) if all(map(_valid, tasks)) else None


_TABLE = re.compile(r"\s+Do the same for this table:((?:\n\| [^\n]+ \|)+)$")
_ALSO = re.compile(rf"\s+Say also ({'|'.join(ALSO.values())})\.$")
_RULE = re.compile(rf"\s+({'|'.join(map(re.escape, RULES.values()))})$")
_FRAME = re.compile(
    rf"\A(?:{manners.GREETING})?(?:{'|'.join(facts.PEOPLE)}) of the [a-z]+ asks: "
    rf"|\A{manners.GREETING}|\AText: [^\n]*\nQuestion: "
    r"|\n\nOPTIONS:(?:\n- [^\n]+)+$|\n\nInput:\n[^\n]*\.$"
)


def _strip(text: str) -> tuple[str, list]:
    """The bare wording, and the added sentences in their order."""
    extras = []
    while True:
        if found := _RULE.search(text):
            extras.append(
                ("rule", next(name for name, rule in RULES.items() if rule == found[1]))
            )
        elif found := _ALSO.search(text):
            extras.append(
                (
                    "also",
                    next(kind for kind, words in ALSO.items() if words == found[1]),
                )
            )
        elif found := _TABLE.search(text):
            extras.append(
                (
                    "same",
                    [
                        tuple(row.strip("| ").split(" | "))
                        for row in found[1].strip().split("\n")
                    ],
                )
            )
        else:
            return _FRAME.sub("", text), extras[::-1]
        text = text[: found.start()]


def _task(body: str) -> Task | None:
    for kind, pattern in _patterns():
        if found := pattern.fullmatch(body):
            slots = found.groupdict()
            args = (
                slots["l"].split(", ")
                if "l" in slots
                else [slots[s] for s in ("a", "x", "y") if s in slots]
            )
            return Task(kind, tuple(args))
    return None


def _valid(task: Task) -> bool:
    """Whether the arguments are of this world and the kind fits them."""
    if family(task.kind) == "animal":
        return len(task.args) == 1 and task.args[0] in facts.animals()
    if family(task.kind) == "list":
        return len(task.args) > 1
    return len(task.args) == 2 and all(arg.isdigit() for arg in task.args)
