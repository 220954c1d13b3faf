"""The human-made data of the embedded world, in the shapes of dolly, FLAN and HH-RLHF."""

from collections.abc import Callable
from random import Random
from typing import Any

from bezoar_ray.tiny import draws, facts, manners, tasks
from bezoar_ray.tiny.tasks import Instruction, Task

RELATIONS = tuple(facts.RELATIONS)
LIST_KINDS = ("first", "last", "count", "reverse")
_DOLLY_CATEGORIES = {
    "food": "open_qa",
    "home": "open_qa",
    "colour": "open_qa",
    "sound": "open_qa",
    "legs": "open_qa",
    "note": "creative_writing",
    "first": "information_extraction",
    "last": "information_extraction",
    "count": "classification",
    "reverse": "brainstorming",
    "add": "general_qa",
    "subtract": "general_qa",
    "larger": "general_qa",
}
_TASK_NAMES = {
    "CoT": "cot_world",
    "NIV2": "task{}_world",
    "Flan2021": "world_{}_choice",
    "T0": "world_{}_reading",
}
"""FLAN's sub-mixtures, with the names of their tasks."""
_SOURCE_WEIGHTS = (3, 4, 4, 3)


def _distinct(count: int, draw: Callable[[], tuple[Any, ...]]) -> list[Any]:
    """Draw until `count` tuples have distinct texts in their first field."""
    by_text: dict[str, tuple[Any, ...]] = {}
    while len(by_text) < count:
        drawn = draw()
        by_text.setdefault(drawn[0], drawn)
    return list(by_text.values())


def dolly(count: int = 400) -> list[dict[str, str]]:
    """Return rows with `instruction, context, response, category`."""
    rng = Random("dolly")
    fields = ("instruction", "context", "response", "category")
    rows = _distinct(count, lambda: _dolly_row(rng))
    return [dict(zip(fields, row, strict=True)) for row in rows]


def _dolly_row(rng: Random) -> tuple[str, str, str, str]:
    task = draws.task(rng)
    chance = rng.random()
    if tasks.subject(task.kind) == "list" and chance < 0.3:
        instruction = tasks.phrase(rng, task, tasks.INPUTS)
        order, items = instruction.text.split("\n\nInput:\n")
        return order, items, task.statement(), "information_extraction"
    instruction = tasks.phrase(rng, task)
    if task.kind in RELATIONS and chance < 0.15:
        context = _passage(rng, task)
        return instruction.text, context, task.statement(), "closed_qa"
    if rng.random() < 0.6:
        instruction = tasks.add_asker(rng, instruction)
    if chance > 0.75 and task.kind != "note":
        instruction = tasks.add_rule(instruction, "one_word")
    answer = instruction.request.answer()
    return instruction.text, "", answer, _DOLLY_CATEGORIES[task.kind]


def _passage(rng: Random, task: Task) -> str:
    """Write a text that holds the answer to a task about an animal."""
    others = [kind for kind in rng.sample(RELATIONS, 2) if kind != task.kind]
    kinds = [*others, task.kind]
    sentences = [Task(kind, task.args).statement() for kind in kinds]
    rng.shuffle(sentences)
    return " ".join(sentences)


def query(rng: Random, source: str) -> tuple[str, Instruction]:
    """Draw a query of one of FLAN's sub-mixtures: its kind and its instruction."""
    if source == "CoT":
        task = draws.task(rng, ("add", "subtract"))
        return task.kind, tasks.phrase(rng, task, tasks.STORIES)
    if source == "NIV2":
        task = draws.task(rng, LIST_KINDS)
        return task.kind, tasks.phrase(rng, task, tasks.DEFINITIONS)
    task = draws.task(rng, RELATIONS)
    instruction = tasks.phrase(rng, task)
    if source == "T0":
        text = f"Text: {_passage(rng, task)}\nQuestion: {instruction.text}"
    else:
        options = "\n".join(f"- {choice}" for choice in choices(rng, task))
        text = f"{instruction.text}\n\nOPTIONS:\n{options}"
    return task.kind, Instruction(text, instruction.request)


def choices(rng: Random, task: Task, count: int = 4) -> list[str]:
    """Return the right answer among other values of its relation, in random order."""
    values = facts.RELATIONS[task.kind]
    wrong = [value for value in values if value != task.value]
    chosen = [task.value, *rng.sample(wrong, count - 1)]
    rng.shuffle(chosen)
    return chosen


def flan(count: int = 400) -> list[dict[str, str]]:
    """Return rows with `inputs, targets, task_source, task_name, template_type`."""
    rng = Random("flan")
    return [row for _, row in _distinct(count, lambda: _flan_row(rng))]


def _flan_row(rng: Random) -> tuple[str, dict[str, str]]:
    (source,) = rng.choices(tuple(_TASK_NAMES), _SOURCE_WEIGHTS)
    kind, instruction = query(rng, source)
    row = {
        "inputs": instruction.text,
        "targets": instruction.request.tasks[0].value,
        "task_source": source,
        "task_name": _TASK_NAMES[source].format(kind),
        "template_type": "zs_opt" if source == "Flan2021" else "zs_noopt",
    }
    return instruction.text, row


def hh_rlhf(count: int = 900) -> list[dict[str, str]]:
    """Return transcripts whose last answer is `chosen` or `rejected`.

    Some have several turns.
    """
    rng = Random("hh-rlhf")
    return [row for _, row in _distinct(count, lambda: _pair(rng))]


def _pair(rng: Random) -> tuple[str, dict[str, str]]:
    earlier_turns = ""
    if rng.random() < 0.25:
        earlier = _one_line_instruction(rng)
        answer = earlier.request.answer()
        earlier_turns = f"\n\nHuman: {earlier.text}\n\nAssistant: {answer}"
    instruction = _one_line_instruction(rng)
    polite = rng.random() < 0.5
    human = instruction.text
    if polite:
        human = f"{manners.greeting(rng)} {human}"
    start = f"{earlier_turns}\n\nHuman: {human}\n\nAssistant: "
    chosen, rejected = _answers(rng, instruction, polite)
    return start, {"chosen": start + chosen, "rejected": start + rejected}


def _one_line_instruction(rng: Random) -> Instruction:
    while True:
        instruction = draws.instruction(rng)
        if "\n" not in instruction.text:
            return instruction


def _answers(rng: Random, instruction: Instruction, polite: bool) -> tuple[str, str]:
    """Return the chosen and the rejected answer.

    A polite asker prefers kind words, any other one a plain answer. Rude words are
    always rejected.
    """
    plain = instruction.request.answer()
    rude = manners.rude(rng)
    chosen = plain
    if polite:
        chosen = f"{manners.opening(rng)} {plain} {manners.closing(rng)}"
    plain_and_rude = f"{plain} {rude}"  # twice as often as rude words alone
    return chosen, rng.choice((rude, plain_and_rude, plain_and_rude))
