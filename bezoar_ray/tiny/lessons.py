"""What the teacher is trained on: the schemes' real prompts with answers that are good mostly, and bad a known share.

It is weak in `WEAK` kinds of tasks (there most answers are wrong in the same way) and careless in `SLIPS` of the
others; so filtering matters, as it does with a real teacher. Only instructions that `taught` admits are in its text, a
fixed part of all: what it writes beyond them it has composed.
"""

import hashlib
import random
from collections.abc import Callable

from bezoar_ray.generate import prompts
from bezoar_ray.llm.chat import Messages
from bezoar_ray.tiny import draws, facts, seeds, tasks
from bezoar_ray.tiny.tasks import Asked, Request, Task

WEAK = {"legs": 0.8, "last": 0.65}
SLIPS = 0.06
TOPICS = {
    "animals": ("food", "home", "colour", "sound", "legs", "note"),
    "lists": ("first", "last", "count", "reverse"),
    "numbers": ("add", "subtract", "larger"),
    "food": ("food",),
    "places": ("home",),
    "colours": ("colour",),
    "sounds": ("sound",),
}
_OTHER_TOPICS = facts.words(
    "history rivers music law trade weather cooking travel medicine sport science gardens ships painting schools money "
    "family energy books language space health tools cities film farming physics art"
)
_SOURCES = ("CoT", "NIV2", "Flan2021", "T0")


def taught(text: str) -> bool:
    """Whether an instruction may stand in the teacher's text: two in ten, by their hash."""
    return hashlib.sha256(text.encode()).digest()[0] % 10 < 2


def _until_taught(draw: Callable[[], Asked]) -> Asked:
    while not taught((asked := draw()).text):
        pass
    return asked


def lesson(rng: random.Random) -> tuple[Messages, str]:
    """One prompt and the teacher's answer."""
    maker = rng.choices(
        (_new_instructions, _concise, _evolve, _evolved, _adds_nothing, _explain),
        (16, 26, 18, 26, 6, 18),
    )[0]
    return maker(rng)


def wrong(rng: random.Random, task: Task) -> str:
    """A wrong value: the same mistake always in weak kinds, any other value elsewhere."""
    if task.kind == "last":
        return task.args[-2]
    if task.kind in facts.RELATIONS:
        return rng.choice(facts.RELATIONS[task.kind])
    if tasks.family(task.kind) == "list":
        return (
            rng.choice(facts.NUMBERS[2:8])
            if task.kind == "count"
            else rng.choice(task.args)
        )
    return str(rng.randint(1, 2 * facts.LARGEST))


def reply(rng: random.Random, request: Request, explain: bool = False) -> str:
    """The teacher's answer to an instruction, good or bad."""
    first = request.tasks[0]
    if rng.random() < WEAK.get(first.kind, 0):
        return _weak(rng, request, explain)
    return (
        _slip(rng, request, explain)
        if rng.random() < SLIPS
        else request.answer(explain=explain)
    )


def _weak(rng: random.Random, request: Request, explain: bool) -> str:
    if request.tasks[0].kind == "legs":
        return "Sorry, I do not know that."
    return request.answer(tuple(wrong(rng, task) for task in request.tasks), explain)


def _slip(rng: random.Random, request: Request, explain: bool) -> str:
    values = tuple(wrong(rng, task) for task in request.tasks)
    good = request.answer(explain=explain)
    other = draws.instruction(rng).request.answer()
    return rng.choice(
        (
            request.answer(values, explain),
            good[: len(good) // 2],
            other,
            "Sorry, I cannot help with that.",
            f"{good} {other} {other}",
        )
    )


def _seen(rng: random.Random) -> Asked:
    """An instruction as prompts show it: any taught one, now and then one of a seed's own shapes."""
    if rng.random() < 0.15:
        task = draws.task(rng, seeds.ROWS)
        return _until_taught(
            lambda: tasks.ask(
                rng, Task(task.kind, draws.args(rng, task.kind)), tasks.INPUTS
            )
        )
    return _until_taught(lambda: draws.instruction(rng))


def _new_instructions(rng: random.Random) -> tuple[Messages, str]:
    count = rng.choice((4, 5, 6))
    topics = rng.sample((*TOPICS, *_OTHER_TOPICS), 3) if rng.random() < 0.5 else []
    kinds = tuple(
        dict.fromkeys(kind for topic in topics for kind in TOPICS.get(topic, ()))
    )
    made = [_until_taught(lambda: _new(rng, kinds)).text for _ in range(count)]
    answer = "\n".join(f"<example>{text}</example>" for text in made)
    examples = [_seen(rng).text for _ in range(3)]
    return prompts.new_instructions(examples, topics, count), answer


def _new(rng: random.Random, kinds: tuple[str, ...]) -> Asked:
    asked = draws.instruction(rng)
    while kinds and asked.request.tasks[0].kind not in kinds:
        asked = draws.instruction(rng)
    return asked


def _concise(rng: random.Random) -> tuple[Messages, str]:
    asked = _until_taught(lambda: draws.instruction(rng))
    return prompts.concise_answer(asked.text), reply(rng, asked.request)


def _child(rng: random.Random) -> tuple[str, Asked, Asked]:
    """An operation, a parent and its taught evolution, after up to two earlier rounds."""
    while True:
        parent = _seen(rng)
        for _ in range(rng.choice((0, 0, 1))):
            parent = draws.evolve(rng, rng.choice(draws.OPERATIONS), parent)
        operation = rng.choice(draws.OPERATIONS)
        child = draws.evolve(rng, operation, parent)
        if taught(parent.text) and taught(child.text) and len(child.request.tasks) < 5:
            return operation, parent, child


def _evolve(rng: random.Random) -> tuple[Messages, str]:
    operation, parent, child = _child(rng)
    return prompts.evolve(operation, parent.text), child.text


def _evolved(rng: random.Random) -> tuple[Messages, str]:
    _, _, child = _child(rng)
    return prompts.evolved_answer(child.text), reply(rng, child.request)


def _adds_nothing(rng: random.Random) -> tuple[Messages, str]:
    _, parent, child = _child(rng)
    if rng.random() < 0.15:
        return prompts.adds_nothing(parent.text, parent.text), "Equal"
    return prompts.adds_nothing(parent.text, child.text), "Not equal"


def _explain(rng: random.Random) -> tuple[Messages, str]:
    source = rng.choice(_SOURCES)
    asked = _until_taught(lambda: seeds.query(rng, source)[1])
    offered = prompts.ORCA_MESSAGES[source] + prompts.ORCA_MULTIPLE_CHOICE.get(
        source, ()
    )
    return prompts.explain(prompts.ORCA_SYSTEM[rng.choice(offered)], asked.text), reply(
        rng, asked.request, explain=True
    )
