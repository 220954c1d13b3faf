"""Random models of many architectures, a few layers small, in float32."""

from typing import Any

_COMMON = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_GROUPED = _COMMON | {"num_key_value_heads": 2}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GROUPED),
    "qwen3": ("Qwen3Config", _GROUPED | {"head_dim": 20}),
    "gemma3": ("Gemma3TextConfig", _GROUPED | {"head_dim": 16, "sliding_window": 8}),
    "phi3": ("Phi3Config", _GROUPED),
    "mistral": ("MistralConfig", _GROUPED | {"sliding_window": 8}),
    "opt": (
        "OPTConfig",
        {
            "vocab_size": 300,
            "hidden_size": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "word_embed_proj_dim": 64,
            "dropout": 0.0,
        },
    ),
    "falcon": (
        "FalconConfig",
        {
            "vocab_size": 300,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "alibi": False,
            "bias": False,
        },
    ),
    "qwen3_5": (
        "Qwen3_5TextConfig",
        _GROUPED
        | {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
    ),
    "mamba2": (
        "Mamba2Config",
        {
            "vocab_size": 300,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_heads": 8,
            "head_dim": 16,
            "state_size": 16,
            "n_groups": 1,
            "expand": 2,
        },
    ),
    "bloom": (
        "BloomConfig",
        {"vocab_size": 300, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    ),
}


NAMES = tuple(_CONFIGS)


def model(architecture: str) -> Any:
    """A model of an architecture, the same each time."""
    import transformers

    kind, settings = _CONFIGS[architecture]
    transformers.set_seed(0)
    config = getattr(transformers, kind)(**settings)
    return transformers.AutoModelForCausalLM.from_config(config)
