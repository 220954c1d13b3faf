"""SteerLM 2.0's weights, distance and loss, against numbers worked out by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bezoar_ray.train.steer_weights import (
    ABSENT,
    distance,
    effective_samples,
    group_loss,
    policy_log_weights,
    target_log_weights,
)

GOAL = torch.tensor([[-1.0, -3.0, -0.5, -2.0]])
PLAIN = torch.tensor([[-12.0, -10.0, -14.0, -11.0]])
SAMPLER = torch.tensor([[-11.0, -10.5, -12.5, -11.5]])
TOKENS = torch.tensor([[20, 25, 22, 21]])
TARGET = [0.235004, 0.142537, 0.235004, 0.387456]

# The first gradient of a process takes longer than hypothesis allows an example.
without_deadline = settings(deadline=None)
log_probability = st.floats(-200, 0)
# Answers as rows: (ln P(a | x, y), ln P(y | x), ln Q'(y | a, x), ln Q(y | a, x), tokens)
groups = st.lists(
    st.tuples(*[log_probability] * 4, st.integers(1, 500)), min_size=2, max_size=12
)


def columns(group: list[tuple[float, ...]]) -> list[Tensor]:
    """The columns of `groups`, each with the shape of one group."""
    return list(torch.tensor(group, dtype=torch.float64).T.unsqueeze(1))


def test_the_weights_of_a_group_by_hand() -> None:
    target = target_log_weights(GOAL, PLAIN, SAMPLER)
    assert target.exp()[0].tolist() == pytest.approx(TARGET, abs=1e-6)
    # ln w' is ln w less a constant.
    log_weights = torch.tensor([-2.0, -2.5, -2.0, -1.5])
    assert (target[0] - log_weights).std().item() == pytest.approx(0, abs=1e-6)
    assert effective_samples(target).item() == pytest.approx(
        1 / sum(weight**2 for weight in TARGET), abs=1e-4
    )


@pytest.mark.parametrize(
    ("moved", "policy_weights", "found_distance", "gradient"),
    [
        (
            [0.0, 0.0, 0.0, 0.0],
            [0.25, 0.25, 0.25, 0.25],
            0.0605997,
            [0.014996, 0.107463, 0.014996, -0.137456],
        ),
        (
            [0.3, -0.2, 0.1, 0.0],
            [0.315848, 0.191572, 0.258594, 0.233986],
            0.0613054,
            [0.080844, 0.049035, 0.023591, -0.153470],
        ),
    ],
)
def test_the_distance_and_its_gradient_by_hand(
    moved: list[float],
    policy_weights: list[float],
    found_distance: float,
    gradient: list[float],
) -> None:
    log_probabilities = (SAMPLER + torch.tensor(moved)).requires_grad_()
    target = target_log_weights(GOAL, PLAIN, SAMPLER)
    policy = policy_log_weights(log_probabilities, SAMPLER)
    assert policy.exp()[0].tolist() == pytest.approx(policy_weights, abs=1e-6)
    found = distance(target, policy)
    assert found.item() == pytest.approx(found_distance, abs=1e-6)
    found.sum().backward()
    assert log_probabilities.grad is not None
    assert log_probabilities.grad[0].tolist() == pytest.approx(gradient, abs=1e-6)


def test_the_loss_of_a_group_by_hand() -> None:
    log_probabilities = SAMPLER + torch.tensor([0.3, -0.2, 0.1, 0.0])
    target = target_log_weights(GOAL, PLAIN, SAMPLER)
    policy = policy_log_weights(log_probabilities, SAMPLER)
    loss = group_loss(target, policy, log_probabilities, TOKENS)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(0.00375779, abs=1e-7)


@without_deadline
@given(groups)
def test_the_loss_has_the_gradient_of_the_distance(
    group: list[tuple[float, ...]],
) -> None:
    goal, plain, sampler, log_probabilities, tokens = columns(group)
    target = target_log_weights(goal, plain, sampler)

    of_distance = log_probabilities.clone().requires_grad_()
    distance(target, policy_log_weights(of_distance, sampler)).sum().backward()
    of_loss = log_probabilities.clone().requires_grad_()
    policy = policy_log_weights(of_loss, sampler)
    group_loss(target, policy, of_loss, tokens).sum().backward()

    assert of_distance.grad is not None
    assert of_loss.grad is not None
    pull = policy.detach().exp() - target.exp()
    assert torch.allclose(of_distance.grad, pull, atol=1e-12)
    assert torch.allclose(of_loss.grad * tokens.mean(), pull, atol=1e-12)
    # What some answers gain, the others lose.
    assert pull.sum().item() == pytest.approx(0, abs=1e-12)


@without_deadline
@given(groups, st.floats(-1000, 1000))
def test_only_differences_within_a_group_count(
    group: list[tuple[float, ...]], constant: float
) -> None:
    goal, plain, sampler, _, _ = columns(group)
    target = target_log_weights(goal, plain, sampler)
    shifted = target_log_weights(goal + constant, plain, sampler)
    assert torch.allclose(shifted, target, atol=1e-9)


@without_deadline
@given(groups)
def test_the_distance_is_0_at_the_target_and_positive_elsewhere(
    group: list[tuple[float, ...]],
) -> None:
    goal, plain, sampler, log_probabilities, _ = columns(group)
    target = target_log_weights(goal, plain, sampler)
    reached = policy_log_weights(goal + plain, sampler)
    assert distance(target, reached).item() == pytest.approx(0, abs=1e-9)
    elsewhere = policy_log_weights(log_probabilities, sampler)
    assert distance(target, elsewhere).item() >= -1e-9


@without_deadline
@given(groups)
def test_the_effective_samples_are_between_1_and_all(
    group: list[tuple[float, ...]],
) -> None:
    goal, plain, sampler, _, _ = columns(group)
    found = effective_samples(target_log_weights(goal, plain, sampler)).item()
    assert 1 - 1e-9 <= found <= len(group) + 1e-9


def test_equal_weights_make_every_sample_effective() -> None:
    equal = torch.zeros(3, 10)
    found = effective_samples(target_log_weights(equal, equal, equal))
    assert found.tolist() == pytest.approx([10.0] * 3)


def test_one_answer_with_all_the_weight_keeps_everything_finite() -> None:
    goal = torch.tensor([[0.0, -5000.0]])
    zero = torch.zeros(1, 2)
    log_probabilities = torch.tensor([[-3000.0, 0.0]], requires_grad=True)
    target = target_log_weights(goal, zero, zero)
    policy = policy_log_weights(log_probabilities, zero)
    found = distance(target, policy)
    assert found.item() == pytest.approx(3000)
    found.sum().backward()
    assert log_probabilities.grad is not None
    assert log_probabilities.grad[0].tolist() == pytest.approx([-1, 1])
    assert effective_samples(target).item() == pytest.approx(1)


def test_groups_do_not_see_one_another() -> None:
    other = torch.tensor([[-7.0, -1.0, -3.0, -9.0]])
    both = target_log_weights(
        torch.cat([GOAL, other]), PLAIN.repeat(2, 1), SAMPLER.repeat(2, 1)
    )
    assert torch.equal(both[:1], target_log_weights(GOAL, PLAIN, SAMPLER))
    assert torch.equal(both[1:], target_log_weights(other, PLAIN, SAMPLER))


# A world with three answers. The target is P(a | x, y) P(y | x) / Z, with Z = 0.33.
TOY_PLAIN = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
TOY_GOAL = torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64)
TOY_SAMPLER = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
POSTERIOR = [0.151515, 0.363636, 0.484848]
EXACT_GRADIENT = [0.248485, 0.036364, -0.284848]
"""Of KL(P || Q) at Q = Q', by the logits of Q: it is Q' - P."""


def toy_loss(logits: Tensor, answers: list[int]) -> Tensor:
    """The loss of one group, with answers of one token each."""
    sampler = TOY_SAMPLER.log()[answers].unsqueeze(0)
    target = target_log_weights(
        TOY_GOAL.log()[answers].unsqueeze(0),
        TOY_PLAIN.log()[answers].unsqueeze(0),
        sampler,
    )
    log_probabilities = logits.log_softmax(dim=-1)[answers].unsqueeze(0)
    policy = policy_log_weights(log_probabilities, sampler)
    tokens = torch.ones(1, len(answers))
    return group_loss(target, policy, log_probabilities, tokens).sum()


def test_a_group_as_the_sampler_gives_it_has_the_exact_gradient() -> None:
    in_proportion = [0] * 4 + [1] * 4 + [2] * 2
    logits = TOY_SAMPLER.log().requires_grad_()
    toy_loss(logits, in_proportion).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx(EXACT_GRADIENT, abs=1e-6)


def test_the_baseline_changes_no_expectation() -> None:
    in_proportion = [0] * 4 + [1] * 4 + [2] * 2
    logits = TOY_SAMPLER.log().requires_grad_()
    target = target_log_weights(
        TOY_GOAL.log()[in_proportion],
        TOY_PLAIN.log()[in_proportion],
        TOY_SAMPLER.log()[in_proportion],
    )
    log_probabilities = logits.log_softmax(dim=-1)[in_proportion]
    # The loss with w' alone, in place of w' - b'.
    (-target.exp() * log_probabilities).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx(EXACT_GRADIENT, abs=1e-6)


def test_training_on_each_answer_once_ends_at_the_target() -> None:
    logits = TOY_SAMPLER.log().requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        toy_loss(logits, [0, 1, 2]).backward()
        optimizer.step()
    assert logits.softmax(dim=-1).tolist() == pytest.approx(POSTERIOR, abs=1e-6)
    optimizer.zero_grad()
    toy_loss(logits, [0, 1, 2]).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max().item() < 1e-6


def test_an_absent_answer_changes_nothing() -> None:
    """Its log-probability is 0, its ln w' far below and its ln Q' far above all others."""

    def with_absent(values: Tensor, value: float) -> Tensor:
        return torch.cat([values, torch.full((1, 1), value)], dim=1)

    target = target_log_weights(GOAL, PLAIN, SAMPLER)
    moved = SAMPLER + torch.tensor([[0.3, -0.2, 0.1, 0.0]])
    policy = policy_log_weights(moved, SAMPLER)
    wider_target = with_absent(target, -ABSENT)
    wider_policy = policy_log_weights(
        with_absent(moved, 0.0), with_absent(SAMPLER, ABSENT)
    )
    assert wider_policy[0, :4].tolist() == pytest.approx(policy[0].tolist())
    assert distance(wider_target, wider_policy).item() == pytest.approx(
        distance(target, policy).item()
    )
    assert effective_samples(wider_target).item() == pytest.approx(
        effective_samples(target).item()
    )
    loss = group_loss(target, policy, moved, TOKENS)
    wider_tokens = torch.cat([TOKENS, torch.zeros((1, 1), dtype=torch.long)], dim=1)
    wider_loss = group_loss(
        wider_target, wider_policy, with_absent(moved, 0.0), wider_tokens
    )
    assert wider_loss.item() == pytest.approx(loss.item())
