"""A reward model's outputs, on random models of several architectures."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bezoar_ray.data.schema import ATTRIBUTES
from bezoar_ray.recipe import Base, Lora
from bezoar_ray.train import adapters, model_loading, packing, reward_model
from bezoar_ray.train.packing import Layout
from bezoar_ray.train.reward_checkpoint import head_outputs
from tests import architectures

WEIGHTS = {"helpfulness": 0.65, "correctness": 0.8, "verbosity": -0.4}
LORA = Lora(r=4, targets=("q_proj", "v_proj"))
ROWS = [[2, 5, 9, 1], [2, 7, 7, 7, 8, 200, 31, 1], [2, 40, 1], [2] + [11] * 20 + [1]]


def load(folder: Path, **more: Any) -> Any:
    base = Base(model=str(folder), dtype="float32")
    return model_loading.load_reward_model(base, str(folder), seed=3, **more)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma3"])
def test_outputs_are_those_of_each_row_alone(name: str, tmp_path: Path) -> None:
    """Whatever the padding, the order and the passes."""
    architectures.model(name).save_pretrained(tmp_path)
    model = load(tmp_path).eval()
    alone = []
    with torch.inference_mode():
        for row in ROWS:
            backbone = model.base_model(input_ids=torch.tensor([row]))
            alone.append(model.score(backbone.last_hidden_state[0, -1]))
    expected = torch.stack(alone)
    chosen = packing.choose(model)
    assert chosen.flat
    for layout in (chosen, Layout("padded")):
        found = head_outputs(model, ROWS, layout)
        assert torch.allclose(found, expected, atol=1e-5), layout
        backwards = head_outputs(model, ROWS[::-1], layout)
        assert torch.allclose(backwards, expected.flip(0), atol=1e-5), layout


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small Llama that writes text."""
    folder = tmp_path_factory.mktemp("llama")
    architectures.model("llama").save_pretrained(folder)
    return folder


def test_a_padding_token_that_ends_an_answer_is_read(llama: Path) -> None:
    """transformers' own pooling would read the token before it."""
    model = load(llama).eval()
    model.config.pad_token_id = 1
    padded = torch.tensor([[2, 5, 9, 1, 1, 1], [2, 7, 7, 7, 8, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    with torch.inference_mode():
        found = model(input_ids=padded, attention_mask=mask).logits
        states = model.base_model(input_ids=padded, attention_mask=mask)
        expected = model.score(states.last_hidden_state[[0, 1], [3, 5]])
        of_transformers = type(model).forward(model, padded, mask).logits
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(of_transformers, expected, atol=1e-2)


def trained(folder: Path, **more: Any) -> Any:
    """A reward model with an adapter and a head that are no longer as they began."""
    model = model_loading.with_new_adapter(load(folder, **more), LORA, seed=0)
    draw = torch.Generator().manual_seed(5)
    for weight in model.parameters():
        if weight.requires_grad:
            noise = torch.randn(weight.shape, generator=draw)
            weight.data += 0.05 * noise.to(weight)
    return model.eval()


def test_merged_is_the_adapter_and_its_head(llama: Path, tmp_path: Path) -> None:
    model = trained(llama)
    outputs = head_outputs(model.get_base_model(), ROWS, Layout("padded"))
    model.save_pretrained(tmp_path / "adapter")
    again = model_loading.with_adapter(load(llama), str(tmp_path / "adapter"))
    merged = adapters.merge(again)
    assert torch.allclose(
        head_outputs(merged, ROWS, Layout("padded")), outputs, atol=1e-5
    )
    merged.save_pretrained(tmp_path / "merged")

    from transformers import AutoModelForSequenceClassification

    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert list(loaded.config.id2label.values()) == list(ATTRIBUTES)
    assert loaded.config.problem_type == "regression"
    with torch.inference_mode():
        for row, expected in zip(ROWS, outputs, strict=True):
            found = loaded(input_ids=torch.tensor([row])).logits[0]
            assert torch.allclose(found, expected, atol=1e-5)


def test_the_scalar_model_gives_the_weighted_sum(llama: Path) -> None:
    model = load(llama).eval()
    outputs = head_outputs(model, ROWS, Layout("padded"))
    expected = sum(
        WEIGHTS.get(name, 0.0) * outputs[:, column]
        for column, name in enumerate(ATTRIBUTES)
    )
    reward_model.make_scalar(model, WEIGHTS)
    found = head_outputs(model, ROWS, Layout("padded"))
    assert found.shape == (len(ROWS), 1)
    assert torch.allclose(found[:, 0], expected, atol=1e-6)
    assert torch.allclose(reward_model.scores(outputs, WEIGHTS), expected, atol=1e-6)


def test_the_head_of_a_4_bit_model_is_in_float32_and_is_trained(llama: Path) -> None:
    model = trained(
        llama, quantization_config=model_loading.nf4("bfloat16"), dtype="bfloat16"
    )
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        ids = torch.tensor([ROWS[0]])
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        output.logits.sum().backward()
    assert output.logits.dtype is torch.float32
    gradients = {
        name: weight.grad.abs().sum().item()
        for name, weight in model.named_parameters()
        if weight.requires_grad and weight.grad is not None
    }
    (head,) = [name for name in gradients if "score" in name]
    assert model.get_parameter(head).dtype is torch.float32
    assert len(gradients) > 1
    assert all(gradients.values())
