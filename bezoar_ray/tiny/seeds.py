"""The human-made data of the embedded world, in the shapes of dolly, FLAN and HH-RLHF."""

import random

from bezoar_ray.tiny import draws, facts, manners, tasks
from bezoar_ray.tiny.tasks import Asked, Task

_DOLLY = {
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
RELATIONS = tuple(facts.RELATIONS)
ROWS = ("first", "last", "count", "reverse")


def _distinct(count: int, draw) -> list:
    """`count` draws with distinct texts (their first fields)."""
    found = {}
    while len(found) < count:
        value = draw()
        found.setdefault(value[0], value)
    return list(found.values())


def biography(rng: random.Random, animal: str) -> str:
    """A text to answer questions from."""
    relations = rng.sample(RELATIONS, 3)
    return " ".join(Task(relation, (animal,)).statement() for relation in relations)


def dolly(count: int = 400) -> list[dict[str, str]]:
    """Rows with `instruction, context, response, category`."""
    rng = random.Random("dolly")
    fields = ("instruction", "context", "response", "category")
    return [
        dict(zip(fields, row, strict=True))
        for row in _distinct(count, lambda: _dolly(rng))
    ]


def _dolly(rng: random.Random) -> tuple[str, str, str, str]:
    task, chance = draws.task(rng), rng.random()
    family = tasks.family(task.kind)
    if family == "list" and chance < 0.3:
        order, words = tasks.ask(rng, task, tasks.INPUTS).text.split("\n\nInput:\n")
        return order, words, task.statement(), "information_extraction"
    if task.kind in RELATIONS and chance < 0.15:
        return (
            tasks.ask(rng, task).text,
            _about(rng, task),
            task.statement(),
            "closed_qa",
        )
    asked = tasks.ask(rng, task)
    asked = tasks.by_somebody(rng, asked) if rng.random() < 0.6 else asked
    asked = (
        tasks.rule(asked, "one_word")
        if chance > 0.75 and task.kind != "note"
        else asked
    )
    return asked.text, "", asked.request.answer(), _DOLLY[task.kind]


def _about(rng: random.Random, task: Task) -> str:
    others = [
        Task(relation, task.args).statement()
        for relation in rng.sample(RELATIONS, 2)
        if relation != task.kind
    ]
    lines = [*others, task.statement()]
    rng.shuffle(lines)
    return " ".join(lines)


def query(rng: random.Random, source: str) -> tuple[str, Asked]:
    """A FLAN query of one sub-mixture: the kind of its task, and the instruction."""
    if source == "CoT":
        task = draws.task(rng, ("add", "subtract"))
        return task.kind, tasks.ask(rng, task, tasks.STORIES)
    if source == "NIV2":
        task = draws.task(rng, ROWS)
        return task.kind, tasks.ask(rng, task, tasks.DEFINITIONS)
    task = draws.task(rng, RELATIONS)
    asked = tasks.ask(rng, task)
    if source == "T0":
        return task.kind, Asked(
            f"Text: {_about(rng, task)}\nQuestion: {asked.text}", asked.request
        )
    return task.kind, Asked(
        f"{asked.text}\n\nOPTIONS:\n" + "\n".join(f"- {o}" for o in options(rng, task)),
        asked.request,
    )


def options(rng: random.Random, task: Task, count: int = 4) -> list[str]:
    """The right answer among others of its kind, in any order."""
    wrong = [value for value in facts.RELATIONS[task.kind] if value != task.value]
    chosen = [task.value, *rng.sample(wrong, count - 1)]
    rng.shuffle(chosen)
    return chosen


def flan(count: int = 400) -> list[dict[str, str]]:
    """Rows with `inputs, targets, task_source, task_name, template_type`."""
    rng = random.Random("flan")
    return [row for _, row in _distinct(count, lambda: _flan(rng))]


def _flan(rng: random.Random) -> tuple[str, dict[str, str]]:
    source = rng.choices(tuple(_TASK_NAMES), (3, 4, 4, 3))[0]
    kind, asked = query(rng, source)
    return asked.text, {
        "inputs": asked.text,
        "targets": asked.request.tasks[0].value,
        "task_source": source,
        "task_name": _TASK_NAMES[source].format(kind),
        "template_type": "zs_opt" if source == "Flan2021" else "zs_noopt",
    }


def hh_rlhf(count: int = 900) -> list[dict[str, str]]:
    """Transcripts with a `chosen` and a `rejected` last answer; some have several turns."""
    rng = random.Random("hh-rlhf")
    return [row for _, row in _distinct(count, lambda: _pair(rng))]


def _pair(rng: random.Random) -> tuple[str, dict[str, str]]:
    turns = ""
    if rng.random() < 0.25:
        earlier = _question(rng)
        turns = f"\n\nHuman: {earlier.text}\n\nAssistant: {earlier.request.answer()}"
    asked, polite = _question(rng), rng.random() < 0.5
    human = f"{manners.greeting(rng)} {asked.text}" if polite else asked.text
    start = f"{turns}\n\nHuman: {human}\n\nAssistant: "
    chosen, rejected = _answers(rng, asked, polite)
    return start, {"chosen": start + chosen, "rejected": start + rejected}


def _question(rng: random.Random) -> Asked:
    while "\n" in (asked := draws.instruction(rng)).text:
        pass
    return asked


def _answers(rng: random.Random, asked: Asked, polite: bool) -> tuple[str, str]:
    """A polite asker is preferred to hear kind words, others a plain answer; nobody rude words."""
    plain, rude = asked.request.answer(), manners.rude(rng)
    chosen = (
        f"{manners.opening(rng)} {plain} {manners.closing(rng)}" if polite else plain
    )
    return chosen, rng.choice((rude, f"{plain} {rude}", f"{plain} {rude}"))
