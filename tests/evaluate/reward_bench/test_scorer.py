"""The reward model in vLLM, against transformers' own forward pass."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bezoar_ray.errors import BezoarError
from bezoar_ray.evaluate.reward_bench.scorer import rate
from bezoar_ray.recipe import load_recipe
from bezoar_ray.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = pytest.mark.slow
VOCABULARY = 96
PAD, EOS = 0, 2
CONTEXT = 64


def write_reward_model(folder: Path, outputs: int) -> "PreTrainedModel":
    """Write a random Llama with a linear head, as the stage rm leaves it."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import (
        LlamaConfig,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        pad_token_id=PAD,
        eos_token_id=EOS,
        num_labels=outputs,
        problem_type="regression",
    )
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w1")),
        pad_token="w0",
        eos_token="w2",
    )
    tokenizer.save_pretrained(folder)
    return model


def test_vllms_ratings_are_the_models_raw_outputs_for_the_last_token(
    ray_session, tmp_path
):
    import torch

    store = Store(tmp_path / "run")
    model = write_reward_model(store.path("checkpoints/rm/merged"), outputs=5)
    recipe = load_recipe("tiny", [f"serve.engine={{max_model_len: {CONTEXT}}}"])
    rng = np.random.default_rng(0)
    lengths = [3, CONTEXT, 40, 17, CONTEXT - 1, 3, 29, 8]
    conversations = [
        [*rng.integers(3, VOCABULARY, length - 1).tolist(), EOS] for length in lengths
    ]
    # Two answers to one prompt share a prefix, which vLLM may keep.
    conversations.append([*conversations[2][:-5], 7, 8, EOS])

    ratings = rate(recipe, store, conversations)

    assert ratings.shape == (len(conversations), 5)
    fills_context = [len(ids) == CONTEXT for ids in conversations]
    assert np.isnan(ratings).all(axis=1).tolist() == fills_context
    assert np.isnan(ratings).any(axis=1).tolist() == fills_context
    largest = 0.0
    for ids, rating in zip(conversations, ratings, strict=True):
        if len(ids) == CONTEXT:
            continue
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
        largest = max(largest, float(np.abs(rating - expected).max()))
        # A softmax would give shares.
        assert abs(rating.sum() - 1.0) > 1e-3
    print(f"\nratings differ by {largest:.1e} at most")
    assert largest < 1e-4


def test_a_model_with_other_outputs_is_named_with_its_folder(ray_session, tmp_path):
    store = Store(tmp_path / "run")
    write_reward_model(store.path("checkpoints/rm/merged"), outputs=3)
    recipe = load_recipe("tiny", [f"serve.engine={{max_model_len: {CONTEXT}}}"])
    with pytest.raises(BezoarError, match="rm/merged has 3 outputs; expected one for"):
        rate(recipe, store, [[3, 4, EOS]])
