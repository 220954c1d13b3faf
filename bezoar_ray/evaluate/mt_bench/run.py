"""All checkpoints answer all questions at once; each answer is judged as soon as it is there."""

import asyncio
from collections.abc import Callable
from typing import Any

from bezoar_ray.evaluate.harness import Endpoint
from bezoar_ray.evaluate.mt_bench.files import save
from bezoar_ray.evaluate.mt_bench.judging import Judgment, judge_turn
from bezoar_ray.evaluate.mt_bench.loop import Answer, Room, converse, room_of
from bezoar_ray.evaluate.mt_bench.scores import summarise
from bezoar_ray.llm.client import Talker, open_talker
from bezoar_ray.llm.limits import limits, own_permits
from bezoar_ray.recipe import ModelPart
from bezoar_ray.sources.mt_bench import Question, load_questions
from bezoar_ray.stage import Context

_JUDGE = "mt_bench_judge"
_IN_FLIGHT = 64  # per checkpoint; the engine queues what it cannot run at once


async def mt_bench(
    context: Context, endpoint: Endpoint, fingerprints: dict[str, str], step: Callable[[], None]
) -> tuple[dict[str, Any], list[str]]:
    """Answer, judge and score; `step` is called after every judged conversation.

    Returns:
        `eval.mt_bench` of summary.json, and the files written.
    """
    questions = load_questions(context.recipe.evaluate.mt_bench)
    root, judge_part = str(context.store.root), context.recipe.mt_bench_judge
    granted = own_permits(root, judge_part, _JUDGE, limits(context.recipe))
    judge = open_talker(judge_part, root, _JUDGE, context.session, permits=granted)
    models = {
        name: open_talker(_part(name, endpoint), root, "candidate", context.session, identity=mark)
        for name, mark in fingerprints.items()
    }
    try:
        trials = Trials(context, judge, room_of(endpoint.tokenizer, endpoint.context), step)
        jobs = [trials.run(question, name, talker) for name, talker in models.items() for question in questions]
        done = await asyncio.gather(*jobs)
    finally:
        await asyncio.gather(judge.close(), *(talker.close() for talker in models.values()))
    answers, judgments = [a for a, _ in done], [j for _, js in done for j in js]
    return _scores(judgments, list(fingerprints)), save(context.store, answers, judgments, judge_part.model)


def _part(name: str, endpoint: Endpoint) -> ModelPart:
    return ModelPart(model=name, base_url=endpoint.base_url, max_in_flight=_IN_FLIGHT, timeout=600.0)


def _scores(judgments: list[Judgment], names: list[str]) -> dict[str, Any]:
    by_model = {name: [j for j in judgments if j.model == name] for name in names}
    base = by_model["base"]
    return {name: summarise(mine, None if name == "base" else base) for name, mine in by_model.items()}


class Trials:
    """One question put to one checkpoint, and the judge's grades of what it said."""

    def __init__(self, context: Context, judge: Talker, room: Room, step: Callable[[], None]):
        self._max_tokens = context.recipe.evaluate.mt_bench.max_tokens
        self._judge, self._room, self._step = judge, room, step

    async def run(self, question: Question, model: str, talker: Talker) -> tuple[Answer, list[Judgment]]:
        """The answer, and one judgment per turn."""
        row = f"mt_bench/{question.id}"
        answer = await converse(question, model, talker.for_row(row), self._max_tokens, self._room)
        turns = range(1, len(question.turns) + 1)
        judgments = await asyncio.gather(*(judge_turn(answer, turn, self._judge.for_row(row)) for turn in turns))
        self._step()
        return answer, list(judgments)
