"""Random tasks and instructions of the embedded world; every draw comes from the generator that is handed in."""

import random

from bezoar_ray.tiny import facts, tasks
from bezoar_ray.tiny.tasks import Asked, Task

KINDS = {
    "food": 9,
    "home": 9,
    "colour": 9,
    "sound": 9,
    "legs": 9,
    "first": 6,
    "last": 6,
    "count": 6,
    "reverse": 2,
    "add": 4,
    "subtract": 3,
    "larger": 4,
    "note": 4,
}
LONG = ("note", "reverse")  # no one word answers these
OPERATIONS = (
    "constraints",
    "deepen",
    "concretise",
    "reasoning",
    "complicate_input",
    "breadth",
)


def kind(rng: random.Random, among: tuple[str, ...] = tuple(KINDS)) -> str:
    """A kind of task, by weight."""
    return rng.choices(among, [KINDS[name] for name in among])[0]


def args(rng: random.Random, name: str) -> tuple[str, ...]:
    """Arguments for a kind of task, none of them kept for the held-out items."""
    where = tasks.family(name)
    if where == "animal":
        return (rng.choice(facts.known()),)
    return items(rng, name) if where == "list" else numbers(rng, name)


def items(rng: random.Random, name: str) -> tuple[str, ...]:
    """A list that is not kept."""
    while facts.kept_list(
        found := tuple(
            rng.sample(facts.ITEMS, 3 if name == "reverse" else rng.randint(3, 4))
        )
    ):
        pass
    return found


def numbers(rng: random.Random, name: str) -> tuple[str, str]:
    """Two numbers for a sum that is not kept."""
    while True:
        x, y = rng.randint(1, facts.LARGEST), rng.randint(1, facts.LARGEST)
        x = x + y if name == "subtract" else x
        if (name, x, y) not in facts.kept_sums() and (name != "larger" or x != y):
            return str(x), str(y)


def task(rng: random.Random, among: tuple[str, ...] = tuple(KINDS)) -> Task:
    """A random task."""
    name = kind(rng, among)
    return Task(name, args(rng, name))


def question(rng: random.Random, among: tuple[str, ...] = tuple(KINDS)) -> Asked:
    """A random task in a wording: mostly as somebody's question."""
    asked = tasks.ask(rng, task(rng, among))
    return tasks.by_somebody(rng, asked) if rng.random() < 0.75 else asked


def instruction(rng: random.Random) -> Asked:
    """A random instruction as LaMini's new ones should be: mostly without, sometimes with a rule or a second wish."""
    asked = question(rng)
    chance = rng.random()
    if chance < 0.25 and asked.request.tasks[0].kind not in LONG:
        return tasks.rule(asked, "one_word")
    return evolve(rng, rng.choice(OPERATIONS[:4]), asked) if chance < 0.4 else asked


def evolve(rng: random.Random, operation: str, asked: Asked) -> Asked:
    """The instruction after one of Evol-Instruct's operations."""
    first = asked.request.tasks[0]
    where = tasks.family(first.kind)
    if operation == "breadth":
        return question(
            rng, tuple(name for name in KINDS if tasks.family(name) == where)
        )
    if operation == "constraints":
        return tasks.rule(
            asked,
            rng.choice(
                ("thanks", "label")
                if first.kind in LONG
                else ("one_word", "thanks", "label")
            ),
        )
    if operation == "deepen":
        more = {
            "animal": tuple(facts.RELATIONS),
            "list": ("count",),
            "sum": ("larger",),
        }[where]
        return tasks.also(
            asked, rng.choice([name for name in more if name != first.kind] or more)
        )
    if operation == "complicate_input":
        return tasks.same(asked, [args(rng, first.kind)])
    return tasks.rule(asked, "explain" if operation == "reasoning" else where)
