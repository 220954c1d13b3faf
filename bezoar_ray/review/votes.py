"""People compare the answers of two models, without knowing which model wrote which.

Votes are appended to a log. Those that count are also written in FastChat's format, as
`evaluate.mt_bench.judgments` reads it: one file for each reviewer.
"""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote

import orjson

from bezoar_ray import layout
from bezoar_ray.data.decision import now
from bezoar_ray.data.schema import row_id
from bezoar_ray.errors import RecipeError
from bezoar_ray.evaluate.mt_bench.fastchat_files import ANSWERS, QUESTIONS
from bezoar_ray.review.line_log import LineLog, read_lines
from bezoar_ray.store import Store

Choice = Literal["left", "right", "both_good", "both_bad", "skip", "undo"]


@dataclass(frozen=True)
class AnswerPair:
    """The answers of two models to one turn, as a reviewer sees them."""

    question_id: int | str
    turn: int
    """From 1."""
    user_turns: list[str]
    """What the user says, up to this turn."""
    left: str
    """The model whose answers are on the left."""
    right: str
    left_turns: list[str]
    right_turns: list[str]

    @property
    def id(self) -> str:
        """Names the pair within its page."""
        return f"{self.question_id}/{self.turn}"


@dataclass(frozen=True)
class Vote:
    """What one reviewer said of one pair of answers."""

    question_id: int | str
    turn: int
    left: str
    right: str
    choice: Choice
    reviewer: str
    time: str
    seconds: float = 0.0

    @property
    def winner(self) -> str | None:
        """The model that is better; None where neither is."""
        return {"left": self.left, "right": self.right}.get(self.choice)


class VoteQueue:
    """The pairs of answers of two models that people compare.

    Args:
        store: the run directory, with the answers to MT-Bench's or other questions.
        models: names of the two models.
        seed: of the recipe. It draws the order of the questions and the sides.

    Raises:
        RecipeError: the run has no answers of one of the models.
    """

    def __init__(self, store: Store, models: tuple[str, str], seed: int):
        self._store = store
        self._models = models
        self._seed = seed
        self._log = LineLog(store, layout.VOTES)
        self._questions = self._read_questions()
        self._answers = self._read_answers()

    def pairs(self, reviewer: str) -> list[AnswerPair]:
        """Return all pairs, with the sides that are drawn for this reviewer."""
        found = []
        for question_id in sorted(self._questions, key=self._draw):
            turns = self._questions[question_id]
            for turn in range(1, len(turns) + 1):
                pair = self._pair(question_id, turn, reviewer)
                if pair:
                    found.append(pair)
        return found

    def remaining(self, reviewer: str) -> list[AnswerPair]:
        """Return the pairs that a reviewer has not voted on, in order."""
        voted = {
            (vote.question_id, vote.turn)
            for vote in self._votes()
            if vote.reviewer == reviewer
        }
        return [
            pair
            for pair in self.pairs(reviewer)
            if (pair.question_id, pair.turn) not in voted
        ]

    def vote(
        self, id: str, choice: Choice, reviewer: str, seconds: float
    ) -> AnswerPair:
        """Keep a vote. It is durable when this returns.

        Returns:
            The pair, whose models may be shown now.

        Raises:
            RecipeError: there is no such pair, or the reviewer has no name.
            BezoarError: the vote cannot be written.
        """
        if not reviewer.strip():
            raise RecipeError("reviewer: empty. Enter a name")
        for pair in self.pairs(reviewer):
            if pair.id == id:
                self._append(pair, choice, reviewer, seconds)
                return pair
        raise RecipeError(f"no pair {id!r} is under review here. Load the page again")

    def undo(self, reviewer: str) -> AnswerPair | None:
        """Withdraw the last vote of a reviewer.

        Returns:
            Its pair; None if there is no vote.
        """
        by_id = {pair.id: pair for pair in self.pairs(reviewer)}
        for vote in reversed(self._votes()):
            pair = by_id.get(f"{vote.question_id}/{vote.turn}")
            if vote.reviewer == reviewer and pair:
                self._append(pair, "undo", reviewer, 0.0)
                return pair
        return None

    def _append(
        self, pair: AnswerPair, choice: Choice, reviewer: str, seconds: float
    ) -> None:
        vote = Vote(
            pair.question_id,
            pair.turn,
            pair.left,
            pair.right,
            choice,
            reviewer,
            now(),
            seconds,
        )
        self._log.append(orjson.dumps(asdict(vote)) + b"\n")
        write_judgments(self._store, reviewer)

    def _votes(self) -> list[Vote]:
        """Return the votes that count on these two models, in the order of time."""
        return [
            vote
            for vote in read_votes(self._store)
            if {vote.left, vote.right} == set(self._models)
        ]

    def _pair(
        self, question_id: int | str, turn: int, reviewer: str
    ) -> AnswerPair | None:
        """Return one pair; None where one of the models did not answer the turn."""
        first, second = self._models
        # By the reviewer, too: so no side is better for all of them.
        if int(self._draw(question_id, turn, reviewer), 16) % 2:
            first, second = second, first
        left_turns = self._answers[first].get(question_id, [])[:turn]
        right_turns = self._answers[second].get(question_id, [])[:turn]
        if min(len(left_turns), len(right_turns)) < turn:
            return None
        user_turns = self._questions[question_id][:turn]
        return AnswerPair(
            question_id, turn, user_turns, first, second, left_turns, right_turns
        )

    def _draw(self, *what: object) -> str:
        return row_id(self._seed, "pairs", *what)

    def _read_questions(self) -> dict[int | str, list[str]]:
        if not self._store.exists(QUESTIONS):
            raise RecipeError(
                f"{self._store.root} has no answers to compare. Carry out its stage "
                "evaluate with evaluate.mt_bench first"
            )
        lines = self._store.read(QUESTIONS).splitlines()
        rows = [orjson.loads(line) for line in lines]
        return {row["question_id"]: row["turns"] for row in rows}

    def _read_answers(self) -> dict[str, dict[int | str, list[str]]]:
        answers: dict[str, dict[int | str, list[str]]] = {}
        for line in self._store.read(ANSWERS).splitlines():
            row = orjson.loads(line)
            turns = row["choices"][0]["turns"]
            answers.setdefault(row["model_id"], {})[row["question_id"]] = turns
        first, second = self._models
        for model in self._models:
            if model not in answers or first == second:
                raise RecipeError(
                    f"--pairs {first} {second}: name two different models that have "
                    f"answered: {', '.join(sorted(answers))}"
                )
        return answers


def read_votes(store: Store) -> list[Vote]:
    """Read the votes that count, in the order of time.

    That is the last one of each reviewer on two models' answers to a turn, unless it
    was undone.
    """
    last: dict[tuple[object, ...], Vote] = {}
    votes = [Vote(**row) for row in read_lines(store, layout.VOTES)]
    for vote in sorted(votes, key=lambda vote: vote.time):
        models = frozenset((vote.left, vote.right))
        key = (vote.question_id, vote.turn, models, vote.reviewer)
        last.pop(key, None)
        if vote.choice != "undo":
            last[key] = vote
    return list(last.values())


def write_judgments(store: Store, reviewer: str) -> None:
    """Write the votes of a reviewer in FastChat's format, as a whole file."""
    rows = [
        _judgment(vote)
        for vote in read_votes(store)
        if vote.reviewer == reviewer and vote.choice != "skip"
    ]
    lines = [orjson.dumps(row) + b"\n" for row in rows]
    # A name may hold characters that a path cannot.
    store.replace(layout.votes(quote(reviewer, safe=" ")), b"".join(lines))


def _judgment(vote: Vote) -> dict[str, Any]:
    """Return a row in FastChat's pair format.

    FastChat has a tie only, so whether both are good or bad is in a field of our own.
    """
    models = sorted((vote.left, vote.right))
    winner = "tie" if vote.winner is None else f"model_{models.index(vote.winner) + 1}"
    return {
        "question_id": vote.question_id,
        "model_1": models[0],
        "model_2": models[1],
        "judge": [vote.reviewer, "human"],
        # A person sees the answers in one order, drawn at random.
        "g1_winner": winner,
        "g2_winner": winner,
        "turn": vote.turn,
        "tstamp": datetime.fromisoformat(vote.time).timestamp(),
        "choice": vote.choice,
    }
