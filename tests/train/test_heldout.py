"""The held-out score is the mean log-probability of the answer's tokens, as one would work it out by hand."""

import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bezoar_ray.recipe import Recipe
from bezoar_ray.store import Store
from bezoar_ray.train import encoding, heldout, model_loading, pairs
from bezoar_ray.train.packing import Layout
from bezoar_ray.train.tokenizer import load_tokenizer

FLAT, PADDED = Layout("flat"), Layout("padded")


@pytest.fixture(scope="module")
def fixed() -> LlamaForCausalLM:
    """A model that gives token 1 the probability 1/2 and the others 1/6, whatever it reads."""
    config = LlamaConfig(
        vocab_size=4,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight.copy_(
            torch.log(torch.tensor([1 / 6, 1 / 2, 1 / 6, 1 / 6]))[:, None] / 8
        )
    return model


@pytest.mark.parametrize("layout", [FLAT, PADDED])
def test_scores_by_hand(fixed: LlamaForCausalLM, layout: Layout) -> None:
    no = encoding.IGNORED
    rows = [
        {"input_ids": [3, 2, 1, 1], "labels": [no, no, 1, 1]},
        {"input_ids": [3, 1, 2], "labels": [no, 1, 2]},
        {"input_ids": [3, 2], "labels": [no, 2]},
    ]
    scores = heldout.mean_log_probabilities(fixed, rows, layout)
    expected = [
        math.log(1 / 2),
        (math.log(1 / 2) + math.log(1 / 6)) / 2,
        math.log(1 / 6),
    ]
    assert scores == pytest.approx(expected, abs=1e-5)


def test_a_tie_is_no_win_and_nothing_is_no_score() -> None:
    found = heldout.summary({"a": 1.0, "b": 0.0, "c": -1.0, "d": 1e-9})
    assert found == {"heldout_accuracy": 0.5, "heldout_ci95": [0.15, 0.85]}
    assert heldout.summary({}) == {"heldout_accuracy": None, "heldout_ci95": None}


def test_margins_are_kept_as_they_are(tmp_path: Path) -> None:
    store, found = Store(tmp_path), {"a": -1 / 3, "b": 1e-17, "c": 0.0}
    assert heldout.read(store, "dpo") is None
    heldout.write(store, "dpo", found)
    assert heldout.read(store, "dpo") == found
    heldout.write(store, "dpo", {"a": math.nan, "b": 1.0})
    assert heldout.summary(heldout.read(store, "dpo"))["heldout_accuracy"] == 0.5
    heldout.write(store, "dpo", {})
    assert heldout.read(store, "dpo") == {}


@pytest.mark.parametrize("layout", [FLAT, PADDED])
def test_a_pass_scores_as_its_rows_do_alone(recipe: Recipe, layout: Layout) -> None:
    """Neighbours, padding and order leave no trace."""
    tokenizer, model = load_tokenizer(recipe), model_loading.load(recipe.base)
    asked = [{"role": "user", "content": "What colour is animal1?"}]
    rows = [encoding.last_answer(tokenizer, asked, "blue " * n) for n in (9, 1, 4)]
    together = heldout.mean_log_probabilities(model, rows, layout)
    alone = [heldout.mean_log_probabilities(model, [row], PADDED)[0] for row in rows]
    assert together == pytest.approx(alone, abs=1e-5)


def test_pairs_that_are_too_long_do_not_count(
    recipe: Recipe, fixed: LlamaForCausalLM
) -> None:
    tokenizer, asked = load_tokenizer(recipe), [{"role": "user", "content": "?"}]
    long = pairs.Pair("1", "s", "MIT", asked, "blue " * 300, "red")
    assert heldout.margins(fixed, tokenizer, [long], 100, FLAT) == {}


def test_each_pair_has_its_own_margin(recipe: Recipe) -> None:
    """A pair and its reverse differ in sign alone, and a pair of equals has none."""
    tokenizer, model = load_tokenizer(recipe), model_loading.load(recipe.base)
    asked = [{"role": "user", "content": "What colour is animal1?"}]
    sides = {
        "there": ("blue", "red red"),
        "back": ("red red", "blue"),
        "equal": ("blue", "blue"),
    }
    rows = [
        pairs.Pair(id, "s", "MIT", asked, *answers) for id, answers in sides.items()
    ]
    found = heldout.margins(model, tokenizer, rows, 256, PADDED)
    assert list(found) == ["there", "back", "equal"]
    assert (
        found["there"] == pytest.approx(-found["back"], abs=1e-5)
        and abs(found["there"]) > 1e-3
    )
    assert found["equal"] == pytest.approx(0, abs=1e-5)
