"""The reward model: a decoder with a linear head that rates an answer by attributes.

The head reads the hidden state of the last token (arXiv 2406.08673, section 3). It is
in float32, and never in 4 bits.
"""

from collections.abc import Mapping
from types import MethodType
from typing import TYPE_CHECKING

from bezoar_ray.data.schema import ATTRIBUTES
from bezoar_ray.recipe.model_sections import Attribute
from bezoar_ray.train import attention

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import SequenceClassifierOutput

_HEAD = "score"
"""Name of the head in transformers' `…ForSequenceClassification` of all decoders."""
_INITIAL_STD = 0.02  # of the head's weights, as in most decoders


def prepare(model: "PreTrainedModel", seed: int) -> None:
    """Give a `…ForSequenceClassification` a new float32 head and our own pooling.

    transformers reads the last token that is not the padding token. If that token also
    ends an answer, it reads the token before. Here the mask says which token is last.

    Args:
        model: its head is replaced.
        seed: the head's first weights are drawn from it.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    weights = torch.empty(len(ATTRIBUTES), model.config.get_text_config().hidden_size)
    weights.normal_(std=_INITIAL_STD, generator=generator)
    set_head(model, weights)
    model.forward = MethodType(_padded_forward, model)


def set_head(model: "PreTrainedModel", weights: "Tensor") -> None:
    """Replace the head by one with these weights, of shape (outputs, hidden)."""
    import torch

    outputs, hidden = weights.shape
    head = torch.nn.Linear(hidden, outputs, bias=False, dtype=torch.float32)
    head.weight.data = weights.float().clone()
    setattr(model, _HEAD, head.to(model.device))


def make_scalar(model: "PreTrainedModel", weights: Mapping[Attribute, float]) -> None:
    """Replace the head by one with a single output: the weighted score.

    The head is linear, so the weighted sum of its rows gives exactly that score.
    """
    head = getattr(model, _HEAD).weight
    set_head(model, (weight_vector(weights).to(head) @ head)[None])
    model.config.id2label = {0: "score"}
    model.config.label2id = {"score": 0}


def is_reward_model(model: "Module") -> bool:
    """Whether a model, without PEFT's wrapper, has a head of outputs for each row."""
    return hasattr(model, _HEAD)


def flat_forward(model: "PreTrainedModel") -> MethodType:
    """Return a forward method of the model that computes the rows of a batch flat."""
    return MethodType(_flat_forward, model)


def hidden_head(model: "PreTrainedModel", hidden: "Tensor") -> "Tensor":
    """Return the outputs of the head, in float32, under autocast, too."""
    import torch

    with torch.autocast(hidden.device.type, enabled=False):
        return getattr(model, _HEAD)(hidden.float())


def scores(outputs: "Tensor", weights: Mapping[Attribute, float]) -> "Tensor":
    """Return the score of each answer: the weighted sum of its attributes.

    Args:
        outputs: shape (answers, attributes).
        weights: by attribute; an attribute that is not named has weight 0.
    """
    return outputs @ weight_vector(weights).to(outputs)


def weight_vector(weights: Mapping[Attribute, float]) -> "Tensor":
    """Return the weights in the order of the head's outputs."""
    import torch

    return torch.tensor([weights.get(name, 0.0) for name in ATTRIBUTES])


def _padded_forward(
    self: "PreTrainedModel",
    input_ids: "Tensor",
    attention_mask: "Tensor",
    **_: object,
) -> "SequenceClassifierOutput":
    """Compute the outputs of the rows of a batch that is padded on the right.

    Args:
        self: the model.
        input_ids: shape (rows, longest).
        attention_mask: 1 for tokens and 0 for padding, same shape.

    Returns:
        `logits` of shape (rows, outputs).
    """
    import torch
    from transformers.modeling_outputs import SequenceClassifierOutput

    output = self.base_model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    )
    last = attention_mask.sum(dim=1) - 1
    rows = torch.arange(len(last), device=last.device)
    hidden = output.last_hidden_state[rows, last]
    return SequenceClassifierOutput(logits=hidden_head(self, hidden))


def _flat_forward(
    self: "PreTrainedModel",
    input_ids: "Tensor",
    attention_mask: "Tensor",
    **_: object,
) -> "SequenceClassifierOutput":
    """Compute the same outputs as `_padded_forward`, without padding."""
    from transformers.modeling_outputs import SequenceClassifierOutput

    is_token = attention_mask.bool()
    output = self.base_model(**attention.flatten(input_ids, is_token), use_cache=False)
    last = is_token.sum(dim=1).cumsum(dim=0) - 1
    hidden = output.last_hidden_state[0, last]
    return SequenceClassifierOutput(logits=hidden_head(self, hidden))


def base_of(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel":
    """Return the model without PEFT's wrapper."""
    if hasattr(model, "get_base_model"):
        return model.get_base_model()
    return model
