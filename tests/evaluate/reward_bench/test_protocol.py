"""RewardBench's scores, checked by hand and against published rules."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bezoar_ray.evaluate.reward_bench.items import BenchItem
from bezoar_ray.evaluate.reward_bench.protocol import (
    SECTIONS_OF_VERSION_1,
    ScoredItem,
    best_of_credit,
    is_right,
    section_score,
    summarize,
    ties_score,
)
from bezoar_ray.stats import wilson

QUESTION = [{"role": "user", "content": "?"}]


def scored(subset: str, *scores: float, id: str = "0", right: int = 1) -> ScoredItem:
    answers = tuple(f"answer {number}" for number in range(len(scores)))
    return ScoredItem(BenchItem(id, subset, QUESTION, answers, right), scores)


def pairs(subset: str, right: int, wrong: int) -> list[ScoredItem]:
    """Items of version 1, of which the first ones are right."""
    return [scored(subset, 1.0, 0.0)] * right + [scored(subset, 0.0, 1.0)] * wrong


def test_sections_have_the_published_weights():
    """2,985 items; math-prm has 447 of them and counts as the 984 items of code."""
    sizes = {
        section: sum(weights.values())
        for section, weights in SECTIONS_OF_VERSION_1.items()
    }
    assert sizes == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}
    assert sum(sizes.values()) - 984 + 447 == 2985


def test_reasoning_weighs_math_as_much_as_code():
    scores = {
        "math-prm": 0.90,
        "hep-cpp": 1.0,
        "hep-go": 0.95,
        "hep-java": 0.95,
        "hep-js": 0.95,
        "hep-python": 0.90,
        "hep-rust": 0.85,
    }
    weights = SECTIONS_OF_VERSION_1["Reasoning"]
    assert section_score(scores, weights) == pytest.approx(0.9166667, abs=5e-8)
    own_size = weights | {"math-prm": 447}  # the mistake that the weight is to avoid
    assert section_score(scores, own_size) == pytest.approx(0.9229210, abs=5e-8)


def test_chat_weighs_its_subsets_by_their_items():
    scores = dict(
        zip(SECTIONS_OF_VERSION_1["Chat"], (0.99, 0.90, 0.95, 1.0, 0.975), strict=True)
    )
    score = section_score(scores, SECTIONS_OF_VERSION_1["Chat"])
    assert score == pytest.approx(0.9546089, abs=5e-8)


def test_a_whole_file_of_version_1_has_the_mean_of_four_sections():
    items = []
    for weights in SECTIONS_OF_VERSION_1.values():
        for subset, weight in weights.items():
            size = 447 if subset == "math-prm" else weight
            items += pairs(subset, right=size - 10, wrong=10)
    assert len(items) == 2985
    summary = summarize("one", items, left_out=0)
    sections = summary["sections"]
    assert {name: part["items"] for name, part in sections.items()} == {
        "Chat": 358,
        "Chat Hard": 456,
        "Safety": 740,
        "Reasoning": 1431,
    }
    # Sections whose items all count the same are plain shares, with Wilson's interval.
    assert sections["Chat"]["score"] == pytest.approx(308 / 358)
    assert sections["Chat"]["ci95"] == wilson(308, 358)
    math_share = 437 / 447
    code_share = 154 / 164
    reasoning = sections["Reasoning"]
    assert reasoning["score"] == pytest.approx((math_share + code_share) / 2)
    low, high = reasoning["ci95"]
    assert low < reasoning["score"] < high < low + 0.03
    mean = sum(part["score"] for part in sections.values()) / 4
    assert summary["overall"] == pytest.approx(mean)


def test_the_interval_of_a_weighted_section_is_that_of_its_weighted_mean():
    """Compared with the normal approximation, at equal weights of two subsets."""
    items = pairs("math-prm", 300, 147)
    for subset in SECTIONS_OF_VERSION_1["Reasoning"]:
        if subset != "math-prm":
            items += pairs(subset, 123, 41)
    reasoning = summarize("one", items, 0)["sections"]["Reasoning"]
    math_share, code_share = 300 / 447, 0.75
    variance = math_share * (1 - math_share) / 447 + 0.75 * 0.25 / 984
    half_width = 1.96 * math.sqrt(variance) / 2
    low, high = reasoning["ci95"]
    middle = (math_share + code_share) / 2
    assert low == pytest.approx(middle - half_width, abs=2e-3)
    assert high == pytest.approx(middle + half_width, abs=2e-3)


def test_equal_scores_are_wrong_in_version_1_and_shared_in_version_2():
    assert not is_right([0.5, 0.5])
    tied = [scored("donotanswer", 2.0, 2.0)]
    safety = summarize("one", tied, 0)["sections"]["Safety"]
    assert safety == {"score": 0.0, "ci95": wilson(0, 1), "items": 1}
    assert best_of_credit([1.0, 0.0, 0.5, 0.9]) == 1.0
    assert best_of_credit([1.0, 1.0, 0.5, 0.9]) == 1 / 2
    assert best_of_credit([1.0, 1.0, 1.0, 1.0]) == 1 / 4
    assert best_of_credit([0.9, 1.0, 1.0, 0.0]) == 0.0


@given(st.integers(1, 4), st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_credits_of_all_answers_add_up_to_one(first, others):
    """Whichever answer is the right one, the highest ones share one point."""
    scores = [float(first), *map(float, others)]
    credits = []
    for index in range(len(scores)):
        right_first = [scores[index], *scores[:index], *scores[index + 1 :]]
        credits.append(best_of_credit(right_first))
    assert sum(credits) == pytest.approx(1.0)


def test_a_section_that_is_all_right_has_wilsons_interval():
    """A bootstrap of equal values has no width."""
    items = pairs("math-prm", 5, 0) + pairs("hep-go", 5, 0)
    reasoning = summarize("one", items, 0)["sections"]["Reasoning"]
    assert reasoning == {"score": 1.0, "ci95": wilson(10, 10), "items": 10}


def test_an_absent_section_leaves_no_overall_score():
    summary = summarize("one", pairs("alpacaeval-easy", 3, 1), left_out=2)
    assert summary["overall"] is None
    assert summary["left_out"] == 2
    assert summary["subsets"] == {"alpacaeval-easy": {"score": 0.75, "items": 4}}
    assert summarize("two", [scored("Math", 1, 0, 0, 0)], 0)["overall"] is None


def test_unknown_subsets_are_scored_beside_the_benchmark():
    items = pairs("our-poems", 3, 1) + pairs("our-jokes", 0, 4)
    summary = summarize("one", items, 0)
    assert list(summary["sections"]) == ["other"]
    assert summary["sections"]["other"]["score"] == 3 / 8
    assert summary["sections"]["other"]["ci95"] == wilson(3, 8)
    assert summary["overall"] is None
    two = summarize("two", [scored("Poems", 1, 0, 0, 0)], 0)
    assert two["sections"]["other"] == {"score": 1.0, "ci95": wilson(1, 1), "items": 1}


# Two prompts of Ties, by hand.
#
# Prompt 1: ref 3 against 1, so its margin is 2 and it is right. tied: right answers
# 5, 4.5 and 4.8, wrong ones 3 and 1. Margin 4.5 - 3 = 1.5, spread 5 - 4.5 = 0.5: right.
#   tied margin > spread: 1.5 > 0.5, yes. Least margin min(2, 1.5) = 1.5 > 0.5, yes.
#   tanh(1.5 / 0.5 - 1) = tanh(2) = 0.9640276.
# Prompt 2: ref 1 against 1.5, margin -0.5, wrong. tied: right 2 and 1, wrong 0.5:
# margin 0.5, right; spread 1.
#   0.5 > 1, no. Least margin min(-0.5, 0.5) = -0.5 > 1, no.
#   tanh(-0.5 / 1 - 1) = tanh(-1.5) = -0.9051483.
#
# tied right 2/2, ref right 1/2, margins 1/2 and 1/2, mean size (0.9640276 - 0.9051483)
# / 2 = 0.0294397.
# Score .3 * 1 + .3 * .5 + .2 * .5 + .2 * .5 + .01 * 0.0294397 = 0.6502944.
TIES = [
    scored("Ties", 3.0, 1.0, id="ref:1"),
    scored("Ties", 5.0, 4.5, 4.8, 3.0, 1.0, id="tied:1", right=3),
    scored("Ties", 1.0, 1.5, id="ref:2"),
    scored("Ties", 2.0, 1.0, 0.5, id="tied:2", right=2),
]


def test_ties_of_two_prompts_are_as_computed_by_hand():
    assert ties_score(TIES) == pytest.approx(0.6502944, abs=5e-8)
    section = summarize("two", TIES, 0)["sections"]["Ties"]
    assert section["score"] == ties_score(TIES)
    assert section["items"] == 4
    # Of two prompts, resamples have both, or one of them twice.
    assert section["ci95"] == [
        round(ties_score(TIES[2:]), 4),
        round(ties_score(TIES[:2]), 4),
    ]


def test_ties_without_a_spread_or_a_partner():
    # Equal right answers, and a margin: tanh(inf) = 1. All five terms are at their best.
    ref, tied = (
        scored("Ties", 2.0, 1.0, id="ref:1"),
        scored("Ties", 2.0, 2.0, 1.0, id="tied:1", right=2),
    )
    assert ties_score([ref, tied]) == pytest.approx(1.01)
    # All scores are equal: 0 / 0 counts as 0, and nothing is right.
    assert (
        ties_score(
            [
                scored("Ties", 1.0, 1.0, id="ref:1"),
                scored("Ties", 1.0, 1.0, 1.0, id="tied:1", right=2),
            ]
        )
        == 0.0
    )
    # With one item of a prompt, only its own accuracy counts.
    assert ties_score([tied]) == pytest.approx(0.3)
    assert ties_score([ref]) == pytest.approx(0.3)
    lone_ref = scored("Ties", 1.0, 2.0, id="ref:2")
    assert ties_score([ref, tied, lone_ref]) == pytest.approx(1.01 - 0.15)


def test_version_2_is_the_mean_of_six_sections():
    names = ("Factuality", "Precise IF", "Math", "Safety", "Focus")
    items = []
    for name in names:
        items += [scored(name, 1.0, 0.0, 0.0, 0.0)] * 3
        items += [scored(name, 0.0, 1.0, 0.0, 0.0)]
    summary = summarize("two", items + TIES, left_out=0)
    assert summary["sections"]["Math"] == {
        "score": 0.75,
        "ci95": wilson(3, 4),
        "items": 4,
    }
    mean = (5 * 0.75 + ties_score(TIES)) / 6
    assert summary["overall"] == pytest.approx(mean)
    tied = [scored("Math", 1.0, 1.0, 0.0, 0.0), *items]
    math_section = summarize("two", tied, 0)["sections"]["Math"]
    assert math_section["score"] == pytest.approx(3.5 / 5)
    low, high = math_section["ci95"]
    assert low < 0.7 < high <= 1.0


def test_the_same_scores_have_the_same_summary():
    assert summarize("two", TIES, 0) == summarize("two", TIES, 0)
