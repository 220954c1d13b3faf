"""The held-out items for lm-eval (multiple choice and generation). They ask about animals, lists and sums that stand in
no seed and in no text of the teacher; the facts are in base's plain text."""

import json
import random
from pathlib import Path

from bezoar_ray.tiny import facts, seeds, tasks
from bezoar_ray.tiny.tasks import Asked, Task

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


def prompt(instruction: str) -> str:
    """An instruction as the `alpaca` chat template writes it: base and its descendants see the same prompt."""
    return f"<s>### System:\n{_SYSTEM}\n\n### Instruction:\n{instruction}\n\n### Response:\n"


def choice_items(count: int = 240) -> list[dict]:
    """Items with `prompt`, `choices` and `target` (the right one's index)."""
    rng = random.Random("choice")
    kinds = [*facts.RELATIONS, "first", *facts.RELATIONS, "last", "count"]
    return _items(rng, kinds, count, lambda task: _choice(rng, task))


def answer_items(count: int = 240) -> list[dict]:
    """Items with `prompt` and `target`, a whole sentence."""
    rng = random.Random("answer")
    kinds = [*facts.RELATIONS, "first", *facts.RELATIONS, "last", "count", "add"]
    return _items(rng, kinds, count, lambda task: _answer(rng, task))


def _items(rng: random.Random, kinds: list[str], count: int, make) -> list[dict]:
    found = {}
    while len(found) < count:
        item = make(_task(rng, kinds[len(found) % len(kinds)]))
        found.setdefault(item["instruction"], item)
    return list(found.values())


def _task(rng: random.Random, kind: str) -> Task:
    if kind in ("add", "subtract"):
        _, x, y = rng.choice(
            sorted(sum_ for sum_ in facts.kept_sums() if sum_[0] == kind)
        )
        return Task(kind, (str(x), str(y)))
    return Task(
        kind,
        (rng.choice(facts.kept()),) if kind in facts.RELATIONS else _list(rng, kind),
    )


def _list(rng: random.Random, kind: str) -> tuple[str, ...]:
    lengths = (3, 4) if kind == "count" else (4,)
    while not facts.kept_list(
        found := tuple(rng.sample(facts.ITEMS, rng.choice(lengths)))
    ):
        pass
    return found


def _answer(rng: random.Random, task: Task) -> dict:
    asked = tasks.ask(rng, task)
    return _item(asked) | {"target": asked.request.answer()}


def _choice(rng: random.Random, task: Task) -> dict:
    values = _choices(rng, task)
    choices = [
        task.statement(value) for value in values
    ]  # base has read its facts as sentences, not as lone words
    return _item(tasks.ask(rng, task)) | {
        "choices": choices,
        "target": values.index(task.value),
    }


def _item(asked: Asked) -> dict:
    return {"instruction": asked.text, "prompt": prompt(asked.text)}


def _choices(rng: random.Random, task: Task) -> list[str]:
    if task.kind in facts.RELATIONS:
        return seeds.options(rng, task)
    if task.kind in ("first", "last"):
        return rng.sample(task.args, 4)
    if task.kind == "count":
        return list(facts.NUMBERS[3:7])
    near = [
        int(task.value) + gap
        for gap in (-3, -2, -1, 1, 2, 3)
        if int(task.value) + gap > 0
    ]
    choices = [task.value, *map(str, rng.sample(near, 3))]
    rng.shuffle(choices)
    return choices


def write(folder: Path, final: Path) -> None:
    """Task files for lm-eval's include_path, and their data; `final` is where the folder will lie when it is used."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows, rest in (
        ("tiny_choice", choice_items(), _CHOICE),
        ("tiny_answer", answer_items(), _ANSWER),
    ):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
        data = json.dumps(str(final / f"{name}.jsonl"))
        (folder / f"{name}.yaml").write_text(
            _YAML.format(name=name, data=data, rest=rest)
        )
