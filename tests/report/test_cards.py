"""What a card says of the method by which a checkpoint was aligned."""

import pytest

from bezoar_ray.recipe import load_recipe
from bezoar_ray.report.cards import _describe_method
from bezoar_ray.stages import checkpoint_of

RM = ["rm={}", "seeds.helpsteer=[{source: tiny}]"]
STEER = [*RM, "align.method=steer", "align.steer={goals: [{verbosity: 2}]}"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], "(DPO, arXiv 2305.18290) on the same pairs, from `hh-sft`"),
        (
            [*RM, "align.method=ppo"],
            "by the score of `rm`, on the same pairs, from `hh-sft`",
        ),
        (
            [*STEER, "align.steer.iterations=0"],
            "SteerLM (arXiv 2310.05344) on rated answers, from `hh-sft`",
        ),
        (STEER, "2 rounds of SteerLM 2.0 (arXiv 2406.08673)"),
        ([*STEER, "align.steer.iterations=1"], " 1 round of SteerLM 2.0"),
    ],
)
def test_a_card_says_how_the_checkpoint_was_aligned(
    settings: list[str], expected: str
) -> None:
    recipe = load_recipe("tiny", settings)
    name = recipe.checkpoint("align")
    method = _describe_method(recipe.align)
    assert expected in checkpoint_of(name).trained.format(method=method)
