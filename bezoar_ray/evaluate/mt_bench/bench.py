"""All checkpoints answer all questions at once; each answer is judged as soon as it is there."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from bezoar_ray.errors import RecipeError
from bezoar_ray.evaluate.mt_bench import fastchat_files
from bezoar_ray.evaluate.mt_bench.answers import Answer, converse, room_of
from bezoar_ray.evaluate.mt_bench.fastchat_prompts import TURNS, load_prompts
from bezoar_ray.evaluate.mt_bench.judge_diagnostics import bias
from bezoar_ray.evaluate.mt_bench.judge_prompts import OWN, JudgePrompts
from bezoar_ray.evaluate.mt_bench.judging import Judgment, judge_turn
from bezoar_ray.evaluate.mt_bench.pairwise import Comparison, Game, compare_turn
from bezoar_ray.evaluate.mt_bench.scores import against, summarise
from bezoar_ray.evaluate.served_endpoint import Endpoint
from bezoar_ray.llm.aio import to_the_end
from bezoar_ray.llm.client import ModelClient, open_client
from bezoar_ray.llm.ledger_index import read_index
from bezoar_ray.llm.limits import limits, shared_quota_clients
from bezoar_ray.recipe import ModelSection, MtBench
from bezoar_ray.sources.mt_bench_files import (
    Question,
    load_answers,
    load_grades,
    load_questions,
    load_verdicts,
)
from bezoar_ray.stages import STAGES, StageContext, checkpoint_names

_JUDGE = "mt_bench_judge"
_IN_FLIGHT = 64  # per checkpoint; the engine queues what it cannot run at once


@dataclass(frozen=True)
class Bench:
    """What is asked and of whom: questions, checkpoints, and further models whose answers are there already."""

    part: MtBench
    checkpoints: tuple[str, ...]

    @cached_property
    def questions(self) -> list[Question]:
        """The questions."""
        return load_questions(self.part)

    @cached_property
    def prompts(self) -> JudgePrompts:
        """The words in which the judges are asked.

        Raises:
            RecipeError: the file is not one of FastChat's, or has no places for all turns of a question.
        """
        if self.part.prompts is None:
            return OWN
        if long := next(
            (question for question in self.questions if len(question.turns) > TURNS),
            None,
        ):
            raise RecipeError(
                f"evaluate.mt_bench.prompts: FastChat's prompts have places for {TURNS} turns, and question "
                f"{long.id!r} has {len(long.turns)}. Leave `prompts` out"
            )
        return load_prompts(Path(self.part.prompts))

    @cached_property
    def published(self) -> dict[str, dict[int | str, tuple[str, ...]]]:
        """The turns of the further models, by model and question.

        Raises:
            RecipeError: one of them has the name of a checkpoint.
        """
        found = load_answers(self.part)
        if taken := next((name for name in found if name in self.checkpoints), None):
            raise RecipeError(
                f"evaluate.mt_bench.answers: a model_id is {taken!r}, as a checkpoint is called; rename it in the file"
            )
        return found

    @cached_property
    def elsewhere(self) -> tuple[list[Judgment], list[Comparison]]:
        """What further judges have said of these answers: grades and comparisons."""
        verdicts = [(found, found.pop("winners")) for found in load_verdicts(self.part)]
        return (
            [
                Judgment(category="", text="", **grade)
                for grade in load_grades(self.part)
            ],
            [
                Comparison(category="", games=(Game(one, ""), Game(other, "")), **found)
                for found, (one, other) in verdicts
            ],
        )

    @property
    def models(self) -> tuple[str, ...]:
        """All that are judged."""
        return (*self.checkpoints, *self.published)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The models that are compared: of the recipe's pairs, those that the run has.

        Raises:
            RecipeError: nobody could have that name.
        """
        known = {*checkpoint_names(), *self.published}
        if unknown := next(
            (name for pair in self.part.pairwise for name in pair if name not in known),
            None,
        ):
            raise RecipeError(
                f"evaluate.mt_bench.pairwise: no model {unknown!r}; there are {', '.join(sorted(known))}"
            )
        present = {"dpo": self._aligned}
        pairs = [
            (present.get(first, first), present.get(second, second))
            for first, second in self.part.pairwise
        ]
        return [pair for pair in pairs if set(pair) <= set(self.models)]

    @property
    def _aligned(self) -> str:
        """The name of the run's aligned checkpoint: its method."""
        for name in STAGES["align"].checkpoint_names:
            if name in self.checkpoints:
                return name
        return "dpo"

    @property
    def total(self) -> int:
        """Conversations that are judged, and comparisons of two."""
        return (len(self.models) + len(self.pairs)) * len(self.questions)


async def mt_bench(
    context: StageContext,
    bench: Bench,
    endpoint: Endpoint,
    fingerprints: dict[str, str],
    step: Callable[[], None],
) -> tuple[dict[str, dict[str, object]], list[str]]:
    """Answer, judge and score; `step` is called after every judged conversation and every comparison.

    Returns:
        `eval.mt_bench` of summary.json, and the files written.
    """
    further, _ = bench.elsewhere, bench.prompts  # read before a call is paid for
    root, parts = str(context.store.root), context.recipe.mt_bench_judges
    granted = shared_quota_clients(root, parts, _JUDGE, limits(context.recipe))
    names = _names(parts)
    judging, answering = (
        read_index(root, role, context.session) for role in (_JUDGE, "candidate")
    )
    judges = {
        name: open_client(
            part, root, _JUDGE, context.session, permits=own, index=judging
        )
        for name, part, own in zip(names, parts, granted, strict=True)
    }
    candidates = {
        name: open_client(
            _part(name, endpoint),
            root,
            "candidate",
            context.session,
            identity=mark,
            index=answering,
        )
        for name, mark in fingerprints.items()
    }
    try:
        trials = Trials(bench, endpoint, candidates, judges, step)
        answers, judgments, comparisons = await trials.all()
    finally:
        await asyncio.gather(
            *(talker.close() for talker in (*judges.values(), *candidates.values()))
        )
    scores = _scores(bench, names[0], judgments, comparisons, *further)
    return scores, fastchat_files.save(
        context.store, bench.questions, answers, judgments, comparisons
    )


def _names(parts: tuple[ModelSection, ...]) -> list[str]:
    """What each judge is called: by its model, and its revision where that judges twice."""
    models = [part.model for part in parts]
    return [
        f"{part.model}@{part.revision}"
        if part.revision and models.count(part.model) > 1
        else part.model
        for part in parts
    ]


def _part(name: str, endpoint: Endpoint) -> ModelSection:
    return ModelSection(
        model=name, base_url=endpoint.base_url, max_in_flight=_IN_FLIGHT, timeout=600.0
    )


class Trials:
    """Every question put to every checkpoint, and what the judges say of the answers."""

    def __init__(
        self,
        bench: Bench,
        endpoint: Endpoint,
        candidates: dict[str, ModelClient],
        judges: dict[str, ModelClient],
        step: Callable[[], None],
    ):
        self._bench, self._candidates, self._judges, self._step = (
            bench,
            candidates,
            judges,
            step,
        )
        self._room = room_of(endpoint.tokenizer, endpoint.context)

    async def all(self) -> tuple[list[Answer], list[Judgment], list[Comparison]]:
        """Answers, grades by all judges, and comparisons by the first one."""
        bench, pairs = self._bench, self._bench.pairs
        answers = {
            (name, question.id): asyncio.create_task(self._answer(name, question))
            for name in bench.models
            for question in bench.questions
        }
        grades = [
            asyncio.create_task(self._grades(answer)) for answer in answers.values()
        ]
        comparisons = [
            asyncio.create_task(
                self._compare(answers[first, question.id], answers[second, question.id])
            )
            for first, second in pairs
            for question in bench.questions
        ]
        await to_the_end([*answers.values(), *grades, *comparisons])
        judgments = list(chain.from_iterable(task.result() for task in grades))
        compared = list(chain.from_iterable(task.result() for task in comparisons))
        return [task.result() for task in answers.values()], judgments, compared

    async def _answer(self, name: str, question: Question) -> Answer:
        if name in self._candidates:
            chat = self._candidates[name].for_row(_row(question))
            return await converse(question, name, chat, self._bench.part, self._room)
        return Answer(question, name, self._bench.published[name].get(question.id, ()))

    async def _grades(self, answered: "asyncio.Task[Answer]") -> list[Judgment]:
        answer = await answered
        row, turns = _row(answer.question), range(1, len(answer.question.turns) + 1)
        found = await to_the_end(
            judge_turn(answer, turn, name, judge.for_row(row), self._bench.prompts)
            for name, judge in self._judges.items()
            for turn in turns
        )
        self._step()
        return found

    async def _compare(
        self, first: "asyncio.Task[Answer]", second: "asyncio.Task[Answer]"
    ) -> list[Comparison]:
        one, other = await first, await second
        name, judge = next(iter(self._judges.items()))
        chat, turns = (
            judge.for_row(_row(one.question)),
            range(1, len(one.question.turns) + 1),
        )
        found = await to_the_end(
            compare_turn(one, other, turn, name, chat, self._bench.prompts)
            for turn in turns
        )
        self._step()
        return found


def _row(question: Question) -> str:
    return f"mt_bench/{question.id}"


def _scores(
    bench: Bench,
    judge: str,
    judgments: list[Judgment],
    comparisons: list[Comparison],
    grades: list[Judgment],
    verdicts: list[Comparison],
) -> dict[str, dict[str, object]]:
    def of(name: str, found: Iterable[Judgment]) -> list[Judgment]:
        return [judgment for judgment in found if judgment.model == name]

    first = [judgment for judgment in judgments if judgment.judge == judge]
    others = [judgment for judgment in judgments if judgment.judge != judge] + grades
    skipped = set(map(str, bench.part.references_skip))
    base, scores = of("base", first), {}
    for name in bench.models:
        mine, games = (
            of(name, first),
            [game for game in comparisons if name in game.models],
        )
        theirs = [game for game in verdicts if name in game.models]
        scores[name] = summarise(mine, None if name == "base" else base)
        shown = bias(mine, of(name, others), games, theirs)
        asked = {"judge": judge, "prompts": bench.prompts.whose}
        scores[name] |= asked | {"pairwise": against(name, games), "bias": shown}
        if skipped:
            scores[name]["without_skipped"] = summarise(
                [one for one in mine if str(one.question_id) not in skipped]
            )
    return scores
