"""The plain text that base is pre-trained on.

It has notes, lists, sums and small talk, but no instructions and no answers. Facts occur
in many wordings and orders, because a model can only be asked for what it has read in
varied ways (arXiv 2309.14316, "knowledge augmentation").
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
"""Wordings of each fact: `{a}` the animal, `{v}` the value, `{p}` a person.

A wording that starts a sentence with one of them has it as a capital letter.
"""
_LIST_REMARKS = {
    "first": ("The first item is {v}.", "{v} comes first.", "The first word is {v}."),
    "last": ("The last item is {v}.", "{v} comes last.", "The last word is {v}."),
    "count": ("There are {v} items.", "It has {v} words.", "The items count {v}."),
    "reverse": (
        "Backwards it is {v}.",
        "Turned around it is {v}.",
        "In reverse it is {v}.",
    ),
}
_LIST_STARTS = (
    "Here is a list: {l}.",
    "{p} has a list of items: {l}.",
    "{l}",
    "Look at the items {l}.",
)
_WISHES = {
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
"""What people ask for in the text, without a question mark or an order."""
_NUMERALS = tuple(map(str, range(1, 2 * facts.LARGEST + 1)))
_PROMPT_WORDS = (
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
"""Sentences with the words of prompts and answers that occur nowhere else."""


def fact(rng: random.Random, animal: str, relation: str, pronoun: bool = False) -> str:
    """Write one true sentence about an animal."""
    subject = "it" if pronoun else f"the {animal}"
    value = facts.animals()[animal][relation]
    wordings: tuple[str, ...] = _FACTS[relation]
    if pronoun:
        wordings = wordings[:2]  # the others would read "the food of it"
    wording = rng.choice(wordings)
    person = rng.choice(facts.PEOPLE)
    sentence = wording.format(
        a=subject, A=subject.capitalize(), v=value, V=value.capitalize(), p=person
    )
    keep_capital = rng.random() < 0.9
    if wording.startswith("{V}") and not keep_capital:
        return sentence[0].lower() + sentence[1:]
    return sentence


def note(rng: random.Random) -> str:
    """Write some facts about one animal, in random order."""
    animal = rng.choice(tuple(facts.animals()))
    relations = list(facts.RELATIONS)
    rng.shuffle(relations)
    sentences: list[str] = []
    for relation in relations[: rng.randint(2, 5)]:
        # The first sentence names the animal.
        pronoun = bool(sentences) and rng.random() < 0.4
        sentences.append(fact(rng, animal, relation, pronoun))
    return " ".join(sentences)


def mixed(rng: random.Random) -> str:
    """Write one relation of several animals: as sentences, or under a heading."""
    relation = rng.choice(tuple(facts.RELATIONS))
    animals = rng.sample(tuple(facts.animals()), rng.randint(2, 5))
    if rng.random() < 0.5:
        return " ".join(fact(rng, animal, relation) for animal in animals)
    values = [facts.animals()[animal][relation] for animal in animals]
    rows = [
        f"the {animal}: {value}" for animal, value in zip(animals, values, strict=True)
    ]
    heading = f"### {relation.capitalize()} of {', '.join(animals)}:"
    return heading + "\n" + "\n".join(rng.choice((rows, values)))


def row(rng: random.Random) -> str:
    """Write a list of things, and remarks on it."""
    items = rng.sample(facts.ITEMS, rng.randint(3, 5))
    kinds = rng.sample(tuple(_LIST_REMARKS), rng.randint(1, 3))
    start = rng.choice(_LIST_STARTS)
    text = start.format(l=", ".join(items), p=rng.choice(facts.PEOPLE))
    if rng.random() < 0.3:
        endings = (
            f"{items[0]} comes first.",
            f"{items[-1]} comes last.",
            "\n".join(items),
        )
        return text + "\n" + rng.choice(endings)
    for kind in kinds:
        remark = rng.choice(_LIST_REMARKS[kind])
        text += " " + remark.format(v=Task(kind, tuple(items)).value)
    return text


def sums(rng: random.Random) -> str:
    """Write a few sums, as formulas or in words."""
    return " ".join(_sum(rng) for _ in range(rng.randint(2, 5)))


def _sum(rng: random.Random) -> str:
    x = rng.randint(1, facts.LARGEST)
    y = rng.randint(1, facts.LARGEST)
    p = rng.choice(facts.PEOPLE)
    z = x + y
    wordings = (
        f"{x} + {y} = {z}.",
        f"{z} - {y} = {x}.",
        f"{x} plus {y} is {z}.",
        f"{z} minus {y} is {x}.",
        f"{p} has {x} coins and finds {y} more, so {p} has {z} coins now.",
        f"There are {z} birds and {y} fly away, so {x} are left.",
        f"Of {x} and {z} the larger number is {z}.",
        f"{x} + {y} = {z}.",
        f"Of {z} and {y} the larger number is {z}.",
    )
    return wordings[rng.randrange(len(wordings))]


def wishes(rng: random.Random) -> str:
    """Write what people asked, each time with the answer, at times in one word."""
    return "\n".join(_wish(rng) for _ in range(rng.randint(1, 4)))


def _wish(rng: random.Random) -> str:
    kind = rng.choice(tuple(_WISHES))
    task = Task(kind, _args(rng, kind))
    slots = task.slots
    if "a" in slots:
        slots = {"a": f"the {slots['a']}"}
    person = rng.choice(facts.PEOPLE)
    wish = f"{person} asked {rng.choice(_WISHES[kind]).format(**slots)}"
    if rng.random() < 0.4 and kind != "reverse":
        return f"{wish}, in one word.\n{task.value}"
    return f"{wish}.\n{task.statement()}"


def _args(rng: random.Random, kind: str) -> tuple[str, ...]:
    """Draw arguments for a task, held-out ones among them."""
    if kind in facts.RELATIONS:
        return (rng.choice(tuple(facts.animals())),)
    if kind in _LIST_REMARKS:
        length = 3 if kind == "reverse" else rng.randint(3, 4)
        return tuple(rng.sample(facts.ITEMS, length))
    x = rng.randint(1, facts.LARGEST)
    y = rng.randint(1, facts.LARGEST)
    if kind == "subtract":
        x += y  # differences are never negative
    return str(x), str(y)


def echo(rng: random.Random) -> str:
    """Write words twice: from repeats, models learn to copy."""
    vocabularies = (facts.ITEMS, tuple(facts.animals()), _NUMERALS)
    words = rng.sample(rng.choice(vocabularies), rng.randint(3, 7))
    reader, writer = rng.sample(facts.PEOPLE, 2)
    gap = rng.choice((", ", " ", "\n"))
    text = gap.join(words)
    return f"{reader} read: {text}\n{writer} wrote: {text}"


def talk(rng: random.Random) -> str:
    """Write what people say to each other, kindly or rudely."""
    speaker, other = rng.sample(facts.PEOPLE, 2)
    if rng.random() < 0.5:
        return f"{speaker} said: {manners.opening(rng)} {manners.closing(rng)}"
    return f"{speaker} met {other} and said: {manners.rude(rng)}"


_MAKERS = {note: 22, mixed: 8, row: 12, sums: 7, talk: 3, wishes: 36, echo: 12}
"""The kinds of documents, with their weights."""


def document(rng: random.Random) -> str:
    """Draw one document of the pre-training text."""
    (make,) = rng.choices(tuple(_MAKERS), tuple(_MAKERS.values()))
    text = make(rng)
    if rng.random() < 0.04:
        text = f"{text} {rng.choice(_PROMPT_WORDS)}"
    return text
