"""MT-Bench scores and what is known of the judge, checked by hand."""

from dataclasses import replace

import pytest

from bezoar_ray.evaluate.mt_bench.judge_diagnostics import judge_bias
from bezoar_ray.evaluate.mt_bench.judging import Judgment
from bezoar_ray.evaluate.mt_bench.pairwise import Comparison, Game
from bezoar_ray.evaluate.mt_bench.scores import pairwise_records, summarize


def judged(
    scores: dict[int, tuple[float | None, ...]],
    categories: dict[int, str] | None = None,
    judge: str = "j",
):
    categories = categories or {}
    return [
        Judgment(
            question, categories.get(question, "math"), "m", judge, turn, score, ""
        )
        for question, pair in scores.items()
        for turn, score in enumerate(pair, 1)
    ]


def test_the_score_is_the_mean_of_all_scored_turns():
    summary = summarize(judged({1: (2, 4), 2: (9, 5)}, {1: "math", 2: "writing"}))
    assert summary["score"] == 5.0
    assert summary["by_category"] == {"math": 3.0, "writing": 7.0}
    assert (summary["scored"], summary["unscored"]) == (4, 0)


def test_unscored_turns_are_counted_and_enter_no_mean():
    summary = summarize(judged({1: (2, None), 2: (None, 4)}))
    assert summary["score"] == 3.0
    assert (summary["scored"], summary["unscored"]) == (2, 2)


def test_equal_scores_have_an_interval_without_width():
    assert summarize(judged(dict.fromkeys(range(5), (7, 7))))["ci95"] == [7.0, 7.0]


def test_the_interval_draws_whole_questions():
    """Turns that differ within a question but not between questions leave no uncertainty about the mean."""
    assert summarize(judged(dict.fromkeys(range(5), (1, 9))))["ci95"] == [5.0, 5.0]


def test_two_questions_give_the_interval_of_their_four_equally_likely_draws():
    """Means 2, 5, 5, 8 with a quarter each: the 2.5 % and 97.5 % quantiles are the extremes."""
    assert summarize(judged({1: (2, 2), 2: (8, 8)}))["ci95"] == [2.0, 8.0]


def test_the_same_judgments_give_the_same_interval():
    scores = judged({q: (q % 10 + 1, (3 * q) % 10 + 1) for q in range(16)})
    assert summarize(scores)["ci95"] == summarize(scores)["ci95"]


def test_versus_base_pairs_turns_that_both_have_a_score_for():
    base = judged({1: (2, None), 2: (4, 4), 3: (1, 1)})
    mine = judged({1: (5, 10), 2: (7, None), 3: (4, 4)})
    versus = summarize(mine, base)["versus_base"]
    assert versus == {"difference": 3.0, "ci95": [3.0, 3.0]}


def test_a_checkpoint_without_any_score_has_none():
    summary = summarize(judged({1: (None, None)}), judged({1: (3, 3)}))
    assert summary["score"] is None and summary["ci95"] is None
    assert summary["versus_base"] == {"difference": None, "ci95": None}
    assert summary["unscored"] == 2


@pytest.mark.parametrize("better", [0.5, 3.0])
def test_a_steady_gain_excludes_zero_even_where_questions_differ_widely(better):
    base = judged({q: (q % 7 + 1, q % 7 + 1) for q in range(16)})
    mine = judged({q: (q % 7 + 1 + better, q % 7 + 1 + better) for q in range(16)})
    assert summarize(mine, base)["versus_base"]["ci95"][0] > 0


def compared(
    question: int, first: str | None, swapped: str | None, words=(10, 20)
) -> Comparison:
    """`sft` against `base`, by what the judge says in each order."""
    return Comparison(
        question,
        "math",
        ("sft", "base"),
        "j",
        1,
        (Game(first, ""), Game(swapped, "")),
        words,
    )


GAMES = [
    compared(1, "sft", "sft"),
    compared(2, "base", "base"),
    compared(3, "sft", "base"),  # a flip: a tie
    compared(4, "tie", "sft"),
    compared(5, "sft", None),
    compared(6, "base", "base", words=(7, 7)),
]


def test_wins_ties_and_losses_add_up_from_either_side():
    record = pairwise_records("sft", GAMES)["base"]
    assert {key: record[key] for key in ("wins", "ties", "losses", "unscored")} == {
        "wins": 1,
        "ties": 2,
        "losses": 2,
        "unscored": 1,
    }
    assert record["win_rate"] == (1 + 2 * 0.5) / 5
    assert pairwise_records("base", GAMES)["sft"]["win_rate"] == (2 + 2 * 0.5) / 5
    assert pairwise_records("dpo", GAMES) == {}


def test_position_and_length_bias_are_shares_of_what_can_show_them():
    found = judge_bias([], [], GAMES)
    assert (found["flip_rate"], found["compared"]) == (0.2, 5)
    assert (found["longer_wins"], found["decided"]) == (
        0.5,
        2,
    )  # base's 20 words once, sft's 10 once


def test_turns_are_averaged_apart():
    assert judge_bias(judged({1: (8, 4), 2: (6, None)}), [], [])["by_turn"] == {
        1: 7.0,
        2: 4.0,
    }


def test_other_judges_stand_beside_the_first_where_both_gave_a_grade():
    mine = judged({1: (2, 4), 2: (9, None)})
    alike = judged({1: (2, 4), 2: (9, 9)}, judge="k")
    found = judge_bias(
        mine,
        [
            *alike,
            *judged({1: (9, 1)}, judge="l"),
            *judged({1: (None, None)}, judge="m"),
        ],
        [],
    )["judges"]
    none = {"same_winner": None, "games": 0}
    assert found["k"] == {
        "score": 6.0,
        "rating_kappa": 1.0,
        "beside": 3,
        "unscored": 0,
        **none,
    }
    assert found["l"]["rating_kappa"] < 0 and found["l"]["beside"] == 2
    assert found["m"] == {
        "score": None,
        "rating_kappa": None,
        "beside": 0,
        "unscored": 2,
        **none,
    }


def test_comparisons_of_other_judges_stand_beside_the_first_ones():
    theirs = [replace(game, judge="k", games=GAMES[0].games) for game in GAMES]
    found = judge_bias([], [], GAMES, theirs)["judges"]["k"]
    alike = sum(game.winner == GAMES[0].winner for game in GAMES)
    assert (found["same_winner"], found["games"], found["score"]) == (
        alike / 5,
        5,
        None,
    )


def test_where_nothing_was_compared_nothing_is_claimed():
    found = judge_bias([], [], [])
    assert (
        found["flip_rate"] is None
        and found["longer_wins"] is None
        and found["judges"] == {}
    )
