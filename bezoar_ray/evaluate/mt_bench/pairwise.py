"""Two models compared by a judge, turn by turn, in both orders: a win counts only if both agree (arXiv 2306.05685)."""

from dataclasses import dataclass

from bezoar_ray.evaluate.mt_bench.answers import Answer
from bezoar_ray.evaluate.mt_bench.judge_prompts import (
    OWN,
    TIE,
    JudgePrompts,
    read_verdict,
)
from bezoar_ray.evaluate.mt_bench.judging import asked
from bezoar_ray.llm.aio import to_the_end
from bezoar_ray.llm.chat import Chat


@dataclass(frozen=True)
class Game:
    """One comparison in one order. `winner` is a model's name, `tie`, or None where no verdict could be read."""

    winner: str | None
    text: str
    user_prompt: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two models' answers to one turn. In the first game they stand in the order of `models`, in the second swapped."""

    question_id: int | str
    category: str
    models: tuple[str, str]
    judge: str
    turn: int
    games: tuple[Game, Game]
    words: tuple[int, int] = (0, 0)
    with_reference: bool = False

    @property
    def winner(self) -> str | None:
        """Who wins in both orders, else `tie`; None where a verdict is missing."""
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
    """Both games of one turn, from 1."""
    question, models = first.question, (first.model, second.model)
    if min(len(first.turns), len(second.turns)) < turn:
        unjudged = Game(None, "no answer to judge")
        return Comparison(
            question.id, question.category, models, judge, turn, (unjudged, unjudged)
        )
    game, swapped = await to_the_end(
        [
            _game(first, second, turn, chat, prompts),
            _game(second, first, turn, chat, prompts),
        ]
    )
    words = len(first.turns[turn - 1].split()), len(second.turns[turn - 1].split())
    guided = question.references is not None
    return Comparison(
        question.id,
        question.category,
        models,
        judge,
        turn,
        (game, swapped),
        words,
        guided,
    )


async def _game(
    first: Answer, second: Answer, turn: int, chat: Chat, prompts: JudgePrompts
) -> Game:
    question = first.question
    references = question.references and question.references[:turn]
    messages = prompts.compare(
        question.turns[:turn], first.turns[:turn], second.turns[:turn], references
    )
    verdict, text = await asked(
        messages,
        f"compare/{first.model}/{second.model}/{turn}",
        chat,
        read_verdict,
        "verdict",
    )
    names = {"first": first.model, "second": second.model, TIE: TIE, None: None}
    return Game(names[verdict], text, messages[-1]["content"])
