"""ORPO and ASFT give the numbers worked out by hand: y_w = [-.2, -.5, -.3], y_l = [-1, -.4]."""

import pytest
import torch

from bezoar_ray.recipe import Recipe
from bezoar_ray.train import encoding, model_loading, orpo_asft
from bezoar_ray.train.tokenizer import load_tokenizer

CHOSEN, REJECTED = torch.tensor([-1 / 3]), torch.tensor([-0.7])


@pytest.mark.parametrize(
    ("weight", "asft", "orpo"),
    [(0.1, 0.435301, 0.366281), (0.5, 0.843171, 0.498074), (1, 1.353008, 0.662814)],
)
def test_losses_by_hand(weight: float, asft: float, orpo: float) -> None:
    assert orpo_asft.asft(CHOSEN, REJECTED, weight).item() == pytest.approx(
        asft, abs=1e-6
    )
    assert orpo_asft.orpo(CHOSEN, REJECTED, weight).item() == pytest.approx(
        orpo, abs=1e-6
    )


@pytest.mark.parametrize(
    ("loss", "to_chosen", "to_rejected"),
    [(orpo_asft.asft, -2, 0.986434), (orpo_asft.orpo, -1.990242, 0.557597)],
)
def test_gradients_by_hand(loss, to_chosen: float, to_rejected: float) -> None:
    chosen, rejected = (
        CHOSEN.clone().requires_grad_(),
        REJECTED.clone().requires_grad_(),
    )
    loss(chosen, rejected, 1).sum().backward()
    assert chosen.grad.item() == pytest.approx(to_chosen, abs=1e-6)
    assert rejected.grad.item() == pytest.approx(to_rejected, abs=1e-6)


@pytest.mark.parametrize("mean", [-200.0, -30.0, -1e-3, -1e-6, -1e-8, 0.0])
@pytest.mark.parametrize("loss", [orpo_asft.asft, orpo_asft.orpo])
def test_certain_and_impossible_answers_have_finite_gradients(
    loss, mean: float
) -> None:
    chosen, rejected = (
        torch.tensor([mean], requires_grad=True),
        torch.tensor([mean], requires_grad=True),
    )
    found = loss(chosen, rejected, 1)
    found.sum().backward()
    assert (
        found.isfinite().all()
        and chosen.grad.isfinite().all()
        and rejected.grad.isfinite().all()
    )


def test_our_log_odds_are_trls(recipe: Recipe) -> None:
    ratio = orpo_asft._log_odds(CHOSEN) - orpo_asft._log_odds(REJECTED)
    assert ratio.item() == pytest.approx(0.9409792, abs=1e-6)
    assert torch.nn.functional.logsigmoid(ratio).item() == pytest.approx(
        -0.3294804, abs=1e-6
    )


def test_the_mean_is_of_the_answer_alone_whatever_the_padding(recipe: Recipe) -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.utils import add_fused_lm_head

    tokenizer, model = load_tokenizer(recipe), model_loading.load(recipe.base).eval()
    asked = [{"role": "user", "content": "What colour is animal1?"}]
    row = {
        "id": "1",
        "source": "s",
        "license": "MIT",
        "prompt": asked,
        "chosen": "Green.",
        "rejected": "Red, I think.",
    }
    pair = encoding.pair_tokens(tokenizer, row, 1000)
    longer = encoding.pair_tokens(tokenizer, row | {"rejected": "Red" * 20}, 1000)
    collate = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)
    add_fused_lm_head(model)
    with torch.inference_mode():
        alone = orpo_asft.mean_log_probability(model, collate([pair]))
        beside = orpo_asft.mean_log_probability(model, collate([pair, longer]))
        ids = torch.tensor([pair["prompt_ids"] + pair["chosen_ids"]])
        each = (
            model(ids).logits[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
        )
    assert torch.allclose(alone, beside[[0, 2]], atol=1e-5)
    assert alone[0].item() == pytest.approx(
        each[-len(pair["chosen_ids"]) :].mean().item(), abs=1e-5
    )
