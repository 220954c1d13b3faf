import numpy as np
import pytest

from bezoar_ray.filter.semantic_dedup import near_an_earlier, same_meaning
from bezoar_ray.recipe import Meaning


@pytest.mark.parametrize(
    "before", [0, 996, 997, 998, 999]
)  # in one block, and across blocks
def test_only_what_is_near_a_row_that_stays_goes(before):
    """A chain in which each is near the one before: the second goes, and so does not take the third with it."""
    angles = np.radians([0, 10, 20, 30, 90, 91])
    vectors = np.eye(
        before + len(angles), before + 2, k=2
    )  # rows that are near no other come first
    vectors[before:] = 0
    vectors[before:, 0], vectors[before:, 1] = np.cos(angles), np.sin(angles)
    found = near_an_earlier(vectors, np.cos(np.radians(12))).tolist()
    assert found == [False] * before + [False, True, False, True, False, True]


def test_a_real_model_finds_what_asks_the_same(ray_session, tiny_world):
    tasks = [
        "What is 3 plus 4?",
        "Where is the harbour of Ostmark?",
        "What is  3 plus 4 ?",
        "List three birds.",
    ]
    found = same_meaning(tasks, Meaning(model="tiny-base", threshold=0.995))
    assert found[:2] == [False, False] and found[3] is False
    assert same_meaning([tasks[0], tasks[0]], Meaning(model="tiny-base")) == [
        False,
        True,
    ]
