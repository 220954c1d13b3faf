"""The tasks of the embedded world: their phrasings, their answers, and how to read them.

A request is one or more tasks, and rules for the form of the answer. All writers (seeds,
the teacher's lessons, held-out items) and the judge share this one grammar. So the judge
can read whatever the teacher composes from it.

Slots of phrasings and statements: `{a}` an animal, `{l}` a list, `{x}` and `{y}` numbers,
`{p}` a person, `{v}` the answer.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random

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
"""The phrasings of each kind of task that seeds, the teacher and the items share."""

_ORDERS = {
    "first": "Say which item comes first",
    "last": "Say which item comes last",
    "count": "Say how many items there are",
    "reverse": "Write the items backwards",
}
INPUTS = {
    kind: (f"{order} in the input.\n\nInput:\n{{l}}",)
    for kind, order in _ORDERS.items()
}
"""Phrasings of seeds alone: with an input block, as dolly has them."""
_GIVEN_LIST = "Definition: You are given a list of items."
DEFINITIONS = {
    kind: (f"{_GIVEN_LIST} {order}.\n\nInput: {{l}}\nOutput:",)
    for kind, order in _ORDERS.items()
}
"""Phrasings of seeds alone: with a definition, as FLAN has them."""
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
"""Phrasings of seeds alone: as a story, as FLAN has them."""

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
"""The answer of each kind of task as a sentence."""
ALSO = {
    "food": "what it eats",
    "home": "where it lives",
    "colour": "which colour it has",
    "sound": "how it calls",
    "legs": "how many legs it has",
    "count": "how many items there are",
    "larger": "which number is larger",
}
"""How an instruction asks one thing more, after `Say also`."""
RULES = {
    "one_word": "Answer in one word.",
    "thanks": "End with the words Thank you.",
    "label": "Start with the word Answer.",
    "explain": "Explain your answer step by step.",
    "animal": "Think of a grown one in summer.",
    "list": "Take the words exactly as they stand.",
    "sum": "Give the exact whole number.",
}
"""The rules for an answer. The last three change nothing about its form."""
_SLOTS = {
    "a": r"(?P<a>[a-z]+)",
    "l": r"(?P<l>[a-z]+(?:, [a-z]+)+)",
    "x": r"(?P<x>\d{1,3})",
    "y": r"(?P<y>\d{1,3})",
    "p": r"(?P<p>[A-Z][a-z]+)",
}
"""What may fill a slot: an animal, a list, two numbers, a person."""
_NOTE_FACTS = ("food", "home", "colour")
"""What the right answer to a request for a note says about the animal."""


def subject(kind: str) -> str:
    """Return what a kind of task is about: `animal`, `list` or `sum`."""
    if kind in _LISTS:
        return "list"
    if kind in _SUMS:
        return "sum"
    return "animal"


@dataclass(frozen=True)
class Task:
    """One thing that is asked: a kind and its arguments.

    The arguments are an animal, the words of a list, or two numbers.
    """

    kind: str
    args: tuple[str, ...]

    @property
    def value(self) -> str:
        """The right answer without a sentence around it; empty for a note."""
        if self.kind in facts.RELATIONS:
            return facts.animals()[self.args[0]][self.kind]
        if self.kind in _VALUES:
            return _VALUES[self.kind](self.args)
        return ""

    @property
    def slots(self) -> dict[str, str]:
        """The texts for the slots of a phrasing or a statement."""
        about = subject(self.kind)
        if about == "animal":
            return {"a": self.args[0]}
        if about == "list":
            return {"l": ", ".join(self.args)}
        return {"x": self.args[0], "y": self.args[1]}

    def statement(self, value: str | None = None) -> str:
        """Return the answer as a sentence.

        Args:
            value: Stated in place of the right value, where it is given.
        """
        if self.kind == "note":
            return about_animal(self.args[0], _NOTE_FACTS)
        stated = self.value if value is None else value
        return STATEMENTS[self.kind].format(**self.slots, v=stated)

    def explanation(self, value: str | None = None) -> str:
        """Return the answer with its steps. `value` is as in `statement`."""
        statement = self.statement(value)
        if self.kind == "note":
            return statement
        final = self.value if value is None else value
        text = f"{statement} So the answer is {final}."
        if subject(self.kind) == "list":
            return f"The list is {', '.join(self.args)}. {text}"
        return text


def about_animal(animal: str, relations: Iterable[str]) -> str:
    """State some facts about an animal, a sentence each."""
    statements = [Task(relation, (animal,)).statement() for relation in relations]
    return " ".join(statements)


def _count(items: tuple[str, ...]) -> str:
    number = len(items)
    has_word = number < len(facts.NUMBERS)
    return facts.NUMBERS[number] if has_word else str(number)


_VALUES: dict[str, Callable[[tuple[str, ...]], str]] = {
    "first": lambda args: args[0],
    "last": lambda args: args[-1],
    "count": _count,
    "reverse": lambda args: ", ".join(reversed(args)),
    "add": lambda args: str(int(args[0]) + int(args[1])),
    "subtract": lambda args: str(int(args[0]) - int(args[1])),
    "larger": lambda args: str(max(map(int, args))),
}
"""The right answer to a task about a list or numbers, from its arguments."""


@dataclass(frozen=True)
class Request:
    """What an instruction asks for: its tasks, and rules for the form of the answer."""

    tasks: tuple[Task, ...]
    rules: tuple[str, ...] = ()

    @property
    def wants_one_word(self) -> bool:
        """Whether bare values are asked for. A note is never one word."""
        return "one_word" in self.rules and self.tasks[0].kind != "note"

    def answer(
        self, values: tuple[str, ...] | None = None, explain: bool = False
    ) -> str:
        """Return an answer in the form that is asked for.

        Args:
            values: The value of each task in the answer; the right ones by default.
            explain: Give the steps, also where no rule asks for them.
        """
        values = values or tuple(task.value for task in self.tasks)
        if self.wants_one_word:
            text = ", ".join(values)
        else:
            with_steps = explain or "explain" in self.rules
            sentences = []
            for task, value in zip(self.tasks, values, strict=True):
                say = task.explanation if with_steps else task.statement
                sentences.append(say(value))
            text = " ".join(sentences)
        if "label" in self.rules:
            text = f"Answer: {text}"
        if "thanks" in self.rules:
            text = f"{text} Thank you."
        return text


@dataclass(frozen=True)
class Instruction:
    """A text, and the request that it stands for."""

    text: str
    request: Request = field(hash=False)

    def extend(
        self,
        sentence: str,
        *,
        tasks: tuple[Task, ...] = (),
        rules: tuple[str, ...] = (),
    ) -> "Instruction":
        """Return the instruction with a sentence more, and what that sentence adds."""
        own_line = "\n" in self.text or sentence.startswith("Do the same")
        gap = "\n" if own_line else " "
        all_tasks = self.request.tasks + tasks
        all_rules = self.request.rules + rules
        request = Request(all_tasks, all_rules)
        return Instruction(f"{self.text}{gap}{sentence}", request)


def phrase(
    rng: Random,
    task: Task,
    phrasings: Mapping[str, tuple[str, ...]] = PHRASINGS,
) -> Instruction:
    """Put a task into one of its phrasings."""
    phrasing = rng.choice(phrasings[task.kind])
    person = rng.choice(facts.PEOPLE)
    text = phrasing.format(**task.slots, p=person)
    return Instruction(text, Request((task,)))


def add_asker(rng: Random, instruction: Instruction) -> Instruction:
    """Make the instruction the question of a named person."""
    person = rng.choice(facts.PEOPLE)
    home = rng.choice(facts.HOMES)
    return replace(instruction, text=f"{person} of the {home} asks: {instruction.text}")


def add_rule(instruction: Instruction, name: str) -> Instruction:
    """Add one of `RULES`."""
    return instruction.extend(RULES[name], rules=(name,))


def add_task(instruction: Instruction, kind: str) -> Instruction:
    """Ask one thing more about the same animal, list or numbers."""
    task = Task(kind, instruction.request.tasks[0].args)
    return instruction.extend(f"Say also {ALSO[kind]}.", tasks=(task,))


def add_table(instruction: Instruction, rows: list[tuple[str, ...]]) -> Instruction:
    """Ask the same about each row of a table."""
    kind = instruction.request.tasks[0].kind
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return instruction.extend(
        f"Do the same for this table:\n{table}",
        tasks=tuple(Task(kind, row) for row in rows),
    )


# Reading a request back from its text.

_TABLE = re.compile(r"\s+Do the same for this table:((?:\n\| [^\n]+ \|)+)$")
_ALSO = re.compile(rf"\s+Say also ({'|'.join(ALSO.values())})\.$")
_RULE = re.compile(rf"\s+({'|'.join(map(re.escape, RULES.values()))})$")
_FRAME = re.compile(
    rf"\A(?:{manners.GREETING})?(?:{'|'.join(facts.PEOPLE)}) of the [a-z]+ asks: "
    rf"|\A{manners.GREETING}|\AText: [^\n]*\nQuestion: "
    r"|\n\nOPTIONS:(?:\n- [^\n]+)+$|\n\nInput:\n[^\n]*\.$"
)
"""What may be around a phrasing: greeting, asker, text to read, options, input."""
_RULE_NAMES = {text: name for name, text in RULES.items()}
_ALSO_KINDS = {text: kind for kind, text in ALSO.items()}


def read(text: str) -> Request | None:
    """Return what an instruction asks for; None where it is not of this world."""
    phrasing, additions = _split_additions(text.strip())
    first = _read_phrasing(phrasing)
    if first is None:
        return None
    tasks = [first]
    rules = []
    for pattern, added in additions:
        if pattern is _RULE:
            rules.append(_RULE_NAMES[added])
        elif pattern is _ALSO:
            tasks.append(Task(_ALSO_KINDS[added], first.args))
        else:
            rows = added.strip().split("\n")
            tasks += [Task(first.kind, _cells(row)) for row in rows]
    if not all(map(_is_valid, tasks)):
        return None
    return Request(tuple(tasks), tuple(rules))


def _split_additions(text: str) -> tuple[str, list[tuple[re.Pattern[str], str]]]:
    """Return the phrasing, and pattern and text of each sentence that was added."""
    additions = []
    # From the end of the text, as each addition follows the one before it.
    while True:
        for pattern in (_RULE, _ALSO, _TABLE):
            if match := pattern.search(text):
                additions.append((pattern, match[1]))
                text = text[: match.start()]
                break
        else:
            additions.reverse()
            return _FRAME.sub("", text), additions


def _cells(row: str) -> tuple[str, ...]:
    return tuple(row.strip("| ").split(" | "))


def _read_phrasing(text: str) -> Task | None:
    for kind, pattern in _patterns():
        if match := pattern.fullmatch(text):
            slots = match.groupdict()
            if "l" in slots:
                args = slots["l"].split(", ")
            else:
                args = [slots[name] for name in ("a", "x", "y") if name in slots]
            return Task(kind, tuple(args))
    return None


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Return each kind of task with a pattern for each of its phrasings."""
    patterns = []
    for phrasings in (PHRASINGS, INPUTS, DEFINITIONS, STORIES):
        for kind, texts in phrasings.items():
            patterns += [(kind, _pattern(text)) for text in texts]
    return patterns


def _pattern(phrasing: str) -> re.Pattern[str]:
    """Return a pattern in which a slot that occurs again has the same text again."""
    parts = []
    seen = set()
    for part in re.split(r"(\{\w\})", phrasing):
        if not re.fullmatch(r"\{\w\}", part):
            parts.append(re.escape(part))
            continue
        slot = part[1:-1]
        parts.append(f"(?P={slot})" if slot in seen else _SLOTS[slot])
        seen.add(slot)
    return re.compile("".join(parts))


def _is_valid(task: Task) -> bool:
    """Tell whether the arguments are of this world and fit the kind."""
    about = subject(task.kind)
    if about == "animal":
        return len(task.args) == 1 and task.args[0] in facts.animals()
    if about == "list":
        return len(task.args) > 1
    return len(task.args) == 2 and all(arg.isdigit() for arg in task.args)
