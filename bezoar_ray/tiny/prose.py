"""The plain text that base is pre-trained on.

It has notes, lists, sums and small talk, but no instructions and no answers. Facts occur
in many wordings and orders, because a model can only be asked for what it has read in
varied ways (arXiv 2309.14316, "knowledge augmentation").
"""

from random import Random

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
"""Sentences with words of the prompts and answers."""


def fact(rng: Random, animal: str, relation: str, pronoun: bool = False) -> str:
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


def note(rng: Random) -> str:
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


def mixed(rng: Random) -> str:
    """Write one relation of several animals: as sentences, or under a heading."""
    relation = rng.choice(tuple(facts.RELATIONS))
    count = rng.randint(2, 5)
    animals = rng.sample(tuple(facts.animals()), count)
    if rng.random() < 0.5:
        return " ".join(fact(rng, animal, relation) for animal in animals)
    values = [facts.animals()[animal][relation] for animal in animals]
    rows = [
        f"the {animal}: {value}" for animal, value in zip(animals, values, strict=True)
    ]
    heading = f"### {relation.capitalize()} of {', '.join(animals)}:"
    return heading + "\n" + "\n".join(rng.choice((rows, values)))


def row(rng: Random) -> str:
    """Write a list of things, and remarks on it."""
    length = rng.randint(3, 5)
    items = rng.sample(facts.ITEMS, length)
    remarks = rng.randint(1, 3)
    kinds = rng.sample(tuple(_LIST_REMARKS), remarks)
    start = rng.choice(_LIST_STARTS)
    person = rng.choice(facts.PEOPLE)
    text = start.format(l=", ".join(items), p=person)
    if rng.random() < 0.3:
        endings = (
            f"{items[0]} comes first.",
            f"{items[-1]} comes last.",
            "\n".join(items),
        )
        return text + "\n" + rng.choice(endings)
    for kind in kinds:
        remark = rng.choice(_LIST_REMARKS[kind])
        value = Task(kind, tuple(items)).value
        text += " " + remark.format(v=value)
    return text


def sums(rng: Random) -> str:
    """Write a few sums, as formulas or in words."""
    count = rng.randint(2, 5)
    return " ".join(_sum(rng) for _ in range(count))


def _sum(rng: Random) -> str:
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


def wishes(rng: Random) -> str:
    """Write what people asked, each time with the answer, at times in one word."""
    count = rng.randint(1, 4)
    return "\n".join(_wish(rng) for _ in range(count))


def _wish(rng: Random) -> str:
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


def _args(rng: Random, kind: str) -> tuple[str, ...]:
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


def echo(rng: Random) -> str:
    """Write words twice: from repeats, models learn to copy."""
    vocabularies = (facts.ITEMS, tuple(facts.animals()), _NUMERALS)
    vocabulary = rng.choice(vocabularies)
    count = rng.randint(3, 7)
    words = rng.sample(vocabulary, count)
    reader, writer = rng.sample(facts.PEOPLE, 2)
    gap = rng.choice((", ", " ", "\n"))
    text = gap.join(words)
    return f"{reader} read: {text}\n{writer} wrote: {text}"


def talk(rng: Random) -> str:
    """Write what people say to each other, kindly or rudely."""
    speaker, other = rng.sample(facts.PEOPLE, 2)
    if rng.random() < 0.5:
        return f"{speaker} said: {manners.opening(rng)} {manners.closing(rng)}"
    return f"{speaker} met {other} and said: {manners.rude(rng)}"


_MAKERS = {
    note: 22,
    mixed: 8,
    row: 12,
    sums: 7,
    talk: 3,
    wishes: 36,
    echo: 12,
}
"""The kinds of documents, with their weights."""


def document(rng: Random) -> str:
    """Draw one document of the pre-training text."""
    makers = tuple(_MAKERS)
    weights = tuple(_MAKERS.values())
    (make,) = rng.choices(makers, weights)
    text = make(rng)
    if rng.random() < 0.04:
        text = f"{text} {rng.choice(_PROMPT_WORDS)}"
    return text
