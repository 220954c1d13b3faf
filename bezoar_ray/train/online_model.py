"""One frozen model with the adapters that learning from a reward model needs.

They are the policy, which continues hh-sft's adapter, its frozen reference, the frozen
reward model and the critic. Only one is active at a time. PEFT sets the weights of all
others to need no gradient, so each backward pass follows its forward pass directly: of
two forward passes and one backward pass, the first adapter would silently learn
nothing.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError
from bezoar_ray.recipe.model_sections import Attribute
from bezoar_ray.train import attention, model_loading, packing, reward_model
from bezoar_ray.train.encoding import IGNORED
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.packing import Layout
from bezoar_ray.train.rollouts import Episode

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor
    from torch.nn import Linear, Parameter

POLICY = "default"
"""PEFT saves an adapter of this name in the folder itself."""
REFERENCE = "reference"
REWARD = "reward"
CRITIC = "critic"
_HEAD = "base_model.model.score.weight"
"""The head's name in a reward model's adapter."""

Autocast = Callable[[], contextlib.AbstractContextManager[object]]


@dataclass(frozen=True)
class RewardHead:
    """The reward model's head for the weighted and standardized score."""

    weights: "Tensor"
    """Of the weighted score, shape (hidden,)."""
    mean: float
    """Of the scores of rated answers."""
    sd: float
    """Their standard deviation."""

    @classmethod
    def of(
        cls,
        head: "Tensor",
        attribute_weights: Mapping[Attribute, float],
        mean: float,
        sd: float,
    ) -> "RewardHead":
        """Combine the outputs of a head of shape (attributes, hidden)."""
        vector = reward_model.weight_vector(attribute_weights).to(head)
        return cls((vector @ head).float(), mean, sd)

    def __call__(self, hidden: "Tensor") -> "Tensor":
        """Return the scores of hidden states, shape (episodes, hidden)."""
        score = hidden @ self.weights.to(hidden)
        return (score - self.mean) / self.sd


@dataclass(frozen=True)
class Batch:
    """Episodes as tensors, padded on the right.

    Tensors over all tokens have the shape (episodes, tokens), those over the tokens of
    answers (episodes, answer tokens).
    """

    ids: "Tensor"
    mask: "Tensor"
    """1 for tokens and 0 for padding."""
    answers: list[slice]
    """Of each episode, the positions from which the tokens of its answer, forced ones
    included, are predicted."""

    def over_answers(self, values: "Tensor") -> "Tensor":
        """Take the answers from values over all positions, and align them left."""
        from torch.nn.utils.rnn import pad_sequence

        rows = [values[row, part] for row, part in enumerate(self.answers)]
        return pad_sequence(rows, batch_first=True)


def batch_of(episodes: list[Episode], device: "torch.device") -> Batch:
    """Make a batch of episodes."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [torch.tensor(episode.ids) for episode in episodes]
    ones = [torch.ones_like(row) for row in rows]
    answers = []
    for episode in episodes:
        # The token before the answer predicts its first one.
        begin = len(episode.prompt_ids) - 1
        answers.append(slice(begin, len(episode.ids) - 1))
    return Batch(
        pad_sequence(rows, batch_first=True).to(device),
        pad_sequence(ones, batch_first=True).to(device),
        answers,
    )


def load(job: Job) -> "tuple[PeftModel, Tensor]":
    """Load merged sft with all adapters; the policy is active.

    Returns:
        The model, and the reward model's head, of shape (attributes, hidden).
    """
    frozen_model = model_loading.for_training(job)
    policy_folder = str(job.store.path(layout.checkpoint("hh-sft").adapter))
    model = model_loading.with_adapter(frozen_model, policy_folder, trainable=True)
    model.load_adapter(policy_folder, adapter_name=REFERENCE)
    reward_folder = str(job.store.path(layout.checkpoint("rm").adapter))
    for name in (REWARD, CRITIC):
        head = add_reward_adapter(model, reward_folder, name)
    without_dropout(model)
    model.base_model.set_adapter(POLICY)
    return model, head


def add_reward_adapter(model: "PeftModel", folder: str, name: str) -> "Tensor":
    """Add a reward model's adapter, without its head, to a model that writes text.

    Returns:
        The head's weights, of shape (attributes, hidden).

    Raises:
        BezoarError: it does not fit the model.
    """
    from peft import PeftConfig, load_peft_weights, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(folder)
    config.task_type = "CAUSAL_LM"
    config.modules_to_save = None
    model.add_adapter(name, config)
    weights = load_peft_weights(folder, device="cpu")
    head = weights.pop(_HEAD)
    result = set_peft_model_state_dict(model, weights, adapter_name=name)
    missing = [key for key in result.missing_keys if f".{name}." in key]
    if missing or result.unexpected_keys:
        raise BezoarError(
            f"align: the reward model's adapter in {folder} does not fit merged sft: "
            f"{[*missing, *result.unexpected_keys][:3]}. Run the stage rm again"
        )
    return head


def without_dropout(model: "PeftModel") -> None:
    """Switch dropout off in training mode, too.

    The ratio of new and old policy must be 1 before the first step.
    """
    from torch.nn import Dropout

    for module in model.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


class OnlineModel:
    """Forward passes of episodes through one of the adapters.

    Args:
        model: with all adapters, without dropout.
        reward_head: of the score.
        row_layout: how the rows of a pass are laid out.
        temperature: of the log-probabilities, which is that of the sampling.
        autocast: the type in which the model computes.
    """

    def __init__(
        self,
        model: "PeftModel",
        reward_head: RewardHead,
        row_layout: Layout,
        temperature: float,
        autocast: Autocast,
    ):
        import torch

        self.model = model
        self.base = model.get_base_model()
        self.device = self.base.device
        self._layout = row_layout
        self._temperature = temperature
        self.autocast = autocast
        self._reward_head = reward_head
        self.value_head: Linear = torch.nn.Linear(
            len(reward_head.weights), 1, dtype=torch.float32, device=self.device
        )
        # A critic that knows nothing expects nothing.
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)

    def adapter_weights(self, adapter: str) -> "dict[str, Parameter]":
        """Return the weights of an adapter by name."""
        weights = {}
        for name, weight in self.model.named_parameters():
            if f".{adapter}." in name:
                weights[name] = weight
        return weights

    @contextlib.contextmanager
    def passes(self) -> Iterator[None]:
        """Within the block, the methods below can be called, and nothing else."""
        outputs = ("log_probs", "entropy")
        with (
            packing.fused_head(self.model, self._temperature, outputs),
            packing.packed(self.model, self._layout),
        ):
            yield

    def activate(self, adapter: str, trains: bool = False) -> None:
        """Make an adapter the active one, with gradients if it trains."""
        self.model.base_model.set_adapter(adapter, inference_mode=not trains)

    def log_probs(self, batch: Batch) -> "tuple[Tensor, Tensor]":
        """Return log-probability and entropy at each token of the answers.

        Both are of shape (episodes, answer tokens), by the active adapter.
        """
        import torch

        labels = torch.full_like(batch.ids, IGNORED)
        for row, part in enumerate(batch.answers):
            scored = slice(part.start + 1, part.stop + 1)
            labels[row, scored] = batch.ids[row, scored]
        with self.autocast():
            output = self.model(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                labels=labels,
                fused_lm_head=True,
            )
        log_probs = batch.over_answers(output.log_probs.float())
        return log_probs, batch.over_answers(output.entropy.float())

    def values(self, batch: Batch) -> "Tensor":
        """Return the value before each token of the answers, by the active adapter."""
        hidden = batch.over_answers(self.hidden(batch))
        return self.value_head(hidden)[..., 0]

    def scores(self, batch: Batch) -> "Tensor":
        """Return the score at the last token, by the active adapter."""
        import torch

        hidden = self.hidden(batch)
        rows = torch.arange(len(hidden), device=self.device)
        last = batch.mask.sum(dim=1) - 1
        return self._reward_head(hidden[rows, last])

    def hidden(self, batch: Batch) -> "Tensor":
        """Return the last hidden states, shape (episodes, tokens, hidden), float32."""
        backbone = self.base.base_model
        with self.autocast():
            if not self._layout.flat:
                output = backbone(
                    input_ids=batch.ids, attention_mask=batch.mask, use_cache=False
                )
                return output.last_hidden_state.float()
            is_token = batch.mask.bool()
            output = backbone(**attention.flatten(batch.ids, is_token), use_cache=False)
        flat = output.last_hidden_state[0].float()
        hidden = flat.new_zeros(*is_token.shape, flat.shape[-1])
        # It fills row by row, which is the order of the flat sequence.
        return hidden.masked_scatter(is_token[..., None], flat)
