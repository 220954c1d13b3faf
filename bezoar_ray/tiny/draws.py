"""Random tasks and instructions of the embedded world.

Every draw comes from the generator that is passed in. Nothing drawn here is held out.
"""

from random import Random

from bezoar_ray.tiny import facts, tasks
from bezoar_ray.tiny.tasks import Instruction, Task

_WEIGHTS = {
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
KINDS = tuple(_WEIGHTS)
LONG = ("note", "reverse")
"""Kinds of tasks that no single word answers."""
OPERATIONS = (
    "constraints",
    "deepen",
    "concretise",
    "reasoning",
    "complicate_input",
    "breadth",
)
"""The operations of Evol-Instruct, by the names of the scheme."""
_DEEPER = {
    "animal": tuple(facts.RELATIONS),
    "list": ("count",),
    "sum": ("larger",),
}
"""What can be asked beside a task, by its subject."""


def task(rng: Random, kinds: tuple[str, ...] = KINDS) -> Task:
    """Draw a task of one of the kinds, by their weights."""
    weights = [_WEIGHTS[kind] for kind in kinds]
    (kind,) = rng.choices(kinds, weights)
    return Task(kind, args(rng, kind))


def args(rng: Random, kind: str) -> tuple[str, ...]:
    """Draw arguments for a kind of task."""
    subject = tasks.subject(kind)
    if subject == "animal":
        return (rng.choice(facts.taught_animals()),)
    if subject == "list":
        return _items(rng, kind)
    return _numbers(rng, kind)


def _items(rng: Random, kind: str) -> tuple[str, ...]:
    while True:
        # Short lists: the teacher gets longer ones wrong more often.
        length = 3 if kind == "reverse" else rng.randint(3, 4)
        items = tuple(rng.sample(facts.ITEMS, length))
        if not facts.is_held_out_list(items):
            return items


def _numbers(rng: Random, kind: str) -> tuple[str, str]:
    while True:
        x = rng.randint(1, facts.LARGEST)
        y = rng.randint(1, facts.LARGEST)
        if kind == "subtract":
            x += y  # differences are never negative
        if (kind, x, y) in facts.held_out_sums():
            continue
        if kind == "larger" and x == y:
            continue
        return str(x), str(y)


def question(rng: Random, kinds: tuple[str, ...] = KINDS) -> Instruction:
    """Draw a task in a phrasing, mostly as somebody's question."""
    instruction = tasks.phrase(rng, task(rng, kinds))
    if rng.random() < 0.75:
        return tasks.add_asker(rng, instruction)
    return instruction


def instruction(rng: Random) -> Instruction:
    """Draw an instruction as LaMini's new ones should be.

    Most are a question alone. Some have a rule or a second wish.
    """
    drawn = question(rng)
    chance = rng.random()
    if chance < 0.25 and drawn.request.tasks[0].kind not in LONG:
        return tasks.add_rule(drawn, "one_word")
    if chance < 0.4:
        return evolve(rng, rng.choice(OPERATIONS[:4]), drawn)
    return drawn


def evolve(rng: Random, operation: str, instruction: Instruction) -> Instruction:
    """Return an instruction after one of Evol-Instruct's operations."""
    kind = instruction.request.tasks[0].kind
    subject = tasks.subject(kind)
    if operation == "breadth":
        alike = tuple(other for other in KINDS if tasks.subject(other) == subject)
        return question(rng, alike)
    if operation == "constraints":
        rules = ["one_word", "thanks", "label"]
        if kind in LONG:
            rules.remove("one_word")
        return tasks.add_rule(instruction, rng.choice(rules))
    if operation == "deepen":
        deeper = _DEEPER[subject]
        others = [other for other in deeper if other != kind]
        return tasks.add_task(instruction, rng.choice(others or deeper))
    if operation == "complicate_input":
        return tasks.add_table(instruction, [args(rng, kind)])
    if operation == "reasoning":
        return tasks.add_rule(instruction, "explain")
    return tasks.add_rule(instruction, subject)
