"""The law of DR-PO's prefixes (shared facts, 3.5.1), and what they never do."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bezoar_ray.train.resets import prefix_length

DRAWS = 40_000


def counted(length: int, reset: float) -> dict[int, float]:
    """How often each length of a prefix is drawn."""
    counts = Counter(
        prefix_length(0, number % 7, f"row{number}", length, reset)
        for number in range(DRAWS)
    )
    return {prefix: count / DRAWS for prefix, count in counts.items()}


def test_the_law_of_the_mask() -> None:
    shares = counted(length=5, reset=0.25)
    assert shares.pop(0) == pytest.approx(0.75, abs=0.01)
    assert shares == {k: pytest.approx(0.0625, abs=0.005) for k in (1, 2, 3, 4)}
    mean = sum(prefix * share for prefix, share in shares.items())
    assert mean == pytest.approx(0.625, abs=0.02)
    forced = [sum(s for k, s in shares.items() if k > slot) for slot in range(8)]
    expected = [0.25, 0.1875, 0.125, 0.0625, 0, 0, 0, 0]
    assert forced == pytest.approx(expected, abs=0.01)


def test_with_a_share_of_one_every_episode_is_reset() -> None:
    assert counted(length=2, reset=1.0) == {1: 1.0}
    assert counted(length=1, reset=1.0) == {0: 1.0}
    assert set(counted(length=4, reset=1.0)) == {1, 2, 3}
    assert counted(length=9, reset=0.0) == {0: 1.0}


@given(st.integers(0, 3), st.integers(0, 500), st.integers(0, 200), st.floats(0, 1))
def test_a_prefix_never_holds_the_end(
    seed: int, iteration: int, length: int, reset: float
) -> None:
    found = prefix_length(seed, iteration, "row", length, reset)
    assert 0 <= found <= max(0, length - 1)


@given(st.integers(0, 500), st.integers(2, 60), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_share_only_adds_prefixes(
    iteration: int, length: int, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    few = prefix_length(0, iteration, "row", length, low)
    many = prefix_length(0, iteration, "row", length, high)
    assert few in (0, many)


def test_a_group_shares_its_prefix_and_other_prompts_and_iterations_differ() -> None:
    def draw(seed: int = 0, iteration: int = 3, row: str = "a") -> int:
        return prefix_length(seed, iteration, row, 10_000, 1.0)

    assert draw() == draw()
    assert len({draw(), draw(seed=1), draw(iteration=4), draw(row="b")}) == 4
