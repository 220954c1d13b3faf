"""From the scores of answers to the weights and rows of a round, by hand."""

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bezoar_ray.data.schema import ATTRIBUTES
from bezoar_ray.errors import BezoarError
from bezoar_ray.recipe import Steer
from bezoar_ray.store import Store
from bezoar_ray.train.encoding import IGNORED
from bezoar_ray.train.steer_scores import (
    FEWER_THAN_TWO,
    _Answer,
    _Group,
    _table,
    weigh,
)
from bezoar_ray.train.steer_weights import ABSENT

GOAL = {"helpfulness": 4}
# Those of one answer may lie anywhere where the goal names no attribute.
RATED_LOW = [1.0, 2.0, 2.0, 2.0, 2.0]
RATED_HIGH = [3.8, 0.0, 0.0, 0.0, 0.0]


def answer(
    text: str, ratings: list[float], plain: float = -5.0, sampler: float = -5.0
) -> _Answer:
    ids = [1, 5, *range(10, 10 + len(text))]
    labels = [IGNORED, IGNORED, *ids[2:]]
    tokens = {"input_ids": ids, "labels": labels}
    return _Answer(text, tokens, tokens, ids, plain, sampler, ratings)


def scored(store: Store, *shares: list[_Group]) -> None:
    for rank, groups in enumerate(shares):
        store.replace_table(f"scores/{rank:05}.parquet", _table(groups))


def steer(**fields: Any) -> Steer:
    return Steer.model_validate({"goals": [GOAL], "samples": 3} | fields)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run directory."""
    return Store(tmp_path)


def test_equal_ratings_leave_the_ratio_of_the_models(store: Store) -> None:
    """The softmax of -2, -2.5 and -1.5."""
    group = _Group(
        "g",
        GOAL,
        [
            answer("aa", RATED_LOW, -12, -10),
            answer("bbb", RATED_LOW, -11, -8.5),
            answer("c", RATED_LOW, -11, -9.5),
        ],
        {},
    )
    scored(store, [group])
    weighed = weigh(store, steer(), "scores", "train/steer-1")
    rows = pq.read_table(store.path("train/steer-1/weights.parquet")).to_pylist()
    shares = [row["weight"] for row in rows]
    assert shares == pytest.approx([0.307196, 0.186324, 0.506480], abs=1e-6)
    assert weighed.metrics["effective_samples"] == pytest.approx(
        1 / sum(share**2 for share in shares), abs=1e-4
    )
    assert [row["answer"] for row in rows] == ["aa", "bbb", "c"]
    assert [row["log_plain"] for row in rows] == [-12, -11, -11]
    examples = weighed.dataset.open(store)
    assert len(examples) == 3
    assert examples["sampler"][:] == [-10, -8.5, -9.5]
    data = weighed.dataset
    assert (data.rows, data.sequences, data.tokens) == (1, 3, 4 + 5 + 3)
    assert data.longest_sequence == 5


def test_the_better_rated_answer_gets_the_weight(store: Store) -> None:
    group = _Group("g", GOAL, [answer("a", RATED_LOW), answer("b", RATED_HIGH)], {})
    scored(store, [group])
    weighed = weigh(store, steer(samples=2), "scores", "train/steer-1")
    rows = pq.read_table(store.path("train/steer-1/weights.parquet")).to_pylist()
    assert rows[1]["weight"] > 0.999
    assert [rows[1][name] for name in ATTRIBUTES] == RATED_HIGH
    metrics = weighed.metrics
    # Distances 3 and 0.2, alone and by weight; what the goal does not name is free.
    assert metrics["goal_distance"] == pytest.approx(1.6)
    assert metrics["goal_distance_weighted"] == pytest.approx(0.2, abs=0.01)
    assert metrics["effective_samples"] == pytest.approx(1.0, abs=0.01)


def test_an_absent_answer_fills_its_place_and_counts_nothing(store: Store) -> None:
    short = _Group("g", GOAL, [answer("a", RATED_LOW), answer("b", RATED_LOW)], {})
    scored(store, [short])
    data = weigh(store, steer(), "scores", "train/steer-1").dataset
    (*_, absent) = list(data.open(store))
    assert absent["labels"] == [IGNORED]
    assert len(absent["input_ids"]) == 1
    assert (absent["target"], absent["sampler"]) == (-ABSENT, ABSENT)
    assert data.tokens == 6


def test_shares_of_workers_are_one_data_set_without_lone_answers(store: Store) -> None:
    pair = [answer("a", RATED_LOW), answer("b", RATED_HIGH)]
    groups = [_Group(f"g{i}", GOAL, pair, {"cut off or empty": 1}) for i in range(3)]
    lone = _Group("lone", GOAL, pair[:1], {"failed calls": 2})
    scored(store, groups[:2], [lone, groups[2]])
    weighed = weigh(store, steer(), "scores", "train/steer-1")
    ids = weighed.dataset.open(store)["id"][:]
    assert ids == ["g0"] * 3 + ["g1"] * 3 + ["g2"] * 3
    assert weighed.dataset.left_out == {
        "cut off or empty": 3,
        "failed calls": 2,
        FEWER_THAN_TWO: 1,
    }
    assert weigh(store, steer(), "scores", "train/steer-1") == weighed


def test_other_edges_weigh_anew_and_remove_the_earlier_rows(store: Store) -> None:
    group = _Group(
        "g", GOAL, [answer("a", [3.2, 0, 0, 0, 0]), answer("b", RATED_HIGH)], {}
    )
    scored(store, [group])
    first = weigh(store, steer(samples=2), "scores", "train/steer-1").dataset
    # P(4) of 3.2 and 3.8, by Beta(19.2, 4.8) and Beta(22.8, 1.2).
    share = first.open(store)["target"][0]
    assert share == pytest.approx(math.log(0.17902 / (0.17902 + 0.93253)), abs=1e-4)
    other = steer(samples=2, edges="fifths")
    second = weigh(store, other, "scores", "train/steer-1").dataset
    assert first.file != second.file
    assert not store.exists(first.file)
    share = second.open(store)["target"][0]
    assert share == pytest.approx(math.log(0.54096 / (0.54096 + 0.99057)), abs=1e-4)


def test_without_two_answers_to_any_prompt_it_says_why(store: Store) -> None:
    lone = _Group("g", GOAL, [answer("a", RATED_LOW)], {"cut off or empty": 9})
    scored(store, [lone])
    with pytest.raises(BezoarError, match=r"9 cut off or empty.*max_tokens"):
        weigh(store, steer(), "scores", "train/steer-1")
