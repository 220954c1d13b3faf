"""Rows of a flat pass are computed as each of them alone, in every architecture; where that fails, they are padded."""

import contextlib
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import set_seed
from trl.trainer.utils import add_fused_lm_head

from bezoar_ray.recipe import Recipe
from bezoar_ray.train import attention, model_loading, packing
from bezoar_ray.train.encoding import IGNORED
from bezoar_ray.train.packing import Layout
from tests import architectures

FLAT, PADDED = Layout("flat"), Layout("padded")
LENGTHS = [40, 7, 23, 1, 64]
RUNS_FLAT = ["llama", "qwen3", "gemma3", "phi3", "mistral", "opt"]


def batch(vocabulary: int = 300) -> dict[str, torch.Tensor]:
    """Rows of uneven lengths, padded on the right; a third of each is a prompt."""
    draw = torch.Generator().manual_seed(1)
    rows = [
        torch.randint(3, vocabulary, (length,), generator=draw) for length in LENGTHS
    ]
    labels = [
        torch.cat([torch.full((len(row) // 3,), IGNORED), row[len(row) // 3 :]])
        for row in rows
    ]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(rows, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=IGNORED),
    }


def with_adapter(model: Any, targets: Any = "all-linear") -> Any:
    """Under a LoRA whose B is not zero, so that A has a gradient, too."""
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    set_seed(0)
    config = LoraConfig(
        r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def computed(
    model: Any, layout: Layout, given: dict[str, torch.Tensor]
) -> tuple[Any, dict[str, torch.Tensor]]:
    """The output, and the gradients of the adapter of a loss in which each row counts differently."""
    with packing.packed(model, layout):
        output = model(**given, fused_lm_head=True)
    loss = (output.log_probs.sum(dim=1) * torch.arange(1, len(LENGTHS) + 1)).sum()
    trained = {
        name: weight
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return output, {
        name: grad
        for name, grad in zip(trained, gradients, strict=True)
        if grad is not None
    }


@pytest.mark.parametrize("architecture", RUNS_FLAT)
def test_flat_and_padded_passes_give_the_same_losses_and_gradients(
    architecture: str,
) -> None:
    assert packing.choose(architectures.model(architecture)) == FLAT
    found = [
        computed(with_adapter(architectures.model(architecture)), layout, batch())
        for layout in (FLAT, PADDED)
    ]
    (flat, flat_gradients), (padded, padded_gradients) = found
    for name in ("log_probs", "entropy", "mean_logits"):
        assert flat[name].shape == padded[name].shape
        assert torch.allclose(flat[name], padded[name], atol=1e-4)
    assert torch.equal(flat.is_top1, padded.is_top1) and torch.equal(
        flat.label_mask, padded.label_mask
    )
    assert flat_gradients.keys() == padded_gradients.keys() and len(flat_gradients) > 10
    for name, gradient in padded_gradients.items():
        assert torch.allclose(
            flat_gradients[name], gradient, atol=1e-4 * gradient.abs().max()
        ), name


@pytest.mark.parametrize(
    ("architecture", "because"),
    [
        ("falcon", "falcon does not run flat: it implements its own attention"),
        ("bloom", "bloom does not run flat: it implements its own attention"),
        ("qwen3_5", "qwen3_5_text mixes the rows of a flat pass: logits differ by 0."),
        ("mamba2", "mamba2 mixes the rows of a flat pass: logits differ by 0."),
    ],
)
def test_where_an_architecture_would_mix_the_rows_they_are_padded(
    architecture: str, because: str
) -> None:
    model = architectures.model(architecture)
    before = model.config._attn_implementation
    layout = packing.choose(model)
    assert not layout.flat and layout.because.startswith(because)
    assert model.config._attn_implementation == before
    targets = ["in_proj"] if architecture == "mamba2" else "all-linear"
    output, gradients = computed(with_adapter(model, targets), layout, batch())
    assert output.log_probs.isfinite().all() and gradients


def test_an_attention_that_drops_out_in_training_is_noticed() -> None:
    model = architectures.model("llama")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    assert (
        packing.choose(model).because
        == "llama does not run flat: bezoar_varlen does not support dropout"
    )


def test_the_check_leaves_the_model_as_it_was(recipe: Recipe) -> None:
    model = model_loading.load(
        recipe.base, dtype="bfloat16", quantization_config=model_loading.nf4("bfloat16")
    )
    before = {
        name: (weight.dtype, weight.clone())
        for name, weight in model.named_parameters()
    }
    model.train()
    assert packing.choose(model) == FLAT
    assert model.training
    for name, weight in model.named_parameters():
        assert weight.dtype is before[name][0] and torch.equal(weight, before[name][1])
    assert not any(weight.is_inference() for weight in model.parameters())
    layers = [layer for layer in model.modules() if hasattr(layer, "compute_dtype")]
    assert len(layers) == 14 and {layer.compute_dtype for layer in layers} == {
        torch.bfloat16
    }


def test_a_model_in_bfloat16_learns_after_the_check(recipe: Recipe) -> None:
    model = model_loading.load(
        recipe.base, dtype="bfloat16", quantization_config=model_loading.nf4("bfloat16")
    )
    model_loading._keep_backward(model)
    assert packing.choose(model) == FLAT
    output, gradients = computed(
        with_adapter(model, ["q_proj", "v_proj"]), FLAT, batch()
    )
    assert output.log_probs.isfinite().all()
    assert len(gradients) == 8 and all(
        gradient.any() for gradient in gradients.values()
    )


def test_where_float32_does_not_fit_the_check_is_made_in_the_models_own_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And weights that were converted when memory ran out are converted back."""
    for architecture, layout in (("llama", "flat"), ("mamba2", "padded")):
        model = architectures.model(architecture).to(torch.bfloat16)
        weights = list(model.parameters())

        def full(self: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError

        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "float", full)
            with pytest.raises(torch.OutOfMemoryError), packing.in_float32(model):
                pass
        assert {weight.dtype for weight in weights} == {torch.bfloat16}
        with monkeypatch.context() as patch:
            patch.setattr(
                packing,
                "in_float32",
                lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError()),
            )
            assert packing.choose(model).name == layout


def test_after_the_block_the_model_is_what_it_was() -> None:
    model = with_adapter(architectures.model("llama"))
    causal = model.get_base_model()
    forwards = [
        module.__dict__.get("forward") for module in (model, causal, causal.model)
    ]
    with contextlib.suppress(RuntimeError), packing.packed(model, FLAT):
        assert causal.config._attn_implementation == attention.NAME
        raise RuntimeError
    assert [
        module.__dict__.get("forward") for module in (model, causal, causal.model)
    ] == forwards
    assert causal.config._attn_implementation != attention.NAME


def test_no_padding_mask_or_prompt_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = with_adapter(architectures.model("llama")), batch()
    seen: dict[str, Any] = {}
    causal = model.get_base_model()
    causal.model.layers[0].register_forward_pre_hook(
        lambda layer, args, kwargs: seen.update(
            tokens=args[0].shape, mask=kwargs["attention_mask"]
        ),
        with_kwargs=True,
    )
    function = packing._selecting_forward

    def selecting(inner: Any) -> Any:
        forward = function(inner)

        def watched(self: Any, *args: Any, **more: Any) -> Any:
            output = forward(self, *args, **more)
            seen.update(scored=output.last_hidden_state.shape)
            return output

        return watched

    monkeypatch.setattr(packing, "_selecting_forward", selecting)
    with packing.packed(model, FLAT):
        model(**given, fused_lm_head=True)
    scored = (given["labels"][:, 1:] != IGNORED).sum().item()
    assert seen == {
        "tokens": (1, sum(LENGTHS), 64),
        "mask": None,
        "scored": (1, scored, 64),
    }


def test_a_row_does_not_know_what_is_beside_it() -> None:
    """To the last bit: the same shapes, another content."""
    model, one, other = (
        with_adapter(architectures.model("llama")).eval(),
        batch(),
        batch(),
    )
    other["input_ids"][0, : LENGTHS[0]] = 5
    with packing.packed(model, FLAT), torch.inference_mode():
        outputs = [
            model(**given, fused_lm_head=True).log_probs for given in (one, other)
        ]
    assert torch.equal(outputs[0][1:], outputs[1][1:]) and not torch.equal(
        outputs[0][0], outputs[1][0]
    )


@pytest.mark.parametrize("layout", [FLAT, PADDED])
def test_rows_without_a_label_give_a_loss_of_zero_that_can_be_learned_from(
    layout: Layout,
) -> None:
    model, given = with_adapter(architectures.model("llama")), batch()
    given["labels"].fill_(IGNORED)
    output, gradients = computed(model, layout, given)
    assert not output.log_probs.any() and not output.label_mask.any()
    assert not any(gradient.any() for gradient in gradients.values())
