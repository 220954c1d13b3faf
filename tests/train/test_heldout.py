"""The held-out score is the mean log-probability of the answer's tokens, as one would work it out by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from bezoar_ray.recipe import Recipe
from bezoar_ray.train import data, heldout, models, pairs
from bezoar_ray.train.tokenizer import load_tokenizer


class Fixed:
    """A model that gives token 1 the probability 1/2 and the others 1/6, whatever it reads."""

    device = torch.device("cpu")

    def eval(self) -> None:
        pass

    def __call__(self, input_ids, **_):
        logits = torch.log(torch.tensor([1 / 6, 1 / 2, 1 / 6, 1 / 6])).expand(*input_ids.shape, 4)
        return SimpleNamespace(logits=logits)


def test_scores_by_hand() -> None:
    no = data.IGNORED
    rows = [
        {"input_ids": [3, 2, 1, 1], "labels": [no, no, 1, 1]},
        {"input_ids": [3, 1, 2], "labels": [no, 1, 2]},
        {"input_ids": [3, 2], "labels": [no, 2]},
    ]
    scores = heldout.mean_log_probabilities(Fixed(), rows, batch=2)
    assert scores == pytest.approx([math.log(1 / 2), (math.log(1 / 2) + math.log(1 / 6)) / 2, math.log(1 / 6)])


def test_a_tie_is_no_win_and_nothing_is_no_score() -> None:
    assert heldout.share_higher([1.0, 2.0, 0.0, 5.0], [0.0, 2.0, 1.0, 4.0]) == 0.5
    assert heldout.share_higher([], []) is None


def test_a_batch_scores_as_its_rows_do_alone(recipe: Recipe) -> None:
    """Padding and order leave no trace."""
    tokenizer, model = load_tokenizer(recipe), models.load(recipe.base)
    asked = [{"role": "user", "content": "What colour is animal1?"}]
    rows = [data.last_answer(tokenizer, asked, "blue " * n) for n in (9, 1, 4)]
    together = heldout.mean_log_probabilities(model, rows, batch=3)
    alone = [heldout.mean_log_probabilities(model, [row], batch=1)[0] for row in rows]
    assert together == pytest.approx(alone, abs=1e-5)


def test_pairs_that_are_too_long_do_not_count(recipe: Recipe) -> None:
    tokenizer, asked = load_tokenizer(recipe), [{"role": "user", "content": "?"}]
    long = pairs.Pair("1", "s", "MIT", asked, "blue " * 300, "red")
    assert heldout.accuracy(Fixed(), tokenizer, [long], max_length=100, batch=2) is None
