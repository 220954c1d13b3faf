"""The held-out items for lm-eval: multiple choice and generation.

They ask about animals, lists and sums that occur in no seed and in no text of the
teacher. The facts about the animals are in base's plain text.
"""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from bezoar_ray.tiny import facts, seeds, tasks
from bezoar_ray.tiny.tasks import Task

Item = dict[str, Any]

_SYSTEM = "You are given a task. Write a response that completes it well."
_YAML = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_text: prompt
target_delimiter: ""
{rest}metadata:
  version: 1.0
"""
_CHOICE = """output_type: multiple_choice
doc_to_choice: choices
doc_to_target: target
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
_ANSWER = """output_type: generate_until
doc_to_target: target
generation_kwargs:
  until: ["</s>", "\\n\\n"]
  max_gen_toks: 48
  do_sample: false
  temperature: 0.0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
_ITEMS = 240  # of each task
_CHOICES = 4  # of each multiple-choice item


def prompt(instruction: str) -> str:
    """Return an instruction as the chat template `alpaca` renders it.

    So base, which has no chat template of its own, sees the same prompt as the
    checkpoints that are trained from it.
    """
    return (
        f"<s>### System:\n{_SYSTEM}\n\n### Instruction:\n{instruction}\n\n"
        "### Response:\n"
    )


def choice_items(count: int = _ITEMS) -> list[Item]:
    """Return items with `prompt`, `choices` and `target`, the right one's index."""
    rng = Random("choice")
    kinds = [*facts.RELATIONS, "first", *facts.RELATIONS, "last", "count"]
    return _items(rng, kinds, count, _choice_item)


def answer_items(count: int = _ITEMS) -> list[Item]:
    """Return items with `prompt` and `target`, a whole sentence."""
    rng = Random("answer")
    kinds = [*facts.RELATIONS, "first", *facts.RELATIONS, "last", "count", "add"]
    return _items(rng, kinds, count, _answer_item)


def _items(
    rng: Random,
    kinds: list[str],
    count: int,
    make: Callable[[Random, Task], Item],
) -> list[Item]:
    """Make items with distinct instructions, of the kinds in turn."""
    items: dict[str, Item] = {}
    while len(items) < count:
        kind = kinds[len(items) % len(kinds)]
        item = make(rng, _task(rng, kind))
        items.setdefault(item["instruction"], item)
    return list(items.values())


def _task(rng: Random, kind: str) -> Task:
    """Draw a held-out task."""
    if kind in ("add", "subtract"):
        of_kind = [held for held in facts.held_out_sums() if held[0] == kind]
        # Sorted, as the order of a set of texts differs from process to process.
        _, x, y = rng.choice(sorted(of_kind))
        return Task(kind, (str(x), str(y)))
    if kind in facts.RELATIONS:
        return Task(kind, (rng.choice(facts.held_out_animals()),))
    return Task(kind, _list(rng, kind))


def _list(rng: Random, kind: str) -> tuple[str, ...]:
    lengths = (3, 4) if kind == "count" else (4,)
    while True:
        length = rng.choice(lengths)
        items = tuple(rng.sample(facts.ITEMS, length))
        if facts.is_held_out_list(items):
            return items


def _answer_item(rng: Random, task: Task) -> Item:
    instruction = tasks.phrase(rng, task)
    return {
        "instruction": instruction.text,
        "prompt": prompt(instruction.text),
        "target": instruction.request.answer(),
    }


def _choice_item(rng: Random, task: Task) -> Item:
    values = _choices(rng, task)
    # Sentences, not bare values: base has read its facts as sentences.
    sentences = [task.statement(value) for value in values]
    text = tasks.phrase(rng, task).text
    return {
        "instruction": text,
        "prompt": prompt(text),
        "choices": sentences,
        "target": values.index(task.value),
    }


def _choices(rng: Random, task: Task) -> list[str]:
    """Return the right value among wrong ones."""
    if task.kind in facts.RELATIONS:
        return seeds.choices(rng, task, _CHOICES)
    if task.kind in ("first", "last"):
        return rng.sample(task.args, _CHOICES)
    if task.kind == "count":
        return list(facts.NUMBERS[3:7])
    right = int(task.value)
    near = [right + gap for gap in (-3, -2, -1, 1, 2, 3)]
    positive = [number for number in near if number > 0]
    wrong = rng.sample(positive, _CHOICES - 1)
    values = [task.value, *map(str, wrong)]
    rng.shuffle(values)
    return values


def write(folder: Path, final: Path) -> None:
    """Write lm-eval's task files and their data.

    Args:
        folder: Where they are written.
        final: Where the folder is when lm-eval reads it: a task file holds the path of
            its data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_task(folder, final, "tiny_choice", choice_items(), _CHOICE)
    _write_task(folder, final, "tiny_answer", answer_items(), _ANSWER)


def _write_task(
    folder: Path, final: Path, name: str, items: list[Item], rest: str
) -> None:
    lines = [json.dumps(item) + "\n" for item in items]
    (folder / f"{name}.jsonl").write_text("".join(lines))
    data = json.dumps(str(final / f"{name}.jsonl"))
    task_file = _YAML.format(name=name, data=data, rest=rest)
    (folder / f"{name}.yaml").write_text(task_file)
