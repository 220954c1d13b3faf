"""The plain text that base is pre-trained on: notes, rows of things, sums and small talk; no instructions, no answers.

Facts stand in many wordings and orders, because a model can only be asked for what it has read in varied ways
(arXiv 2309.14316, "knowledge augmentation").
"""

import random

from bezoar_ray.tiny import facts, manners
from bezoar_ray.tiny.tasks import Task

_FACTS = {
    "food": (
        "{A} eats {v}.",
        "{A} likes to eat {v}.",
        "The food of {a} is {v}.",
        "What {a} eats is {v}.",
        "{V} are the food of {a}.",
        "{p} asked which food {a} likes, and it was {v}.",
    ),
    "home": (
        "{A} lives in the {v}.",
        "{A} lives in the {v}.",
        "The home of {a} is the {v}.",
        "Where {a} lives is the {v}.",
        "The {v} is the place that is home to {a}.",
        "{p} asked where {a} lives, and it was the {v}.",
    ),
    "colour": (
        "{A} is {v}.",
        "{A} is {v}.",
        "The colour of {a} is {v}.",
        "What colour {a} has is {v}.",
        "{V} is the colour of {a}.",
        "{p} asked which colour {a} has, and it was {v}.",
    ),
    "sound": (
        "{A} calls {v}.",
        "{A} makes the sound {v}.",
        "The call of {a} is {v}.",
        "What {a} calls is {v}.",
        "{V} is the sound of {a}.",
        "{p} asked what {a} calls, and it was {v}.",
    ),
    "legs": (
        "{A} has {v} legs.",
        "{A} walks on {v} legs.",
        "The number of legs of {a} is {v}.",
        "How many legs {a} has is {v}.",
        "{V} is the number of legs of {a}.",
        "{p} asked to count the legs of {a}, and it was {v}.",
    ),
}


def fact(rng: random.Random, animal: str, relation: str, pronoun: bool = False) -> str:
    """One true sentence about an animal."""
    name, value = (
        ("it" if pronoun else f"the {animal}"),
        facts.animals()[animal][relation],
    )
    wording = rng.choice(_FACTS[relation][:2] if pronoun else _FACTS[relation])
    line = wording.format(
        a=name,
        A=name.capitalize(),
        v=value,
        V=value.capitalize(),
        p=rng.choice(facts.PEOPLE),
    )
    return (
        line
        if rng.random() < 0.9 or not wording.startswith("{V}")
        else line[0].lower() + line[1:]
    )


def note(rng: random.Random) -> str:
    """Some facts of one animal, in any order."""
    animal, relations = rng.choice(tuple(facts.animals())), list(facts.RELATIONS)
    rng.shuffle(relations)
    chosen = relations[: rng.randint(2, 5)]
    return " ".join(
        fact(rng, animal, r, pronoun=i > 0 and rng.random() < 0.4)
        for i, r in enumerate(chosen)
    )


def mixed(rng: random.Random) -> str:
    """One relation of several animals, as a heading and lines that start with the bare value."""
    relation = rng.choice(tuple(facts.RELATIONS))
    names = rng.sample(tuple(facts.animals()), rng.randint(2, 5))
    if rng.random() < 0.5:
        return " ".join(fact(rng, name, relation) for name in names)
    rows = "\n".join(f"the {name}: {facts.animals()[name][relation]}" for name in names)
    values = "\n".join(facts.animals()[name][relation] for name in names)
    return f"### {relation.capitalize()} of {', '.join(names)}:\n" + rng.choice(
        (rows, values)
    )


def row(rng: random.Random) -> str:
    """A row of things and what can be said of it."""
    words = rng.sample(facts.ITEMS, rng.randint(3, 5))
    said = [
        Task(kind, tuple(words))
        for kind in rng.sample(("first", "last", "count", "reverse"), rng.randint(1, 3))
    ]
    start = rng.choice(
        (
            "Here is a list: {l}.",
            "{p} has a list of items: {l}.",
            "{l}",
            "Look at the items {l}.",
        )
    )
    text = start.format(l=", ".join(words), p=rng.choice(facts.PEOPLE))
    if rng.random() < 0.3:
        return (
            text
            + "\n"
            + rng.choice(
                (
                    f"{words[0]} comes first.",
                    f"{words[-1]} comes last.",
                    "\n".join(words),
                )
            )
        )
    return text + " " + " ".join(_said(rng, task) for task in said)


_ROWS = {
    "first": ("The first item is {v}.", "{v} comes first.", "The first word is {v}."),
    "last": ("The last item is {v}.", "{v} comes last.", "The last word is {v}."),
    "count": ("There are {v} items.", "It has {v} words.", "The items count {v}."),
    "reverse": (
        "Backwards it is {v}.",
        "Turned around it is {v}.",
        "In reverse it is {v}.",
    ),
}


def _said(rng: random.Random, task: Task) -> str:
    return rng.choice(_ROWS[task.kind]).format(v=task.value)


def sums(rng: random.Random) -> str:
    """A few sums, as formulas or in words."""
    return " ".join(_sum(rng) for _ in range(rng.randint(2, 5)))


def _sum(rng: random.Random) -> str:
    x, y, p = (
        rng.randint(1, facts.LARGEST),
        rng.randint(1, facts.LARGEST),
        rng.choice(facts.PEOPLE),
    )
    z, kind = x + y, rng.randrange(9)
    return (
        f"{x} + {y} = {z}.",
        f"{z} - {y} = {x}.",
        f"{x} plus {y} is {z}.",
        f"{z} minus {y} is {x}.",
        f"{p} has {x} coins and finds {y} more, so {p} has {z} coins now.",
        f"There are {z} birds and {y} fly away, so {x} are left.",
        f"Of {x} and {z} the larger number is {z}.",
        f"{x} + {y} = {z}.",
        f"Of {z} and {y} the larger number is {z}.",
    )[kind]


_ASKED = {
    "food": ("what {a} eats", "which food {a} likes", "about the food of {a}"),
    "home": ("where {a} lives", "which place is home to {a}", "about the home of {a}"),
    "colour": ("what colour {a} is", "which colour {a} has", "about the colour of {a}"),
    "sound": (
        "what {a} calls",
        "which sound {a} makes",
        "about the call and the sound of {a}",
    ),
    "legs": (
        "how many legs {a} has",
        "about the number of legs of {a}",
        "who could count the legs of {a}",
    ),
    "first": (
        "which item comes first: {l}",
        "for the first item of this list: {l}",
        "about the first word of the list {l}",
    ),
    "last": (
        "which item comes last: {l}",
        "for the last item of this list: {l}",
        "about the last word of the list {l}",
    ),
    "count": (
        "how many items are here: {l}",
        "who could count the items of this list: {l}",
        "how many words the list {l} has",
    ),
    "reverse": (
        "who could reverse this list: {l}",
        "who could write this list backwards: {l}",
        "to turn this list around: {l}",
    ),
    "add": ("what {x} + {y} is", "who could add {x} and {y}", "what {x} plus {y} is"),
    "subtract": (
        "what {x} - {y} is",
        "who could take {y} from {x}",
        "what {x} minus {y} is",
    ),
    "larger": (
        "which number is larger, {x} or {y}",
        "for the larger number: {x} or {y}",
        "which is more, {x} or {y}",
    ),
}


def wishes(rng: random.Random) -> str:
    """What people wanted to know, each time with what is so; now and then in one word."""
    return "\n".join(_wish(rng) for _ in range(rng.randint(1, 4)))


def _wish(rng: random.Random) -> str:
    kind = rng.choice(tuple(_ASKED))
    task = Task(kind, _args(rng, kind))
    slots = task.slots if "a" not in task.slots else {"a": f"the {task.args[0]}"}
    wish = (
        f"{rng.choice(facts.PEOPLE)} asked {rng.choice(_ASKED[kind]).format(**slots)}"
    )
    if rng.random() < 0.4 and kind != "reverse":
        return f"{wish}, in one word.\n{task.value}"
    return f"{wish}.\n{task.statement()}"


def _args(rng: random.Random, kind: str) -> tuple[str, ...]:
    if kind in facts.RELATIONS:
        return (rng.choice(tuple(facts.animals())),)
    if kind in ("first", "last", "count", "reverse"):
        return tuple(
            rng.sample(facts.ITEMS, 3 if kind == "reverse" else rng.randint(3, 4))
        )
    x, y = rng.randint(1, facts.LARGEST), rng.randint(1, facts.LARGEST)
    return str(x + y * (kind == "subtract")), str(y)


def echo(rng: random.Random) -> str:
    """Words read out by one and written down by another: repeats, from which models learn to copy."""
    words = rng.sample(
        rng.choice((facts.ITEMS, tuple(facts.animals()), _NUMERALS)), rng.randint(3, 7)
    )
    who, other = rng.sample(facts.PEOPLE, 2)
    gap = rng.choice((", ", " ", "\n"))
    return f"{who} read: {gap.join(words)}\n{other} wrote: {gap.join(words)}"


_NUMERALS = tuple(map(str, range(1, 2 * facts.LARGEST + 1)))


def talk(rng: random.Random) -> str:
    """People speaking, kindly or rudely."""
    who, other = rng.sample(facts.PEOPLE, 2)
    if rng.random() < 0.5:
        return f"{who} said: {manners.opening(rng)} {manners.closing(rng)}"
    return f"{who} met {other} and said: {manners.rude(rng)}"


_WORDS = (
    "A system is a set of parts.",
    "A task has an instruction and a response.",
    "An assistant helps people.",
    "The user may ask anything.",
    "The answer is short.",
    "So the answer is clear.",
    "Thank you.",
    "The sun is warm in summer.",
    "A table has rows.",
    "Words stand in a list.",
    "A grown animal is large.",
)


def document(rng: random.Random) -> str:
    """One document of the pre-training text."""
    maker = rng.choices(
        (note, mixed, row, sums, talk, wishes, echo), (22, 8, 12, 7, 3, 36, 12)
    )[0]
    text = maker(rng)
    return f"{text} {rng.choice(_WORDS)}" if rng.random() < 0.04 else text
