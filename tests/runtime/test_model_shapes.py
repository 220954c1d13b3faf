"""A model's shape, from its name, its folder or the Hub's cache."""

import json

import pytest

from bezoar_ray.runtime.model_shapes import Shape, shape_of
from tests import architectures


@pytest.mark.parametrize(
    ("model", "billions", "linear"),
    [
        ("h2oai/h2ogpt-gm-oasst1-en-2048-falcon-40b-v2", 41.3, 40.8),
        ("openlm-research/open_llama_3b_v2", 3.43, 3.22),
        ("Qwen/Qwen3-4B-Instruct-2507", 4.02, 3.63),
        ("Qwen/Qwen3-0.6B-Base", 0.596, 0.44),
    ],
)
def test_known_shapes_have_the_published_number_of_weights(model, billions, linear):
    shape = shape_of(model, 7.0)
    assert shape.known
    assert shape.weights / 1e9 == pytest.approx(billions, rel=0.01)
    assert shape.linear_weights / 1e9 == pytest.approx(linear, rel=0.01)


@pytest.mark.parametrize("billions", [0.5, 3, 13, 70])
def test_another_model_has_a_shape_of_about_its_size(billions):
    shape = shape_of(f"org/other-{billions}b", billions)
    assert not shape.known and shape.weights / 1e9 == pytest.approx(billions, rel=0.1)


def test_a_model_on_this_machine_has_its_own_shape(tmp_path, monkeypatch):
    """By its folder, or in the hub's cache."""
    config = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100,
        "tie_word_embeddings": True,
    }
    expected = Shape(2, 64, 96, 4, 2, 16, 100, tied=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text(json.dumps(config))
    assert shape_of(str(tmp_path / "mine"), 7.0) == expected
    snapshot = tmp_path / "models--org--mine/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert shape_of("org/mine", 7.0) == expected


@pytest.mark.parametrize("architecture", architectures.NAMES)
def test_every_configuration_is_read_or_passed_over(architecture, tmp_path):
    """By transformers' own files: linear weights are counted, or nothing is claimed."""
    model = architectures.model(architecture)
    model.config.save_pretrained(tmp_path)
    found = shape_of(str(tmp_path))
    if architecture in ("mamba2", "qwen3_5"):  # no attention, or not in all layers
        assert not found.known
        return
    linear = sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if weight.ndim == 2 and "embed" not in name and "lm_head" not in name
    )
    assert found.known and found.linear_weights == pytest.approx(linear, rel=0.02)
    assert found.tied == model.config.tie_word_embeddings


@pytest.mark.parametrize(
    "config",
    [
        {
            "model_type": "gemma3",
            "text_config": {"hidden_size": 2560, "num_hidden_layers": 34},
        },  # the rest is left out
        {
            "model_type": "qwen3_moe",
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 100,
            "num_experts": 8,
        },
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 100,
            "moe_num_experts": 64,
        },
        {
            "d_model": 64,
            "n_layers": 2,
            "n_heads": 4,
            "vocab_size": 100,
            "ffn_config": {"moe_num_experts": 16},
        },
        {
            "hidden_size": [64, 64],
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 100,
        },
        {"text_config": "x"},
        {},
        [],
        "",
    ],
)
def test_a_configuration_that_does_not_say_enough_claims_nothing(config, tmp_path):
    (tmp_path / "qwen3-8b-upcycled").mkdir()
    (tmp_path / "qwen3-8b-upcycled/config.json").write_text(json.dumps(config))
    found = shape_of(str(tmp_path / "qwen3-8b-upcycled"), 4.0)
    is_object = isinstance(
        config, dict
    )  # else it is no configuration, and the name is all there is
    assert found.known != is_object
    assert not is_object or found.weights / 1e9 == pytest.approx(4, rel=0.1)


def test_a_configuration_that_is_cut_off_is_passed_over(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 64, "num_')
    assert not shape_of(str(tmp_path), 4.0).known


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"quant_method": "awq", "bits": 4}, 4),
        ({"quant_method": "gptq", "bits": 8}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4),
        ({"quant_method": "mxfp4"}, 4),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
            },
            4,
        ),
        (None, None),
    ],
)
def test_a_configuration_says_whether_weights_are_quantised(
    quantization, bits, tmp_path
):
    config = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"quantization_config": quantization})
    )
    assert shape_of(str(tmp_path)).bits == bits


def test_one_head_of_keys_serves_all_in_an_old_falcon(tmp_path):
    config = {
        "model_type": "falcon",
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "num_kv_heads": 71,
        "multi_query": True,
        "vocab_size": 65_024,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = shape_of(str(tmp_path))
    assert (found.kv_heads, found.tied, found.gated) == (1, True, False)
    assert found.weights / 1e9 == pytest.approx(6.9, rel=0.02)  # falcon-7b's
