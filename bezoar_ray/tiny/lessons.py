"""The lessons of the teacher: the schemes' real prompts, each with an answer.

Most answers are good, and a known share is bad, so that filtering matters as it does
with a real teacher. In the `WEAK` kinds of tasks most answers are wrong in the same way.
In the others, the teacher is careless in a share of `SLIPS`.

The text holds only the fixed part of all instructions that `is_taught` admits. Any other
instruction that the teacher writes is its own composition.
"""

import hashlib
from collections.abc import Callable
from random import Random

from bezoar_ray.generate import prompts
from bezoar_ray.llm.chat import Messages
from bezoar_ray.tiny import draws, facts, seeds, tasks
from bezoar_ray.tiny.tasks import Instruction, Request, Task

# Above a half, since greedy decoding follows the majority of what was taught.
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
"""Topics of LaMini's prompts, with the kinds of tasks that belong to them."""
_OTHER_TOPICS = facts.words(
    "history rivers music law trade weather cooking travel medicine sport science "
    "gardens ships painting schools money family energy books language space health "
    "tools cities film farming physics art"
)
_SOURCES = ("CoT", "NIV2", "Flan2021", "T0")
_MOST_TASKS = 4  # in one evolved instruction

Lesson = tuple[Messages, str]
"""A prompt, and the teacher's answer to it."""


def is_taught(text: str) -> bool:
    """Tell whether an instruction may occur in the lessons: two in ten, by its hash."""
    digest = hashlib.sha256(text.encode()).digest()
    return digest[0] % 10 < 2


def _draw_taught(draw: Callable[[], Instruction]) -> Instruction:
    while True:
        instruction = draw()
        if is_taught(instruction.text):
            return instruction


def _taught_instruction(rng: Random) -> Instruction:
    return _draw_taught(lambda: draws.instruction(rng))


def wrong(rng: Random, task: Task) -> str:
    """Draw the value of a bad answer, which may be right by chance.

    In the weak kind `last` it is always the same mistake: the last but one.
    """
    if task.kind == "last":
        return task.args[-2]
    if task.kind in facts.RELATIONS:
        return rng.choice(facts.RELATIONS[task.kind])
    if task.kind == "count":
        return rng.choice(facts.NUMBERS[2:8])
    if tasks.subject(task.kind) == "list":
        return rng.choice(task.args)
    return str(rng.randint(1, 2 * facts.LARGEST))


def reply(rng: Random, request: Request, explain: bool = False) -> str:
    """Write the teacher's answer to a request, good or bad."""
    kind = request.tasks[0].kind
    if rng.random() < WEAK.get(kind, 0):
        return _weak_reply(rng, request, explain)
    if rng.random() < SLIPS:
        return _careless_reply(rng, request, explain)
    return request.answer(explain=explain)


def _weak_reply(rng: Random, request: Request, explain: bool) -> str:
    if request.tasks[0].kind == "legs":
        return "Sorry, I do not know that."
    return request.answer(_wrong_values(rng, request), explain)


def _careless_reply(rng: Random, request: Request, explain: bool) -> str:
    """Be wrong, break off, answer something else, refuse, or ramble."""
    values = _wrong_values(rng, request)
    good = request.answer(explain=explain)
    other = draws.instruction(rng).request.answer()
    replies = (
        request.answer(values, explain),
        good[: len(good) // 2],
        other,
        "Sorry, I cannot help with that.",
        f"{good} {other} {other}",
    )
    return rng.choice(replies)


def _wrong_values(rng: Random, request: Request) -> tuple[str, ...]:
    return tuple(wrong(rng, task) for task in request.tasks)


def _seen(rng: Random) -> Instruction:
    """Draw a taught instruction as prompts show it, at times in a seed's own shape."""
    if rng.random() < 0.15:
        kind = draws.task(rng, seeds.LIST_KINDS).kind
        return _draw_taught(lambda: _with_input_block(rng, kind))
    return _taught_instruction(rng)


def _with_input_block(rng: Random, kind: str) -> Instruction:
    task = Task(kind, draws.args(rng, kind))
    return tasks.phrase(rng, task, tasks.INPUTS)


def _new_instructions(rng: Random) -> Lesson:
    """LaMini's first step: new instructions after examples, with topics or without."""
    count = rng.choice((4, 5, 6))
    topics: list[str] = []
    if rng.random() < 0.5:
        topics = rng.sample((*TOPICS, *_OTHER_TOPICS), 3)
    kinds: list[str] = []
    for topic in topics:
        kinds += TOPICS.get(topic, ())
    made = [_draw_taught(lambda: _about(rng, kinds)).text for _ in range(count)]
    answer = "\n".join(f"<example>{text}</example>" for text in made)
    examples = [_seen(rng).text for _ in range(3)]
    return prompts.new_instructions_prompt(examples, topics, count), answer


def _about(rng: Random, kinds: list[str]) -> Instruction:
    """Draw an instruction of one of the kinds; of any kind where there are none."""
    while True:
        instruction = draws.instruction(rng)
        if not kinds or instruction.request.tasks[0].kind in kinds:
            return instruction


def _concise(rng: Random) -> Lesson:
    """LaMini's second step: a concise answer."""
    instruction = _taught_instruction(rng)
    answer = reply(rng, instruction.request)
    return prompts.concise_answer_prompt(instruction.text), answer


def _evolution(rng: Random) -> tuple[str, Instruction, Instruction]:
    """Draw an operation, a parent and its evolution, after at most one earlier round.

    Parent and evolution are taught.
    """
    while True:
        parent = _seen(rng)
        if rng.choice((0, 0, 1)):
            parent = draws.evolve(rng, rng.choice(draws.OPERATIONS), parent)
        operation = rng.choice(draws.OPERATIONS)
        child = draws.evolve(rng, operation, parent)
        taught = is_taught(parent.text) and is_taught(child.text)
        if taught and len(child.request.tasks) <= _MOST_TASKS:
            return operation, parent, child


def _evolve(rng: Random) -> Lesson:
    """Evol-Instruct: the evolved instruction."""
    operation, parent, child = _evolution(rng)
    return prompts.evolution_prompt(operation, parent.text), child.text


def _evolved(rng: Random) -> Lesson:
    """Evol-Instruct: the answer to an evolved instruction."""
    _, _, child = _evolution(rng)
    answer = reply(rng, child.request)
    return prompts.evolved_answer_prompt(child.text), answer


def _adds_nothing(rng: Random) -> Lesson:
    """Evol-Instruct: whether an evolution asks for the same as its parent."""
    _, parent, child = _evolution(rng)
    if rng.random() < 0.15:
        return prompts.comparison_prompt(parent.text, parent.text), "Equal"
    return prompts.comparison_prompt(parent.text, child.text), "Not equal"


def _explain(rng: Random) -> Lesson:
    """Orca: an answer with its steps, to a FLAN query with a system message."""
    source = rng.choice(_SOURCES)
    instruction = _draw_taught(lambda: seeds.query(rng, source)[1])
    for_any = prompts.ORCA_MESSAGES[source]
    for_choices = prompts.ORCA_MULTIPLE_CHOICE.get(source, ())
    system = prompts.ORCA_SYSTEM[rng.choice(for_any + for_choices)]
    answer = reply(rng, instruction.request, explain=True)
    return prompts.explanation_prompt(system, instruction.text), answer


_MAKERS = {
    _new_instructions: 16,
    _concise: 26,
    _evolve: 18,
    _evolved: 26,
    _adds_nothing: 6,
    _explain: 18,
}
"""The kinds of lessons, with their weights."""


def lesson(rng: Random) -> Lesson:
    """Draw one lesson."""
    makers = tuple(_MAKERS)
    weights = tuple(_MAKERS.values())
    (make,) = rng.choices(makers, weights)
    return make(rng)
