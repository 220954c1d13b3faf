"""MT-Bench: all checkpoints answer all questions at once, and judges grade each answer.

A judge does not wait for the other answers: it grades each one as soon as it is there.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

from bezoar_ray.errors import RecipeError
from bezoar_ray.evaluate.mt_bench import fastchat_files
from bezoar_ray.evaluate.mt_bench.answers import (
    Answer,
    converse,
    remaining_context_of,
)
from bezoar_ray.evaluate.mt_bench.fastchat_prompts import TURNS, load_prompts
from bezoar_ray.evaluate.mt_bench.judge_diagnostics import judge_bias
from bezoar_ray.evaluate.mt_bench.judge_prompts import OWN, JudgePrompts
from bezoar_ray.evaluate.mt_bench.judging import Judgment, judge_turn
from bezoar_ray.evaluate.mt_bench.pairwise import Comparison, Game, compare_turn
from bezoar_ray.evaluate.mt_bench.scores import Summary, pairwise_records, summarize
from bezoar_ray.evaluate.served_endpoint import Endpoint
from bezoar_ray.llm.aio import to_the_end
from bezoar_ray.llm.client import ModelClient, open_client
from bezoar_ray.llm.ledger_index import read_index
from bezoar_ray.llm.limits import budget_limits, local_quota_clients
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
_CANDIDATE = "candidate"
_IN_FLIGHT = 64  # per checkpoint; the engine queues the requests it cannot run yet

TurnsByQuestion = dict[int | str, tuple[str, ...]]
"""One model's answers: the turns, by the question's id."""


@dataclass(frozen=True)
class Bench:
    """The questions, and the models that are judged on them.

    These are the checkpoints and the models whose answers the recipe gives as files.
    """

    section: MtBench
    checkpoints: tuple[str, ...]
    systems: Mapping[str, str] = field(default_factory=dict)
    """System messages with which checkpoints are asked, by name."""

    @cached_property
    def questions(self) -> list[Question]:
        """The questions."""
        return load_questions(self.section)

    @cached_property
    def prompts(self) -> JudgePrompts:
        """The judges' prompts.

        Raises:
            RecipeError: the file is not FastChat's, or a question has too many turns.
        """
        if self.section.prompts is None:
            return OWN
        for question in self.questions:
            if len(question.turns) > TURNS:
                raise RecipeError(
                    f"evaluate.mt_bench.prompts: FastChat's prompts have placeholders for {TURNS} turns, but "
                    f"question {question.id!r} has {len(question.turns)}. Remove `prompts`"
                )
        return load_prompts(Path(self.section.prompts))

    @cached_property
    def published_answers(self) -> dict[str, TurnsByQuestion]:
        """The answers in the recipe's files, by model and question.

        Raises:
            RecipeError: a model has the name of a checkpoint.
        """
        answers = load_answers(self.section)
        for name in answers:
            if name in self.checkpoints:
                raise RecipeError(
                    f"evaluate.mt_bench.answers: model_id {name!r} is the name of a checkpoint. "
                    "Rename it in the file"
                )
        return answers

    @cached_property
    def published_grades(self) -> list[Judgment]:
        """The grades of these answers in the recipe's files, by other judges."""
        grades = load_grades(self.section)
        return [Judgment(category="", text="", **grade) for grade in grades]

    @cached_property
    def published_comparisons(self) -> list[Comparison]:
        """The comparisons of these answers in the recipe's files, by other judges."""
        comparisons = []
        for verdict in load_verdicts(self.section):
            first, second = verdict.pop("winners")
            games = (Game(first, ""), Game(second, ""))
            comparisons.append(Comparison(category="", games=games, **verdict))
        return comparisons

    @property
    def models(self) -> tuple[str, ...]:
        """All models that are judged."""
        return (*self.checkpoints, *self.published_answers)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The recipe's pairs of models to compare, as far as the run has both models.

        Raises:
            RecipeError: no checkpoint and no model in the files can have that name.
        """
        known = {*checkpoint_names(), *self.published_answers}
        for name in chain.from_iterable(self.section.pairwise):
            if name not in known:
                raise RecipeError(
                    f"evaluate.mt_bench.pairwise: no model {name!r}. Known models: {', '.join(sorted(known))}"
                )
        # In the recipe, `dpo` is the checkpoint of `align`, whatever its method is.
        present_names = {"dpo": self._aligned_checkpoint}
        pairs = []
        for first, second in self.section.pairwise:
            first = present_names.get(first, first)
            second = present_names.get(second, second)
            if first in self.models and second in self.models:
                pairs.append((first, second))
        return pairs

    @property
    def _aligned_checkpoint(self) -> str:
        """The name of the run's aligned checkpoint, which is its method."""
        for name in STAGES["align"].checkpoint_names:
            if name in self.checkpoints:
                return name
        return "dpo"

    @property
    def total(self) -> int:
        """Number of conversations to judge, plus number of pairs to compare."""
        per_question = len(self.models) + len(self.pairs)
        return per_question * len(self.questions)


async def mt_bench(
    context: StageContext,
    bench: Bench,
    endpoint: Endpoint,
    fingerprints: dict[str, str],
    step: Callable[[], None],
) -> tuple[dict[str, Summary], list[str]]:
    """Answer, judge and score.

    Args:
        context: recipe, run directory and session.
        bench: questions and models.
        endpoint: where the checkpoints are served.
        fingerprints: identity of each checkpoint, by name.
        step: called after each judged conversation and each compared pair.

    Returns:
        `eval.mt_bench` of summary.json, and the files written.
    """
    # Read all files first: a fault in one must not come after paid calls.
    other_grades = bench.published_grades
    other_comparisons = bench.published_comparisons
    _ = bench.prompts

    # Judges first: without their key, no candidate is asked either.
    judges = _open_judges(context)
    candidates = _open_candidates(context, endpoint, fingerprints)
    try:
        runner = BenchRunner(bench, endpoint, candidates, judges, step)
        answers, judgments, comparisons = await runner.run()
    finally:
        clients = (*judges.values(), *candidates.values())
        await asyncio.gather(*(client.close() for client in clients))
    first_judge = next(iter(judges))
    scores = _scores(
        bench, first_judge, judgments, comparisons, other_grades, other_comparisons
    )
    files = fastchat_files.save(
        context.store, bench.questions, answers, judgments, comparisons
    )
    return scores, files


def _open_judges(context: StageContext) -> dict[str, ModelClient]:
    """Open a client for each judge, by its name. They share the budgets."""
    root = str(context.store.root)
    sections = context.recipe.mt_bench_judges
    quota_clients = local_quota_clients(
        root, sections, _JUDGE, budget_limits(context.recipe)
    )
    index = read_index(root, _JUDGE, context.session)
    judges = {}
    for name, section, quota_client in zip(
        _judge_names(sections), sections, quota_clients, strict=True
    ):
        judges[name] = open_client(
            section, root, _JUDGE, context.session, quota=quota_client, index=index
        )
    return judges


def _open_candidates(
    context: StageContext, endpoint: Endpoint, fingerprints: dict[str, str]
) -> dict[str, ModelClient]:
    """Open a client for each checkpoint at the endpoint, by its name."""
    root = str(context.store.root)
    index = read_index(root, _CANDIDATE, context.session)
    candidates = {}
    for name, fingerprint in fingerprints.items():
        section = ModelSection(
            model=name,
            base_url=endpoint.base_url,
            max_in_flight=_IN_FLIGHT,
            timeout=600.0,
        )
        candidates[name] = open_client(
            section,
            root,
            _CANDIDATE,
            context.session,
            identity=fingerprint,
            index=index,
        )
    return candidates


def _judge_names(sections: tuple[ModelSection, ...]) -> list[str]:
    """Name each judge by its model, and by its revision if the model is there twice."""
    models = [section.model for section in sections]
    names = []
    for section in sections:
        if section.revision and models.count(section.model) > 1:
            names.append(f"{section.model}@{section.revision}")
        else:
            names.append(section.model)
    return names


class BenchRunner:
    """Asks every checkpoint every question, and has the judges grade the answers."""

    def __init__(
        self,
        bench: Bench,
        endpoint: Endpoint,
        candidates: dict[str, ModelClient],
        judges: dict[str, ModelClient],
        step: Callable[[], None],
    ):
        self._bench = bench
        self._candidates = candidates
        self._judges = judges
        self._step = step
        self._remaining_context = remaining_context_of(
            endpoint.tokenizer, endpoint.context
        )

    async def run(self) -> tuple[list[Answer], list[Judgment], list[Comparison]]:
        """Return all answers, all judges' grades, and the first judge's comparisons."""
        bench = self._bench
        pairs = bench.pairs
        answers = {}
        for name in bench.models:
            for question in bench.questions:
                answer = asyncio.create_task(self._answer(name, question))
                answers[name, question.id] = answer
        grades = []
        for answer in answers.values():
            grades.append(asyncio.create_task(self._grade(answer)))
        comparisons = []
        for first, second in pairs:
            for question in bench.questions:
                first_answer = answers[first, question.id]
                second_answer = answers[second, question.id]
                comparison = self._compare(first_answer, second_answer)
                comparisons.append(asyncio.create_task(comparison))
        await to_the_end([*answers.values(), *grades, *comparisons])
        return (
            [task.result() for task in answers.values()],
            list(chain.from_iterable(task.result() for task in grades)),
            list(chain.from_iterable(task.result() for task in comparisons)),
        )

    async def _answer(self, name: str, question: Question) -> Answer:
        if name not in self._candidates:
            turns = self._bench.published_answers[name].get(question.id, ())
            return Answer(question, name, turns)
        chat = self._candidates[name].for_row(_row(question))
        return await converse(
            question,
            name,
            chat,
            self._bench.section,
            self._remaining_context,
            self._bench.systems.get(name, ""),
        )

    async def _grade(self, answer_task: "asyncio.Task[Answer]") -> list[Judgment]:
        answer = await answer_task
        question = answer.question
        prompts = self._bench.prompts
        calls = []
        for name, judge in self._judges.items():
            chat = judge.for_row(_row(question))
            for turn in range(1, len(question.turns) + 1):
                calls.append(judge_turn(answer, turn, name, chat, prompts))
        judgments = await to_the_end(calls)
        self._step()
        return judgments

    async def _compare(
        self,
        first_task: "asyncio.Task[Answer]",
        second_task: "asyncio.Task[Answer]",
    ) -> list[Comparison]:
        first = await first_task
        second = await second_task
        question = first.question
        name, judge = next(iter(self._judges.items()))
        chat = judge.for_row(_row(question))
        prompts = self._bench.prompts
        calls = []
        for turn in range(1, len(question.turns) + 1):
            calls.append(compare_turn(first, second, turn, name, chat, prompts))
        comparisons = await to_the_end(calls)
        self._step()
        return comparisons


def _row(question: Question) -> str:
    """Return the row id of a question's calls in the ledger."""
    # The same for all models: identity or step of a call say which one it is about.
    return f"mt_bench/{question.id}"


def _scores(
    bench: Bench,
    first_judge: str,
    judgments: list[Judgment],
    comparisons: list[Comparison],
    other_grades: list[Judgment],
    other_comparisons: list[Comparison],
) -> dict[str, Summary]:
    """Summarize each model by the first judge's verdicts.

    The verdicts of the other judges show how far to trust the first one.
    """
    by_first_judge = [one for one in judgments if one.judge == first_judge]
    by_others = [one for one in judgments if one.judge != first_judge] + other_grades
    skipped = {str(question_id) for question_id in bench.section.references_skip}
    base_grades = _of_model("base", by_first_judge)
    scores = {}
    for name in bench.models:
        grades = _of_model(name, by_first_judge)
        games = [game for game in comparisons if name in game.models]
        other_games = [game for game in other_comparisons if name in game.models]
        summary = summarize(grades, None if name == "base" else base_grades)
        summary["judge"] = first_judge
        summary["prompts"] = bench.prompts.whose
        if name in bench.systems:
            summary["system"] = bench.systems[name]
        summary["pairwise"] = pairwise_records(name, games)
        summary["bias"] = judge_bias(
            grades, _of_model(name, by_others), games, other_games
        )
        if skipped:
            undisputed = [one for one in grades if str(one.question_id) not in skipped]
            summary["without_skipped"] = summarize(undisputed)
        scores[name] = summary
    return scores


def _of_model(name: str, judgments: Iterable[Judgment]) -> list[Judgment]:
    return [judgment for judgment in judgments if judgment.model == name]
