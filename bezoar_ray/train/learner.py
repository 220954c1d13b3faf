"""Learns from episodes: what is known of them, the estimates, and the optimizer steps.

It knows no run directory and no Ray. All workers make the same steps: sums are over the
episodes of all of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bezoar_ray.errors import BezoarError
from bezoar_ray.recipe import Align
from bezoar_ray.train import policy_gradient
from bezoar_ray.train.online_model import (
    CRITIC,
    POLICY,
    REFERENCE,
    REWARD,
    Batch,
    OnlineModel,
    batch_of,
)
from bezoar_ray.train.packing import Layout
from bezoar_ray.train.pass_size import PassSize
from bezoar_ray.train.passes import Row, split
from bezoar_ray.train.policy_gradient import Estimate
from bezoar_ray.train.rollouts import Episode

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

_ADAM_EPSILON = 1e-5
"""Of DR-PO's code, and of most code for PPO (arXiv 2005.12729)."""

ScoreEpisodes = Callable[[list[Episode]], "Tensor"]
"""Scores episodes, shape (episodes,); a higher score is better."""


@dataclass(frozen=True)
class Experience:
    """A worker's episodes of an iteration, with what is known before learning.

    Tensors are of shape (episodes, answer tokens); answers begin at the left.
    """

    episodes: list[Episode]
    scores: "Tensor"
    """Of the answers, shape (episodes,), in standard deviations."""
    answer: "Tensor"
    """1 at the tokens of the answer, forced ones included."""
    own: "Tensor"
    """1 at the tokens that the policy wrote."""
    log_probs: "Tensor"
    engine_log_probs: "Tensor"
    """By the engine that sampled; equal to `log_probs` where this model has sampled."""
    reference: "Tensor"
    """Log-probabilities by the reference."""
    entropy: "Tensor"
    values: "Tensor"
    """By the critic; zeros without one."""


class NotFinite(Exception):
    """A loss or its gradient is NaN or infinite; `rows` are the ids of this worker's
    rows that may be the cause."""

    def __init__(self, rows: list[str]):
        super().__init__(rows)
        self.rows = rows


class Learner:
    """Learns from episodes; every worker has one, with equal weights.

    Args:
        model: with the adapters.
        align: the recipe's section.
        iterations: of the whole training, for the learning rate.
        pass_size: of a forward pass.
        row_layout: how the rows of a pass are laid out.
        score: replaces the reward model.
    """

    def __init__(
        self,
        model: OnlineModel,
        align: Align,
        iterations: int,
        pass_size: PassSize,
        row_layout: Layout,
        score: ScoreEpisodes | None = None,
    ):
        self.model = model
        self._align = align
        self._pass_size = pass_size
        self._layout = row_layout
        self._score = score
        self._has_critic = align.ppo.advantage == "gae"
        self.policy_weights = model.adapter_weights(POLICY)
        self.critic_weights = {}
        if self._has_critic:
            self.critic_weights = model.adapter_weights(CRITIC)
            for name, weight in model.value_head.named_parameters():
                self.critic_weights[f"value_head.{name}"] = weight
        self.optimizer, self.schedule = self._build_optimizer(iterations)

    def _build_optimizer(self, iterations: int) -> "tuple[Optimizer, LRScheduler]":
        """Build AdamW and a schedule whose steps are iterations."""
        import torch
        from transformers import get_scheduler

        weights = [*self.policy_weights.values(), *self.critic_weights.values()]
        optimizer = torch.optim.AdamW(
            weights,
            lr=self._align.learning_rate,
            eps=_ADAM_EPSILON,
            weight_decay=0.0,
        )
        schedule = get_scheduler(
            self._align.schedule,
            optimizer,
            num_warmup_steps=int(self._align.warmup_ratio * iterations),
            num_training_steps=iterations,
        )
        return optimizer, schedule

    def state(self) -> dict[str, Any]:
        """Return all that changes in training."""
        return {
            "policy": self.policy_weights,
            "critic": self.critic_weights,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        for weights, saved in (
            (self.policy_weights, state["policy"]),
            (self.critic_weights, state["critic"]),
        ):
            for name, weight in weights.items():
                weight.data.copy_(saved[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])

    def observe(self, episodes: list[Episode]) -> Experience:
        """Compute what is known of episodes before learning, without gradients."""
        import torch

        by_index: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad(), self.model.passes():
            for indices in self._passes_of(episodes):
                part = [episodes[index] for index in indices]
                found = self._observe_pass(part)
                for row, index in enumerate(indices):
                    by_index[index] = {name: found[name][row] for name in found}
        rows = [by_index[index] for index in range(len(episodes))]
        tensors = {name: _pad([row[name] for row in rows]) for name in rows[0]}
        if self._score:
            tensors["scores"] = self._score(episodes).to(self.model.device)
        ended = [episode.ended for episode in episodes]
        is_ended = torch.tensor(ended, device=self.model.device)
        unfinished = self._align.ppo.unfinished_score
        scores = tensors["scores"]
        tensors["scores"] = scores.where(is_ended, torch.full_like(scores, unfinished))
        log_probs = tensors["log_probs"]
        answer, own = _masks(episodes, log_probs)
        tensors["engine_log_probs"] = _by_engine(episodes, log_probs)
        return Experience(episodes, answer=answer, own=own, **tensors)

    def _observe_pass(self, episodes: list[Episode]) -> "dict[str, Tensor]":
        """Return scores and values of the tokens of a pass, by name."""
        import torch

        model = self.model
        batch = batch_of(episodes, model.device)
        model.activate(POLICY)
        log_probs, entropy = model.log_probs(batch)
        model.activate(REFERENCE)
        reference, _ = model.log_probs(batch)
        values = torch.zeros_like(log_probs)
        if self._has_critic:
            model.activate(CRITIC)
            values = model.values(batch)
        found = {
            "log_probs": log_probs,
            "reference": reference,
            "entropy": entropy,
            "values": values,
        }
        if not self._score:
            model.activate(REWARD)
            found["scores"] = model.scores(batch)
        return found

    def check_gradients(self, episodes: list[Episode]) -> None:
        """Check that a step reaches the adapters of policy and critic alike.

        Its order of passes is that of a step. The critic's head is left out, as its
        first weights are 0 and would hide the adapter's gradient.

        Raises:
            BezoarError: one of the adapters would learn nothing.
        """
        batch = batch_of(episodes, self.model.device)
        with self.model.passes():
            self.model.activate(POLICY, trains=True)
            self.model.log_probs(batch)[0].sum().backward()
            if self._has_critic:
                self.model.activate(CRITIC, trains=True)
                self.model.hidden(batch).sum().backward()
        for adapter in (POLICY, CRITIC) if self._has_critic else (POLICY,):
            weights = self.model.adapter_weights(adapter).values()
            if not any(w.grad is not None and w.grad.any() for w in weights):
                raise BezoarError(
                    f"align: the gradient of {adapter}'s adapter is zero, so it would "
                    "learn nothing. Set align.load_in_4bit: false, or choose another "
                    "base"
                )
        self.optimizer.zero_grad(set_to_none=True)

    def learn(self, experience: Experience) -> dict[str, float]:
        """Take the optimizer steps of an iteration.

        Returns:
            The metrics of the iteration, over the episodes of all workers.

        Raises:
            NotFinite: a loss or a gradient is NaN or infinite. Of such a step, no
                weight has changed.
        """
        estimate = self._estimate(experience)
        metrics = describe(experience)
        if self._has_critic:
            metrics["explained_variance"] = policy_gradient.explained_variance(
                experience.values,
                estimate.returns,
                self._learned_mask(experience),
                sum_over_workers,
            )
        steps = []
        for _ in range(self._align.ppo.passes):
            steps.append(self._step(experience, estimate))
        self.schedule.step()
        for name in steps[0]:
            metrics[name] = sum(step[name] for step in steps) / len(steps)
        return metrics

    def _estimate(self, experience: Experience) -> Estimate:
        ppo = self._align.ppo
        log_ratios = experience.log_probs - experience.reference
        if not self._has_critic:
            return policy_gradient.estimate_in_groups(
                log_ratios,
                experience.scores,
                experience.own,
                self._align.beta,
                ppo.group,
                ppo.advantage,
            )
        return policy_gradient.estimate_with_critic(
            log_ratios,
            experience.scores,
            experience.values,
            self._learned_mask(experience),
            self._align.beta,
            sum_over_workers,
        )

    def _learned_mask(self, experience: Experience) -> "Tensor":
        """Return the tokens that count for rewards and for the critic."""
        if self._align.ppo.mask_forced == "all":
            return experience.own
        return experience.answer

    def _step(self, experience: Experience, estimate: Estimate) -> dict[str, float]:
        """Take one optimizer step on all episodes; return losses and clipped share."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.model.passes():
            policy_loss, clipped = self._policy_backward(experience, estimate)
            value_loss = 0.0
            if self._has_critic:
                value_loss = self._critic_backward(experience, estimate)
        loss = policy_loss + self._align.ppo.value_weight * value_loss
        # Loss and gradients are those of all workers, so all of them raise together.
        numbers = [loss, self._share_gradients(self.policy_weights)]
        if self._has_critic:
            numbers.append(self._share_gradients(self.critic_weights))
        if not all(map(math.isfinite, numbers)):
            raise NotFinite(_broken_rows(experience))
        self.optimizer.step()
        return {
            "loss": loss,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "clipped": clipped,
        }

    def _policy_backward(
        self, experience: Experience, estimate: Estimate
    ) -> tuple[float, float]:
        """Add the gradients of the policy's loss; return loss and clipped share."""
        import torch

        clip = self._align.ppo.clip
        importance = policy_gradient.truncated_importance(
            experience.log_probs, experience.engine_log_probs
        )
        count = sum_over_workers(experience.own.sum())
        total = torch.zeros(2, device=self.model.device)
        self.model.activate(POLICY, trains=True)
        for indices in self._passes_of(experience.episodes):
            batch = self._batch(experience, indices)
            log_probs, _ = self.model.log_probs(batch)
            width = log_probs.shape[1]
            own = experience.own[indices, :width]
            losses, clipped = policy_gradient.policy_losses(
                log_probs,
                experience.log_probs[indices, :width],
                estimate.advantages[indices, :width],
                clip,
            )
            losses = losses * importance[indices, :width]
            loss = (losses * own).sum() / count
            loss.backward()
            shares = torch.stack([loss.detach(), (clipped * own).sum() / count])
            total += shares
        policy_loss, share = sum_over_workers(total).tolist()
        return policy_loss, share

    def _critic_backward(self, experience: Experience, estimate: Estimate) -> float:
        """Add the gradients of the critic's weighted loss; return the loss."""
        import torch

        ppo = self._align.ppo
        mask = self._learned_mask(experience)
        count = sum_over_workers(mask.sum())
        total = torch.zeros((), device=self.model.device)
        self.model.activate(CRITIC, trains=True)
        for indices in self._passes_of(experience.episodes):
            values = self.model.values(self._batch(experience, indices))
            width = values.shape[1]
            losses = policy_gradient.value_losses(
                values,
                experience.values[indices, :width],
                estimate.returns[indices, :width],
                ppo.clip,
            )
            loss = (losses * mask[indices, :width]).sum() / count
            (ppo.value_weight * loss).backward()
            total += loss.detach()
        return sum_over_workers(total).item()

    def _share_gradients(self, weights: "dict[str, Parameter]") -> float:
        """Add up the gradients of all workers and clip their norm, which it returns."""
        import torch

        shares = []
        for weight in weights.values():
            gradient = weight.grad
            if gradient is None:
                gradient = torch.zeros_like(weight)
            shares.append(gradient.flatten())
        # As one tensor, since each exchange has a cost of its own.
        total = sum_over_workers(torch.cat(shares))
        sizes = [len(share) for share in shares]
        for weight, gradient in zip(weights.values(), total.split(sizes), strict=True):
            weight.grad = gradient.view_as(weight)
        limit = self._align.max_grad_norm
        return torch.nn.utils.clip_grad_norm_(weights.values(), limit).item()

    def _passes_of(self, episodes: list[Episode]) -> list[list[int]]:
        """Split episodes into passes, by their indices."""
        rows = []
        for episode in episodes:
            length = len(episode.ids)
            rows.append(Row(tokens=length, sequences=1, longest=length))
        return split(rows, self._pass_size, self._layout)

    def _batch(self, experience: Experience, indices: list[int]) -> Batch:
        episodes = [experience.episodes[index] for index in indices]
        return batch_of(episodes, self.model.device)


def sum_over_workers(total: "Tensor") -> "Tensor":
    """Add up a tensor of all workers."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return total
    shared = total.detach().clone()
    dist.all_reduce(shared)
    return shared


def _pad(rows: "list[Tensor]") -> "Tensor":
    """Stack the tensors of episodes, padding those over tokens with zeros."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    if rows[0].dim() == 0:
        return torch.stack(rows)
    return pad_sequence(rows, batch_first=True)


def _masks(episodes: list[Episode], like: "Tensor") -> "tuple[Tensor, Tensor]":
    """Return where the tokens of answers are, and those that the policy wrote."""
    import torch

    answer = torch.zeros_like(like)
    own = torch.zeros_like(like)
    for row, episode in enumerate(episodes):
        forced = len(episode.forced_ids)
        length = forced + len(episode.own_ids)
        answer[row, :length] = 1
        own[row, forced:length] = 1
    return answer, own


def _by_engine(episodes: list[Episode], log_probs: "Tensor") -> "Tensor":
    """Put the engine's log-probabilities in place of the model's, where there are some."""
    by_engine = log_probs.clone()
    for row, episode in enumerate(episodes):
        begin = len(episode.forced_ids)
        known = log_probs.new_tensor(episode.engine_log_probs)
        by_engine[row, begin : begin + len(known)] = known
    return by_engine


def _broken_rows(experience: Experience) -> list[str]:
    """Return the ids of rows with numbers that are not finite; of all, if none is known."""
    import torch

    tokens = torch.stack(
        [experience.log_probs, experience.reference, experience.values]
    )
    is_finite = tokens.isfinite().all(dim=0).all(dim=1) & experience.scores.isfinite()
    ids = [episode.id for episode in experience.episodes]
    broken = []
    for id, fine in zip(ids, is_finite.tolist(), strict=True):
        if not fine:
            broken.append(id)
    # Where no worker has such rows, the gradient alone is not finite.
    count = sum_over_workers(torch.tensor(len(broken), device=is_finite.device))
    return broken if count else ids


def describe(experience: Experience) -> dict[str, float]:
    """Return what episodes are like, over all workers."""
    import torch

    own = experience.own
    log_ratios = experience.log_probs - experience.reference
    scores = experience.scores
    ended = torch.tensor([episode.ended for episode in experience.episodes])
    engine_gaps = experience.log_probs - experience.engine_log_probs
    sums = {
        "episodes": torch.ones_like(scores).sum(),
        "score": scores.sum(),
        "squares": (scores**2).sum(),
        "kl": (log_ratios * own).sum(),
        "kl_all": (log_ratios * experience.answer).sum(),
        "entropy": (experience.entropy * own).sum(),
        "own": own.sum(),
        "answer": experience.answer.sum(),
        "ended": ended.sum().to(scores),
        "engine_gap": (engine_gaps.abs() * own).sum(),
    }
    totals = sum_over_workers(torch.stack(list(sums.values())).double()).tolist()
    found = dict(zip(sums, totals, strict=True))
    episodes = found["episodes"]
    score = found["score"] / episodes
    variance = max(0.0, found["squares"] / episodes - score**2)
    metrics = {
        "score": score,
        "score_sd": variance**0.5,
        "kl": found["kl"] / episodes,
        "kl_all": found["kl_all"] / episodes,
        "entropy": found["entropy"] / found["own"],
        "length": found["own"] / episodes,
        "ended": found["ended"] / episodes,
        "forced": 1 - found["own"] / found["answer"],
    }
    if any(episode.engine_log_probs for episode in experience.episodes):
        metrics["engine_gap"] = found["engine_gap"] / found["own"]
    return metrics
