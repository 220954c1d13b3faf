"""A step that would not fit is refused before the first one, and what would fit is named."""

import contextlib
import shutil
from pathlib import Path

import pytest
import torch

from bezoar_ray.progress import Progress
from bezoar_ray.recipe import Recipe
from bezoar_ray.stage import Context
from bezoar_ray.store import Store
from bezoar_ray.train import memory, models
from tests.train.conftest import in_process


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("recompute", [False, True])
def test_short_steps_tell_what_a_long_one_takes(recipe: Recipe, attention: str, recompute: bool) -> None:
    model = models.with_new_adapter(models.load(recipe.base, attn_implementation=attention), recipe.sft.lora, 0)
    if recompute:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    needs = memory.needed(model, contextlib.nullcontext)
    optimiser = needs(0, 1)
    assert optimiser == 12 * sum(weight.numel() for weight in trained)
    found = memory._peak(model, trained, 500, contextlib.nullcontext)
    assert needs(1, 500) - optimiser == pytest.approx(found, rel=0.1)
    assert all(weight.grad is None for weight in trained)


def test_a_look_at_the_memory_changes_no_draw(recipe: Recipe) -> None:
    model = models.with_new_adapter(models.load(recipe.base), recipe.sft.lora, 0)
    state = torch.get_rng_state()
    memory.needed(model, contextlib.nullcontext)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("stage", "sequences", "length"), [("sft", 4, 100), ("dpo", 8, 60)])
@pytest.mark.parametrize(("share", "fits"), [(0.6, r"micro_batch [123]\b"), (0.001, "nothing")])
def test_too_little_memory_is_said_with_what_would_fit(
    trained: tuple, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch,
    stage: str, sequences: int, length: int, share: float, fits: str,
) -> None:  # fmt: skip
    shutil.copytree(trained[0].root, tmp_path / "run", ignore=shutil.ignore_patterns("train"))
    context = Context(recipe, Store(tmp_path / "run"), "test", Progress())
    taken = []
    needed = memory.needed
    monkeypatch.setattr(memory, "needed", lambda *asked: taken.append(needed(*asked)) or taken[-1])
    monkeypatch.setattr(memory, "_free", lambda device: share * taken[-1](sequences, length))
    with pytest.raises(Exception, match=rf"{stage}: a pass of 4 rows of .* What fits: {fits}"):
        in_process(context, stage)
