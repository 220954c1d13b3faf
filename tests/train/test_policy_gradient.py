"""PPO's equations on an episode that was computed by hand (shared facts, 3.5.5), and groups of three."""

import pytest
import torch

from bezoar_ray.train import policy_gradient as pg

OLD = torch.tensor([[-1.0, -0.5, -0.8, -0.3]])
REFERENCE = torch.tensor([[-1.2, -0.6, -0.7, -0.5]])
VALUES = torch.tensor([[0.2, 0.3, 0.4, 0.6]])
SCORES = torch.tensor([1.5])
NEW = torch.tensor([[-0.9, -0.6, -0.5, -0.35]])
NEW_VALUES = torch.tensor([[0.25, 0.6, 0.35, 0.9]])
ANSWER = torch.ones(1, 4)
OWN = torch.tensor([[0.0, 0.0, 1.0, 1.0]])  # the first two are forced


def near(*numbers: float) -> object:
    return pytest.approx(numbers, abs=1e-6)


def row(tensor: torch.Tensor) -> tuple[float, ...]:
    return tuple(tensor[0].tolist())


def rewards() -> torch.Tensor:
    return pg.token_rewards(OLD - REFERENCE, SCORES, ANSWER, 0.05)


def test_the_penalty_is_on_every_token_and_the_score_on_the_last() -> None:
    ratios = OLD - REFERENCE
    assert row(ratios) == near(0.2, 0.1, -0.1, 0.2)
    assert ratios.sum().item() == pytest.approx(0.4)
    assert row(rewards()) == near(-0.01, -0.005, 0.005, 1.49)


def test_the_score_is_on_the_last_token_that_counts() -> None:
    mask = torch.tensor([[0.0, 1, 1, 0], [1, 1, 1, 1]])
    found = pg.token_rewards(torch.ones(2, 4), torch.tensor([2.0, 3.0]), mask, 0.5)
    assert row(found) == near(0, -0.5, 1.5, 0)
    assert row(found[1:]) == near(-0.5, -0.5, -0.5, 2.5)


def test_advantages_and_returns() -> None:
    advantages, returns = pg.gae(rewards(), VALUES, ANSWER)
    assert row(advantages) == near(1.128326, 1.092975, 1.0505, 0.89)
    assert row(returns) == near(1.328326, 1.392975, 1.4505, 1.49)


def test_padding_changes_no_advantage() -> None:
    def padded(tensor: torch.Tensor, value: float) -> torch.Tensor:
        return torch.nn.functional.pad(tensor, (2, 3), value=value)

    mask = padded(ANSWER, 0.0)
    whole = pg.gae(padded(rewards(), 7.0), padded(VALUES, 5.0), mask)
    for found, expected in zip(whole, pg.gae(rewards(), VALUES, ANSWER), strict=True):
        assert torch.equal(found[:, 2:6], expected)
        assert not found[:, [0, 1, 6, 7, 8]].any()


def test_clipped_policy_loss_with_plain_advantages() -> None:
    advantages, _ = pg.gae(rewards(), VALUES, ANSWER)
    losses, clipped = pg.policy_losses(NEW, OLD, advantages, 0.2)
    assert row(torch.exp(NEW - OLD)) == near(1.105171, 0.904837, 1.349859, 0.951229)
    assert row(losses) == near(-1.246993, -0.988965, -1.2606, -0.846594)
    assert row(clipped) == (0, 0, 1, 0)
    assert pg.masked_mean(losses, ANSWER).item() == pytest.approx(-1.085788, abs=1e-6)
    assert pg.masked_mean(losses, OWN).item() == pytest.approx(-1.053597, abs=1e-6)


def test_losses_with_whitened_advantages() -> None:
    advantages, returns = pg.gae(rewards(), VALUES, ANSWER)
    whitened = pg.whiten(advantages, ANSWER)
    assert row(whitened) == near(0.964312, 0.576383, 0.110281, -1.650975)
    losses, _ = pg.policy_losses(NEW, OLD, whitened, 0.2)
    ppo = pg.masked_mean(losses, ANSWER)
    drpo = pg.masked_mean(losses, OWN)
    assert ppo.item() == pytest.approx(-0.037286, abs=1e-6)
    assert drpo.item() == pytest.approx(0.719060, abs=1e-6)

    squared = pg.value_losses(NEW_VALUES, VALUES, returns, 0.2)
    value = pg.masked_mean(squared, ANSWER)
    assert value.item() == pytest.approx(0.455924, abs=1e-6)
    assert pg.masked_mean(squared, OWN).item() == pytest.approx(0.421800, abs=1e-6)
    assert (ppo + 0.1 * value).item() == pytest.approx(0.008307, abs=1e-6)
    assert (drpo + 0.1 * value).item() == pytest.approx(0.764652, abs=1e-6)


def test_a_value_is_not_better_for_moving_far() -> None:
    clipped = VALUES + (NEW_VALUES - VALUES).clamp(-0.2, 0.2)
    assert row(clipped) == near(0.25, 0.5, 0.35, 0.8)
    far = torch.full((1, 1), 3.0)
    loss = pg.value_losses(far, torch.zeros(1, 1), far, 0.2)
    assert loss.item() == pytest.approx(0.5 * 2.8**2)


def test_advantages_of_forced_tokens_do_not_change_the_policy_loss() -> None:
    advantages, _ = pg.gae(rewards(), VALUES, ANSWER)
    changed = advantages + (1 - OWN) * 100
    means = [
        pg.masked_mean(pg.policy_losses(NEW, OLD, a, 0.2)[0], OWN)
        for a in (advantages, changed)
    ]
    assert torch.equal(*means)


def test_without_a_shift_whitening_keeps_the_mean() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0, 50.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    scale = (2 / 3) ** -0.5
    assert row(pg.whiten(values, mask)) == near(-scale, 0, scale, 0)
    assert row(pg.whiten(values, mask, False)) == near(2 - scale, 2, 2 + scale, 0)


def test_whitening_the_shares_of_two_workers_is_whitening_the_whole() -> None:
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(6) < torch.tensor([[6], [2], [4], [1]])).float()
    whole = pg.whiten(values, mask)
    halves = [(values[:2], mask[:2]), (values[2:], mask[2:])]
    count = mask.sum()
    mean = (values * mask).sum() / count
    squares = ((values - mean) ** 2 * mask).sum()
    for half, expected in zip(halves, whole.chunk(2), strict=True):
        sums = iter([count, (values * mask).sum(), squares])
        found = pg.whiten(*half, sum_over_workers=lambda _, sums=sums: next(sums))
        assert torch.allclose(found, expected)


def test_rloo_compares_with_the_others_of_the_group() -> None:
    returns = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    found = pg.rloo_advantages(returns, 3).tolist()
    assert found == near(1 - 4, 2 - 3.5, 6 - 1.5, 0, 0, 0)


def test_grpo_divides_by_the_deviation_of_the_group() -> None:
    returns = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    deviation = 7**0.5 + 1e-4  # squares 4, 1 and 9 over two
    found = pg.grpo_advantages(returns, 3).tolist()
    expected = (-2 / deviation, -1 / deviation, 3 / deviation, 0, 0, 0)
    assert found == near(*expected)


def test_in_a_group_the_penalty_is_summed_and_every_own_token_shares_the_advantage() -> (
    None
):
    ratios = torch.tensor([[9.0, 1.0, 1.0], [9.0, 2.0, 7.0], [9.0, 0.0, 0.0]])
    mask = torch.tensor([[0.0, 1, 1], [0.0, 1, 0], [0.0, 1, 1]])
    scores = torch.tensor([2.0, 3.0, 6.0])
    found = pg.estimate_in_groups(ratios, scores, mask, 0.5, 3, "rloo")
    # The returns are 1, 2 and 6.
    expected = torch.tensor([[0, -3, -3], [0, -1.5, 0], [0, 4.5, 4.5]])
    assert torch.allclose(found.advantages, expected)


def test_a_critic_that_knows_the_returns_explains_all_of_them() -> None:
    _, returns = pg.gae(rewards(), VALUES, ANSWER)
    assert pg.explained_variance(returns, returns, ANSWER) == pytest.approx(1)
    assert pg.explained_variance(returns * 0, returns, ANSWER) == pytest.approx(0)
    assert pg.explained_variance(VALUES, returns * 0, ANSWER) == 0


def test_the_estimate_whitens_rewards_and_advantages() -> None:
    found = pg.estimate_with_critic(OLD - REFERENCE, SCORES, VALUES, ANSWER, 0.05)
    whitened = pg.whiten(rewards(), ANSWER, shift_mean=False)
    advantages, returns = pg.gae(whitened, VALUES, ANSWER)
    assert torch.equal(found.returns, returns)
    assert torch.equal(found.advantages, pg.whiten(advantages, ANSWER))


def test_tokens_of_another_engine_count_at_most_twice() -> None:
    learner = torch.tensor([[-1.0, -2.0, -0.5, -3.0]])
    engine = torch.tensor([[-1.0, -2.2, -3.5, -2.0]])
    weights = pg.truncated_importance(learner, engine)
    assert row(weights) == near(1.0, 1.221403, 2.0, 0.367879)
