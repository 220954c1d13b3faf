"""What a policy learned from the reward model: its answers to held-out prompts.

Every sentence of the warning compares a measure that the policy did not learn from.
"""

from dataclasses import dataclass
from typing import Any

from bezoar_ray.stages import checkpoint_of
from bezoar_ray.stats import wilson
from bezoar_ray.store import Store
from bezoar_ray.train import heldout_answers

_SAMPLES = 5


@dataclass(frozen=True)
class Answers:
    """A held-out prompt, with the policy's answers before and after the training."""

    prompt: str
    before: str
    score_before: float
    after: str
    score_after: float


@dataclass(frozen=True)
class RewardLearning:
    """A policy's looks at held-out prompts, and some of its answers."""

    checkpoint: str
    looks: list[dict[str, Any]]
    """Metrics of all answers, first those before the training."""
    samples: list[Answers]

    @property
    def knows_right(self) -> bool:
        """Whether it is known of some answers if they are right."""
        return bool(self.looks[0].get("known"))

    def right_share(self, look: dict[str, Any]) -> float | None:
        """The share of right answers of a look; None where none is known."""
        return heldout_answers.right_share(look)


def reward_learning(train: dict[str, Any], store: Store) -> RewardLearning | None:
    """Gather what the run has; None if no policy learned by reward.

    Args:
        train: of summary.json.
        store: the run directory.
    """
    for name, results in train.items():
        looks = results.get("heldout_answers")
        if looks:
            return RewardLearning(name, looks, _samples(store, name))
    return None


def _samples(store: Store, name: str) -> list[Answers]:
    """Return some prompts with the answers of the first and the last look."""
    samples = []
    for row in heldout_answers.read(store, name)[:_SAMPLES]:
        first = row["answers"][0]
        last = row["answers"][-1]
        sample = Answers(
            row["prompt"][-1]["content"],
            first["text"],
            first["score"],
            last["text"],
            last["score"],
        )
        samples.append(sample)
    return samples


def overrated(
    learning: RewardLearning | None,
    train: dict[str, Any],
    mt_bench: dict[str, Any],
    bench_name: str,
) -> list[str]:
    """Warn where the score has risen while another measure has fallen.

    A fall counts if the value after the training is below the 95 % interval of the one
    before.

    Args:
        learning: what the run has.
        train: of summary.json.
        mt_bench: of summary.json, by model.
        bench_name: how the report calls the questions.
    """
    if learning is None:
        return []
    first = learning.looks[0]
    last = learning.looks[-1]
    if last["score"] <= first["score"]:
        return []
    name = learning.checkpoint
    parent = checkpoint_of(name).parent
    fallen = []
    before = learning.right_share(first)
    after = learning.right_share(last)
    interval = wilson(first.get("right", 0), first.get("known", 0))
    if before is not None and after is not None and _is_below(after, interval):
        fallen.append(
            f"the share of right answers fell from {100 * before:.0f} to "
            f"{100 * after:.0f} %"
        )
    before = train.get(parent, {}).get("heldout_accuracy")
    after = train[name].get("heldout_accuracy")
    if _is_below(after, train.get(parent, {}).get("heldout_ci95")):
        fallen.append(
            f"the held-out accuracy fell from {100 * before:.0f} to {100 * after:.0f} %"
        )
    grades = mt_bench.get(parent, {})
    after = mt_bench.get(name, {}).get("score")
    if _is_below(after, grades.get("ci95")):
        fallen.append(
            f"the score in {bench_name} fell from {grades['score']:.2f} to {after:.2f}"
        )
    warnings = []
    for fall in fallen:
        warnings.append(
            f"{name} may exploit the reward model: its score for held-out prompts rose "
            f"from {first['score']:.2f} to {last['score']:.2f}, but {fall}. Raise "
            "align.beta, or end earlier with align.ppo.stop_at"
        )
    return warnings


def _is_below(value: float | None, interval: list[float] | None) -> bool:
    return value is not None and interval is not None and value < interval[0]
