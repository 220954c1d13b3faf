"""Batches come out as the recipe says, and the adapter keeps its precision."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import Recipe, Sft
from bezoar_ray.runtime.dtype import compute_dtype
from bezoar_ray.store import Store
from bezoar_ray.train import loop, model_loading
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.reporting import TrainState
from bezoar_ray.train.tokenized_dataset import TokenizedDataset


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValidationError, match="batch 16 cannot be shared by 3 workers"):
        Sft(batch=16, workers=3)


@pytest.mark.parametrize(
    ("rows", "epochs", "steps"),
    [(1, 1, 1), (16, 1, 1), (17, 1, 2), (40, 2, 6), (40, 0.5, 2)],
)
def test_steps_are_counted_as_the_trainer_counts_them(
    rows: int, epochs: float, steps: int
) -> None:
    data = TokenizedDataset("x", "x.arrow", rows, 0, 1, 1, 1, {})
    assert loop._steps(data, Sft(batch=16, epochs=epochs)) == steps


@pytest.mark.parametrize(
    ("gpus", "dtype"), [(0.0, None), (1.0, "bfloat16"), (0.5, "bfloat16")]
)
def test_a_worker_computes_on_a_gpu_where_the_recipe_gives_it_one(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus: float,
    dtype: str | None,
) -> None:
    """Ray Train says which of the machine's GPUs it is; a worker that asked for none uses none that it sees."""
    import ray.train.torch
    import torch

    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cuda:1"))
    part = recipe.sft.model_copy(update={"gpus_per_worker": gpus, "workers": 1})
    base = recipe.base.model_copy(update={"dtype": "bfloat16"})
    job = Job(
        str(tmp_path),
        recipe.model_copy(update={"sft": part, "base": base}),
        "sft",
        "test",
        (),
    )
    assert model_loading.device(job) == torch.device("cuda:1" if gpus else "cpu")
    assert job.dtype == (dtype or compute_dtype("bfloat16"))
    given = loop.trainer_arguments(
        job, TokenizedDataset("x", "x.arrow", 40, 0, 1, 1, 1, {})
    )
    assert given["use_cpu"] == (not gpus) and given["bf16"] == (job.dtype == "bfloat16")
    assert (
        given["dataloader_pin_memory"]
        == bool(gpus)
        == bool(given["dataloader_num_workers"])
    )


@pytest.mark.parametrize(
    ("card", "config", "expected"),
    [
        (
            "NVIDIA H100 80GB HBM3",
            {},
            6 * (2 * (4 * 64 * 64 + 3 * 64 * 128) + 100 * 64) * 1e9 / (2 * 989e12),
        ),
        ("NVIDIA H100 NVL", {}, None),  # another card, whose peak is not known
        (
            "NVIDIA H100 80GB HBM3",
            {"num_experts": 8},
            None,
        ),  # not all weights work on a token
        (
            "NVIDIA H100 80GB HBM3",
            {"vocab_size": "many"},
            None,
        ),  # a finished stage is worth more than its statistics
    ],
)
def test_the_share_of_the_peak_counts_six_operations_for_each_weight_and_token(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    card: str,
    config: dict[str, Any],
    expected: Any,
) -> None:
    shape = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape | config))
    monkeypatch.setattr(model_loading, "device_name", lambda job: card)
    part = recipe.sft.model_copy(update={"gpus_per_worker": 1.0, "workers": 2})
    base = recipe.base.model_copy(update={"model": str(tmp_path)})
    job = Job(
        str(tmp_path),
        recipe.model_copy(update={"sft": part, "base": base}),
        "sft",
        "test",
        (),
    )
    found = loop._share_of_peak(job, SimpleNamespace(tokens_per_s=1e9))
    assert found == (expected and pytest.approx(expected, rel=0.01))


@pytest.mark.parametrize("stage", ["sft", "align"])
def test_what_is_trained_on_is_nf4(
    trained: tuple[Store, dict[str, Any]], recipe: Recipe, stage: str
) -> None:
    from bitsandbytes.nn import Linear4bit

    model = model_loading.for_training(
        Job(str(trained[0].root), recipe, stage, "test", ())
    )
    quantised = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    assert len(quantised) == 14 and {
        layer.weight.quant_type for layer in quantised
    } == {"nf4"}
    assert all(layer.weight.quant_state.nested for layer in quantised)


def test_pickled_weights_are_not_loaded_unless_the_recipe_says_so(
    recipe: Recipe, tmp_path: Path
) -> None:
    import torch

    model = model_loading.load(recipe.base)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        model_loading.load(recipe.base, str(tmp_path))
    model_loading.load(
        recipe.base.model_copy(update={"pickled_weights": True}), str(tmp_path)
    )


def test_the_adapter_of_a_four_bit_model_stays_in_float32(recipe: Recipe) -> None:
    """A step of 5e-6 on a weight of 0.05 is nothing in bfloat16."""
    import torch

    model = model_loading.with_new_adapter(
        model_loading.load(
            recipe.base, quantization_config=model_loading.nf4("float32")
        ),
        recipe.sft.lora,
        0,
    )
    weights = {
        name: p.detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }

    def as_trl_does() -> str:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
        return "trainer"

    assert loop.keep_precision(model, as_trl_does) == "trainer"
    kept = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(
        p.dtype is torch.float32 and torch.equal(p, weights[name])
        for name, p in kept.items()
    )


def test_an_unknown_target_is_named_with_those_that_exist(recipe: Recipe) -> None:
    lora = recipe.sft.lora.model_copy(update={"targets": ("q_proj", "query_key_value")})
    with pytest.raises(
        RecipeError, match=r"lora.targets: \['query_key_value'\].*q_proj"
    ):
        model_loading.with_new_adapter(model_loading.load(recipe.base), lora, 0)


def test_the_state_in_a_checkpoint_of_an_earlier_version_is_read():
    former = b'{"step": 1, "finished": false, "stopped": true, "offset": 30, "at": 42, "tokens": 9.0, "history": []}'
    state = TrainState.from_json(former)
    assert (state.dataset_index, state.global_step, state.offset, state.stopped) == (
        1,
        42,
        30,
        True,
    )
    assert TrainState.from_json(orjson.dumps(asdict(state))) == state
