"""Merged weights answer as base and adapter do; the joined LoRA on the base answers as the merged chain does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import Lora, Recipe
from bezoar_ray.train import adapters, model_loading

IDS = torch.arange(40).reshape(2, 20) * 7 % 300
FIRST = Lora(r=4, alpha=8, targets=("q_proj", "v_proj"))
SECOND = Lora(r=6, alpha=6, targets=("q_proj", "down_proj"), rank_stabilised=True)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(IDS).logits


def random_adapter(
    recipe: Recipe, folder: Path, lora: Lora, below: str | None = None
) -> None:
    """An adapter far from zero, as after long training."""
    model = model_loading.with_new_adapter(
        model_loading.load(recipe.base, below), lora, 1
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(str(folder))


@pytest.fixture
def chain(recipe: Recipe, tmp_path: Path) -> Path:
    """first/ on the base, merged/ of it, second/ on that."""
    random_adapter(recipe, tmp_path / "first", FIRST)
    merged = adapters.merge(
        model_loading.with_adapter(
            model_loading.load(recipe.base), str(tmp_path / "first")
        )
    )
    merged.save_pretrained(str(tmp_path / "merged"))
    random_adapter(recipe, tmp_path / "second", SECOND, str(tmp_path / "merged"))
    return tmp_path


def test_merged_is_base_plus_adapter(recipe: Recipe, chain: Path) -> None:
    apart = logits(
        model_loading.with_adapter(
            model_loading.load(recipe.base), str(chain / "first")
        )
    )
    merged = model_loading.load(recipe.base, str(chain / "merged"))
    assert torch.allclose(logits(merged), apart, atol=1e-5)
    assert (logits(model_loading.load(recipe.base)) - apart).abs().max() > 0.01


def test_joined_is_the_merged_chain(recipe: Recipe, chain: Path) -> None:
    """Adapters of different ranks, scales and targets, one of them rank-stabilised, in float32."""
    rank = adapters.join([chain / "first", chain / "second"], chain / "joined", "base")
    joined = model_loading.with_adapter(
        model_loading.load(recipe.base), str(chain / "joined")
    )
    twice = adapters.merge(
        model_loading.with_adapter(
            model_loading.load(recipe.base, str(chain / "merged")),
            str(chain / "second"),
        )
    )
    assert rank == 16
    assert (logits(joined) - logits(twice)).abs().max() < 1e-5 * logits(
        twice
    ).abs().max()


def test_joined_is_what_peft_joins(recipe: Recipe, chain: Path) -> None:
    """PEFT's own concatenation, which needs the model loaded, gives the same update."""
    model = model_loading.with_adapter(
        model_loading.load(recipe.base), str(chain / "first")
    )
    model.load_adapter(str(chain / "second"), adapter_name="second")
    model.add_weighted_adapter(
        ["default", "second"], [1.0, 1.0], "both", combination_type="cat"
    )
    model.set_adapter("both")
    adapters.join([chain / "first", chain / "second"], chain / "joined", "base")
    ours = model_loading.with_adapter(
        model_loading.load(recipe.base), str(chain / "joined")
    )
    assert torch.allclose(logits(ours), logits(model), atol=1e-5)


@pytest.mark.parametrize(
    ("rank", "served"),
    [(1, 1), (2, 8), (16, 16), (20, 32), (32, 32), (257, 320), (512, 512)],
)
def test_ranks_are_rounded_up_to_what_vllm_serves(rank: int, served: int) -> None:
    assert adapters.served_rank(rank) == served


@pytest.mark.parametrize(
    "more",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [3]},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2}},
        {"peft_type": "LOHA"},
        {"bias": "all"},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_is_no_plain_lora_is_not_joined(chain: Path, more: dict[str, Any]) -> None:
    config = chain / "second" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | more))
    name = "LOHA" if "peft_type" in more else next(iter(more))
    with pytest.raises(
        adapters.NotJoinable,
        match=f"only a plain LoRA without bias can be joined .found {name}",
    ):
        adapters.join([chain / "first", chain / "second"], chain / "joined", "base")


def test_what_cannot_be_served_is_refused_with_the_reason(
    recipe: Recipe, chain: Path
) -> None:
    with pytest.raises(adapters.NotJoinable, match="rank 513; vLLM serves 512 at most"):
        adapters.served_rank(513)
    weights = chain / "first" / "adapter_model.safetensors"
    save_file(
        load_file(weights)
        | {"base_model.model.model.embed_tokens.weight": torch.zeros(1)},
        weights,
    )
    with pytest.raises(
        adapters.NotJoinable, match="found base_model.model.model.embed_tokens.weight"
    ):
        adapters.join([chain / "first", chain / "second"], chain / "joined", "base")


@pytest.mark.parametrize(
    "targets",
    [
        r".*\.(q_proj|v_proj)",
        r"model\.layers\.0\..*\.(q_proj|v_proj)",
        ["self_attn.q_proj", "self_attn.v_proj"],
    ],
)
def test_an_adapter_of_ones_own_may_name_its_layers_by_a_pattern(
    recipe: Recipe, chain: Path, targets: Any
) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=FIRST.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    get_peft_model(model_loading.load(recipe.base), config).save_pretrained(
        str(chain / "own")
    )
    model = model_loading.with_custom_adapter(
        model_loading.load(recipe.base), str(chain / "own"), FIRST
    )
    assert any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(
        RecipeError,
        match=r"does not match sft.lora. Set there {targets: \['q_proj', 'v_proj'\]}",
    ):
        other = FIRST.model_copy(update={"targets": ("q_proj",)})
        model_loading.with_custom_adapter(
            model_loading.load(recipe.base), str(chain / "own"), other
        )


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_an_adapter_on_embeddings_that_are_the_head_is_refused(
    recipe: Recipe, chain: Path, layer: str
) -> None:
    """Merged, it would change both sides of the one matrix."""
    from peft import LoraConfig, get_peft_model

    base = model_loading.load(recipe.base)
    base.config.tie_word_embeddings = True
    base.tie_weights()
    base.save_pretrained(str(chain / "tied"))
    tied = recipe.base.model_copy(update={"model": str(chain / "tied")})
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", layer], task_type="CAUSAL_LM"
    )
    get_peft_model(model_loading.load(tied), config).save_pretrained(str(chain / "own"))
    lora = FIRST.model_copy(update={"targets": ("q_proj", layer)})
    with pytest.raises(
        RecipeError, match=f"adapts {layer}, and this base has one matrix"
    ):
        model_loading.with_custom_adapter(
            model_loading.load(tied), str(chain / "own"), lora
        )
