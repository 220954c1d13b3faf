"""How a reward model's outputs become a judge's rating. vLLM's part is tested in tests/train/test_rm_stage.py."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.reward_engine import rating_of, score_weights

PUBLISHED = {
    "helpfulness": 0.65,
    "correctness": 0.8,
    "coherence": 0.45,
    "complexity": 0.55,
    "verbosity": -0.4,
}


@pytest.mark.parametrize(
    ("weights", "outputs", "rating"),
    [
        ({"helpfulness": 1.0}, [3.2, 0, 0, 0, 0], 4.2),
        ({"helpfulness": 2.0}, [3.2, 0, 0, 0, 0], 4.2),
        ({"verbosity": -1.0}, [4, 4, 4, 4, 0], 5.0),
        ({"verbosity": -1.0}, [4, 4, 4, 4, 4], 1.0),
        # Scores from -1.6 to 9.8: (7.9 + 1.6) / 11.4 * 4 + 1.
        (PUBLISHED, [4, 4, 4, 2, 2], 4.333333),
        ({"helpfulness": 1.0}, [4.9, 0, 0, 0, 0], 5.0),
        ({"helpfulness": 1.0}, [-0.7, 0, 0, 0, 0], 1.0),
    ],
)
def test_the_rating_is_linear_in_the_score_from_1_to_5(weights, outputs, rating):
    assert rating_of(outputs, weights) == pytest.approx(rating, abs=1e-6)


@given(st.lists(st.floats(0, 4), min_size=5, max_size=5), st.floats(0.01, 100))
def test_the_rating_does_not_depend_on_the_scale_of_the_weights(outputs, factor):
    scaled = {name: weight * factor for name, weight in PUBLISHED.items()}
    rating = rating_of(outputs, PUBLISHED)
    assert 1.0 <= rating <= 5.0
    assert rating_of(outputs, scaled) == pytest.approx(rating, abs=1e-6)


def test_a_folder_without_a_reward_model_is_named_with_the_remedy(tmp_path):
    with pytest.raises(BezoarError, match=r"gone/config.json: .*`checkpoints/rm`"):
        score_weights(str(tmp_path / "gone"))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Llama"]}))
    with pytest.raises(BezoarError, match="it has no `score_weights`"):
        score_weights(str(tmp_path))
