"""Pairwise comparison by a judge, turn by turn (arXiv 2306.05685).

Each pair is shown in both orders. A win counts only if both orders agree.
"""

from dataclasses import dataclass

from bezoar_ray.evaluate.mt_bench.answers import Answer
from bezoar_ray.evaluate.mt_bench.judge_prompts import (
    OWN,
    TIE,
    JudgePrompts,
    read_verdict,
)
from bezoar_ray.evaluate.mt_bench.judging import ask_judge
from bezoar_ray.llm.aio import to_the_end
from bezoar_ray.llm.chat import Chat


@dataclass(frozen=True)
class Game:
    """One comparison in one order."""

    winner: str | None
    """A model's name, `tie`, or None if no verdict could be read."""
    text: str
    """The judge's reply."""
    user_prompt: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two models' answers to one turn, compared in both orders."""

    question_id: int | str
    category: str
    models: tuple[str, str]
    judge: str
    turn: int
    """From 1."""
    games: tuple[Game, Game]
    """The first game shows the answers in the order of `models`, the second reversed."""
    words: tuple[int, int] = (0, 0)
    """Length of each answer."""
    with_reference: bool = False

    @property
    def winner(self) -> str | None:
        """The model that wins in both orders, else `tie`; None without both verdicts."""
        first, second = (game.winner for game in self.games)
        if first is None or second is None:
            return None
        return first if first == second else TIE

    @property
    def flipped(self) -> bool:
        """Whether the judge names one model in one order and the other in the other."""
        return {game.winner for game in self.games} == set(self.models)


async def compare_turn(
    first: Answer,
    second: Answer,
    turn: int,
    judge: str,
    chat: Chat,
    prompts: JudgePrompts = OWN,
) -> Comparison:
    """Compare two models' answers to one turn, from 1, in both orders."""
    question = first.question
    models = (first.model, second.model)
    # The candidate's call failed, for example as its context was full.
    if min(len(first.turns), len(second.turns)) < turn:
        not_judged = Game(None, "no answer to judge")
        return Comparison(
            question_id=question.id,
            category=question.category,
            models=models,
            judge=judge,
            turn=turn,
            games=(not_judged, not_judged),
        )
    game, reversed_game = await to_the_end(
        [
            _play(first, second, turn, chat, prompts),
            _play(second, first, turn, chat, prompts),
        ]
    )
    return Comparison(
        question_id=question.id,
        category=question.category,
        models=models,
        judge=judge,
        turn=turn,
        games=(game, reversed_game),
        words=(_count_words(first, turn), _count_words(second, turn)),
        with_reference=question.references is not None,
    )


def _count_words(answer: Answer, turn: int) -> int:
    return len(answer.turns[turn - 1].split())


async def _play(
    first: Answer, second: Answer, turn: int, chat: Chat, prompts: JudgePrompts
) -> Game:
    """Ask for one verdict, with the answers in this order."""
    question = first.question
    references = question.references and question.references[:turn]
    messages = prompts.compare(
        question.turns[:turn],
        first.turns[:turn],
        second.turns[:turn],
        references,
    )
    step = f"compare/{first.model}/{second.model}/{turn}"
    verdict, text = await ask_judge(messages, step, chat, read_verdict, "verdict")
    winner = verdict
    if verdict == "first":
        winner = first.model
    elif verdict == "second":
        winner = second.model
    return Game(winner, text, messages[-1]["content"])
