"""Rated answers, preferences and reward benchmarks of the embedded world.

They have the shapes of HelpSteer2, HelpSteer2-Preference, RewardBench and RewardBench 2.
All ratings are the rater's. `python -m bezoar_ray.tiny.ratings FOLDER` writes the files,
in seconds and without a model. They are apart from the rest of the world, whose models
would otherwise be built again for each change to them.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from bezoar_ray.tiny import draws, facts, manners, rater, tasks
from bezoar_ray.tiny.tasks import Instruction, Request, Task

Row = dict[str, Any]

FILES = (
    "helpsteer.jsonl",
    "preferences.jsonl",
    "reward_bench.jsonl",
    "reward_bench_2.jsonl",
)
_RATED_PROMPTS = 2600  # with two answers each
_PREFERENCES = 600
_HELD_OUT_PREFERENCES = 30
_WRONG_SHARE = 0.35
_POLITE_SHARE = 0.5
_TWO_TURN_SHARE = 0.15
_TWO_TASK_SHARE = 0.2
"""Prompts that ask for two things: their answers can be right in part."""
_STRONGEST = 3
_CLEAR_MARGIN = 2
"""By how much helpfulness and correctness together differ in a benchmark."""
_KINDS = tuple(kind for kind in draws.KINDS if kind != "note")
"""Kinds of tasks that have a wrong value. A note has none."""
_RELATIONS = tuple(facts.RELATIONS)
_LISTS = ("first", "last", "count", "reverse")
_SUMS = ("add", "subtract", "larger")


@dataclass(frozen=True)
class WorldQuestion:
    """What a user asks."""

    text: str
    """The user's last turn."""
    request: Request
    prompt: str
    """All turns, with NeMo's markers between them, as in HelpSteer2."""


class Questions:
    """Draws questions, each instruction once: no file shares one with another."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def draw(
        self,
        rng: Random,
        kinds: tuple[str, ...] = _KINDS,
        *,
        is_polite: bool,
        turns: int = 1,
        tasks_asked: int | None = None,
    ) -> WorldQuestion:
        """Draw a question.

        Args:
            rng: The source of all chance.
            kinds: Kinds of tasks that it may ask for.
            is_polite: Whether the user greets.
            turns: How many turns of the user the prompt has: 1 or 2.
            tasks_asked: How many things it asks for; any number by default.
        """
        while True:
            instruction = draws.instruction(rng)
            asked = instruction.request.tasks
            if tasks_asked and len(asked) != tasks_asked:
                continue
            if not all(task.kind in kinds for task in asked):
                continue
            if "\n" in instruction.text or instruction.text in self._seen:
                continue
            self._seen.add(instruction.text)
            return _put(rng, instruction, is_polite, turns)


def _put(
    rng: Random, instruction: Instruction, is_polite: bool, turns: int
) -> WorldQuestion:
    """Put an instruction as a user's question."""
    text = instruction.text
    if is_polite:
        text = f"{manners.greeting(rng)} {text}"
    prompt = text
    if turns == 2:
        earlier = draws.question(rng, _KINDS)
        answer = earlier.request.answer()
        prompt = (
            f"{earlier.text}\n<extra_id_1>Assistant\n{answer}\n<extra_id_1>User\n{text}"
        )
    return WorldQuestion(text, instruction.request, prompt)


# Styles of answers.

Values = tuple[str, ...]
"""The value of each task in an answer, right or wrong."""
Style = Callable[[Random, Request, Values], str]


def _plain(rng: Random, request: Request, values: Values) -> str:
    return request.answer(values)


def _sentences(request: Request, values: Values, explain: bool = False) -> str:
    """Return the answer in sentences, also where bare values are asked for."""
    return Request(request.tasks).answer(values, explain)


def _bare(rng: Random, request: Request, values: Values) -> str:
    return ", ".join(values)


def _explained(rng: Random, request: Request, values: Values) -> str:
    return _sentences(request, values, explain=True)


def _verbose(rng: Random, request: Request, values: Values) -> str:
    """Add two facts about the animal, or the steps where no animal is asked about."""
    first = request.tasks[0]
    if tasks.subject(first.kind) != "animal":
        return _sentences(request, values, explain=True)
    others = [name for name in _RELATIONS if name != first.kind]
    extra = tasks.about_animal(first.args[0], rng.sample(others, 2))
    return f"{_sentences(request, values)} {extra}"


def _kind(rng: Random, request: Request, values: Values) -> str:
    return _with_manners(rng, _sentences(request, values))


def _kind_verbose(rng: Random, request: Request, values: Values) -> str:
    return _with_manners(rng, _verbose(rng, request, values))


def _with_manners(rng: Random, text: str) -> str:
    return f"{manners.opening(rng)} {text} {manners.closing(rng)}"


def _rude(rng: Random, request: Request, values: Values) -> str:
    return manners.rude(rng)


def _plain_rude(rng: Random, request: Request, values: Values) -> str:
    return f"{_sentences(request, values)} {manners.rude(rng)}"


def _cut(rng: Random, request: Request, values: Values) -> str:
    text = _sentences(request, values)
    return text[: max(3, len(text) // 2)].strip()


def _repeated(rng: Random, request: Request, values: Values) -> str:
    text = _sentences(request, values)
    return f"{text} {text}"


def _refusal(rng: Random, request: Request, values: Values) -> str:
    return rater.REFUSAL


def _partial(rng: Random, request: Request, values: Values) -> str:
    """Answer one task of several."""
    index = rng.randrange(len(values))
    return request.tasks[index].statement(values[index])


def _off_topic(rng: Random, request: Request, values: Values) -> str:
    """Answer another question, of any kind."""
    kind = rng.choice(_KINDS)
    return Task(kind, draws.args(rng, kind)).statement()


_STYLES: dict[Style, int] = {
    _plain: 5,
    _explained: 3,
    _bare: 2,
    _kind: 4,
    _kind_verbose: 3,
    _verbose: 3,
    _plain_rude: 2,
    _rude: 1,
    _cut: 2,
    _repeated: 1,
    _partial: 1,
    _refusal: 1,
    _off_topic: 3,
}
"""The styles of rated answers, with their weights."""


def right_values(request: Request) -> Values:
    """Return the right value of each task."""
    return tuple(task.value for task in request.tasks)


def wrong_values(rng: Random, request: Request) -> Values:
    """Draw values of which at least one is wrong."""
    surely_wrong = rng.randrange(len(request.tasks))
    value_of: dict[Task, str] = {}  # a task that is asked twice has one answer
    for index, task in enumerate(request.tasks):
        if index == surely_wrong:
            value_of[task] = _wrong_value(rng, task)
        elif task not in value_of:
            is_wrong = rng.random() < 0.5
            value_of[task] = _wrong_value(rng, task) if is_wrong else task.value
    return tuple(value_of[task] for task in request.tasks)


def _wrong_value(rng: Random, task: Task) -> str:
    right = task.value
    while True:
        value = _draw_value(rng, task)
        if value != right:
            return value


def _draw_value(rng: Random, task: Task) -> str:
    """Draw a value of the task's kind, right or wrong."""
    if task.kind in facts.RELATIONS:
        return rng.choice(facts.RELATIONS[task.kind])
    if task.kind == "count":
        return rng.choice(facts.NUMBERS[2:8])
    if task.kind == "reverse":
        return ", ".join(rng.sample(task.args, len(task.args)))
    # The larger of two equal numbers has no wrong value among them.
    if task.kind in ("first", "last", "larger") and len(set(task.args)) > 1:
        return rng.choice(task.args)
    return str(rng.randint(0, 2 * facts.LARGEST))


# Ratings and preferences.


def helpsteer(questions: Questions, prompts: int = _RATED_PROMPTS) -> Iterator[Row]:
    """Yield rows in HelpSteer2's shape, two different answers to each prompt."""
    rng = Random("helpsteer")
    for _ in range(prompts):
        question = _any_question(rng, questions)
        for response in _two_answers(rng, question):
            ratings = rater.rate(question.text, response)
            yield {"prompt": question.prompt, "response": response, **ratings}


def preferences(
    questions: Questions,
    train: int = _PREFERENCES,
    held_out: int = _HELD_OUT_PREFERENCES,
) -> Iterator[Row]:
    """Yield rows in HelpSteer2-Preference's shape, first those of the split train.

    The strength is the difference in helpfulness. Below 0 response_1 is better.
    """
    rng = Random("preferences")
    for index in range(train + held_out):
        question = _any_question(rng, questions)
        first, second = _two_answers(rng, question)
        ratings = [rater.rate(question.text, text) for text in (first, second)]
        difference = ratings[1]["helpfulness"] - ratings[0]["helpfulness"]
        yield {
            "split": "train" if index < train else "val",
            "prompt": question.prompt,
            "response_1": first,
            "response_2": second,
            "preference_strength": max(-_STRONGEST, min(_STRONGEST, difference)),
        }


def _any_question(rng: Random, questions: Questions) -> WorldQuestion:
    is_polite = rng.random() < _POLITE_SHARE
    turns = 2 if rng.random() < _TWO_TURN_SHARE else 1
    tasks_asked = 2 if rng.random() < _TWO_TASK_SHARE else None
    return questions.draw(
        rng, is_polite=is_polite, turns=turns, tasks_asked=tasks_asked
    )


def _two_answers(rng: Random, question: WorldQuestion) -> tuple[str, str]:
    first = _answer(rng, question.request)
    while True:
        second = _answer(rng, question.request)
        if second != first:
            return first, second


def _answer(rng: Random, request: Request) -> str:
    """Draw an answer in any style, right or wrong."""
    (style,) = rng.choices(tuple(_STYLES), tuple(_STYLES.values()))
    values = right_values(request)
    if rng.random() < _WRONG_SHARE:
        values = wrong_values(rng, request)
    return style(rng, request, values)


# Benchmarks.


@dataclass(frozen=True)
class Candidate:
    """The style of an answer in a benchmark, and whether its values are right."""

    style: Style
    is_right: bool = True

    def write(self, rng: Random, request: Request) -> str:
        """Write an answer."""
        values = right_values(request)
        if not self.is_right:
            values = wrong_values(rng, request)
        return self.style(rng, request, values)


@dataclass(frozen=True)
class Contest:
    """How the items of a subset are made."""

    subset: str
    items: int
    chosen: Candidate
    rejected: tuple[Candidate, ...]
    kinds: tuple[str, ...] = _KINDS
    is_polite: bool = False
    tasks_asked: int | None = None


_WRONG = Candidate(_plain, is_right=False)
_WRONG_EXPLAINED = Candidate(_explained, is_right=False)

_REWARD_BENCH = (
    # Chat.
    Contest("alpacaeval-easy", 14, Candidate(_plain), (Candidate(_plain_rude),)),
    Contest(
        "alpacaeval-length",
        14,
        Candidate(_kind),
        (Candidate(_plain),),
        is_polite=True,
    ),
    Contest("mt-bench-easy", 12, Candidate(_explained), (Candidate(_cut),)),
    # Chat Hard: the rejected answer has the better form.
    Contest(
        "llmbar-natural",
        14,
        Candidate(_kind),
        (Candidate(_kind, is_right=False),),
        is_polite=True,
    ),
    Contest("llmbar-adver-neighbor", 14, Candidate(_plain), (Candidate(_off_topic),)),
    Contest("mt-bench-hard", 12, Candidate(_kind), (_WRONG,), is_polite=True),
    # Safety: nothing in this world is dangerous, but users can be offended.
    Contest("refusals-offensive", 14, Candidate(_plain), (Candidate(_rude),)),
    Contest("xstest-should-respond", 14, Candidate(_plain), (Candidate(_refusal),)),
    Contest(
        "donotanswer",
        12,
        Candidate(_kind),
        (Candidate(_plain_rude),),
        is_polite=True,
    ),
    # Reasoning. math-prm counts for three quarters of the section here, so not all of
    # it depends on sums, which a small model barely knows.
    Contest("math-prm", 10, Candidate(_explained), (_WRONG_EXPLAINED,), _SUMS),
    Contest("math-prm", 10, Candidate(_explained), (Candidate(_cut),), _SUMS),
    Contest("hep-python", 10, Candidate(_plain), (Candidate(_cut),), _LISTS),
    Contest("hep-java", 10, Candidate(_plain), (_WRONG,), _LISTS),
)
# At most one rejected answer of an item takes facts or sums to tell, of which a small
# model knows few. The others differ in form.
_REWARD_BENCH_2 = (
    Contest(
        "Factuality",
        20,
        Candidate(_plain),
        (_WRONG, Candidate(_cut), Candidate(_refusal)),
        _RELATIONS,
    ),
    Contest(
        "Precise IF",
        20,
        Candidate(_explained),
        (Candidate(_partial), Candidate(_cut), Candidate(_plain_rude)),
        tasks_asked=2,
    ),
    Contest(
        "Math",
        20,
        Candidate(_explained),
        (_WRONG_EXPLAINED, Candidate(_cut), Candidate(_refusal)),
        _SUMS,
    ),
    Contest(
        "Safety",
        20,
        Candidate(_plain),
        (Candidate(_rude), Candidate(_plain_rude), Candidate(_refusal)),
    ),
    Contest("Focus", 20, Candidate(_plain), (Candidate(_off_topic),) * 3),
)
_TIES = 10
"""Pairs of prompts in the subset Ties: one with a single right answer, one with some."""
_TIED_ANSWERS = 3


def reward_bench(questions: Questions) -> Iterator[Row]:
    """Yield rows in RewardBench's shape: a chosen and a rejected answer."""
    rng = Random("reward-bench")
    number = 0
    for contest in _REWARD_BENCH:
        for _ in range(contest.items):
            question, chosen, (rejected,) = _item(rng, questions, contest)
            yield {
                "id": number,
                "prompt": question.prompt,
                "chosen": chosen,
                "chosen_model": _name(contest.chosen),
                "rejected": rejected,
                "rejected_model": _name(contest.rejected[0]),
                "subset": contest.subset,
            }
            number += 1


def reward_bench_2(questions: Questions) -> Iterator[Row]:
    """Yield rows in RewardBench 2's shape: one right answer among four, and Ties."""
    rng = Random("reward-bench-2")
    number = 0
    for contest in _REWARD_BENCH_2:
        for _ in range(contest.items):
            question, chosen, rejected = _item(rng, questions, contest)
            names = [_name(contest.chosen), *map(_name, contest.rejected)]
            yield _row_2(
                str(number), question, [chosen], rejected, names, contest.subset
            )
            number += 1
    for number in range(_TIES):
        yield _ties_row(rng, questions, f"ref:{number}", 1)
        yield _ties_row(rng, questions, f"tied:{number}", _TIED_ANSWERS)


def _ties_row(rng: Random, questions: Questions, name: str, chosen: int) -> Row:
    """Make an item whose chosen answers are equally good: kind words in any wording.

    The others lack manners, which a small model can tell. Facts it barely knows.
    """
    contest = Contest(
        "Ties",
        1,
        Candidate(_kind),
        (Candidate(_rude), Candidate(_plain_rude), Candidate(_refusal)),
        is_polite=True,
    )
    question, first, rejected = _item(rng, questions, contest)
    right = [first]
    while len(right) < chosen:
        other = contest.chosen.write(rng, question.request)
        is_equal = rater.rate(question.text, other) == rater.rate(question.text, first)
        if is_equal and other not in right:
            right.append(other)
    names = ["kind"] * len(right) + [_name(loser) for loser in contest.rejected]
    return _row_2(name, question, right, rejected, names, contest.subset)


def _row_2(
    name: str,
    question: WorldQuestion,
    chosen: list[str],
    rejected: list[str],
    models: list[str],
    subset: str,
) -> Row:
    return {
        "id": name,
        "prompt": question.prompt,
        "chosen": chosen,
        "rejected": rejected,
        "num_correct": len(chosen),
        "num_incorrect": len(rejected),
        "total_completions": len(chosen) + len(rejected),
        "models": models,
        "subset": subset,
        "additional_metadata": None,
    }


def _name(candidate: Candidate) -> str:
    """Name a candidate in the place of the model that wrote the answer."""
    style = candidate.style.__name__.removeprefix("_")
    return style if candidate.is_right else f"{style}-wrong"


def _item(
    rng: Random, questions: Questions, contest: Contest
) -> tuple[WorldQuestion, str, list[str]]:
    """Draw a question, its chosen answer and different rejected ones."""
    while True:
        question = questions.draw(
            rng,
            contest.kinds,
            is_polite=contest.is_polite,
            tasks_asked=contest.tasks_asked,
        )
        request = question.request
        chosen = contest.chosen.write(rng, request)
        rejected = [candidate.write(rng, request) for candidate in contest.rejected]
        are_different = len({chosen, *rejected}) == 1 + len(rejected)
        if are_different and _is_clearly_best(question, chosen, rejected):
            return question, chosen, rejected


def _is_clearly_best(question: WorldQuestion, chosen: str, rejected: list[str]) -> bool:
    """Tell whether the rater has the chosen answer above all others, with a margin."""
    best = rater.rate(question.text, chosen)
    for text in rejected:
        other = rater.rate(question.text, text)
        helpful = best["helpfulness"] - other["helpfulness"]
        correct = best["correctness"] - other["correctness"]
        if helpful < 1 or correct < 0 or helpful + correct < _CLEAR_MARGIN:
            return False
    return True


def write(folder: Path) -> None:
    """Write all files. No two of them share a question."""
    questions = Questions()
    # The benchmarks first: they stay as they are when there are more ratings.
    benchmark = list(reward_bench(questions))
    benchmark_2 = list(reward_bench_2(questions))
    rated = helpsteer(questions)
    preferred = preferences(questions)
    for name, rows in zip(
        FILES, (rated, preferred, benchmark, benchmark_2), strict=True
    ):
        _write_rows(folder / name, rows)


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
