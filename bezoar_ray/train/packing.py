"""Flat passes: the tokens of a padded batch go through a model as one sequence.

Callers see padded batches only, so TRL's trainers and collators stay as they are.
Within `packed`, a call for log-probabilities (TRL's `fused_lm_head=True`) drops the
padding, computes the rows side by side (`attention.py`), projects only the positions
whose next token is labelled, and puts the results back where the caller expects them.

Packing is correct only where a row's output does not depend on its neighbors: positions
must separate the rows, and no state may carry over from one row to the next (learned
positions that keep counting, recurrent states, convolutions). `choose` measures this on
the model itself before the first step. Where it does not hold, rows are padded.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING

from bezoar_ray.train import attention
from bezoar_ray.train.encoding import IGNORED
from bezoar_ray.train.reward_model import (
    base_of,
    flat_forward,
    hidden_head,
    is_reward_model,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

TOLERANCE = 1e-3
"""Largest relative difference of a row's float32 logits in a pass and alone."""
_LOOSE_TOLERANCE = 3e-2
"""The same in bfloat16, which rounds both, where float32 does not fit in memory."""
_CHECKED_LENGTHS = (24, 16)  # tokens of the two rows that are compared
_OUTPUT_FIELDS = (  # of TRL's FusedCausalLMOutput
    "log_probs",
    "entropy",
    "log_sum_sq_probs",
    "mean_logits",
    "is_top1",
)


@dataclass(frozen=True)
class Layout:
    """How the rows of a pass are laid out: `flat` (one after the other) or `padded`."""

    name: str
    because: str = ""
    """Why rows are padded."""

    @property
    def flat(self) -> bool:
        """Whether no padding is computed."""
        return self.name == "flat"


def choose(model: "PreTrainedModel | PeftModel") -> Layout:
    """Choose flat passes where they give each row the logits of the row alone.

    Two short rows are computed both ways in float32, whatever type the model computes
    in. If the float32 weights do not fit in memory, they are computed in the model's
    own type and compared with a looser tolerance.
    """
    import torch

    attention.register()
    causal_model = base_of(model)
    architecture = causal_model.config.model_type
    tolerance = TOLERANCE
    try:
        try:
            with in_float32(causal_model):
                difference = _logit_difference(causal_model)
        except torch.OutOfMemoryError:
            tolerance = _LOOSE_TOLERANCE
            difference = _logit_difference(causal_model)
    except Exception as error:  # architectures fail in many ways
        reason = f"{architecture} does not run flat: {first_line(error)}"
        return Layout("padded", reason)
    if difference <= tolerance:
        return Layout("flat")
    reason = f"{architecture} mixes the rows of a flat pass: logits differ by "
    return Layout("padded", f"{reason}{difference:.2g}")


@contextlib.contextmanager
def fused_head(
    model: "PreTrainedModel | PeftModel",
    temperature: float = 1.0,
    outputs: tuple[str, ...] = ("log_probs",),
) -> Iterator[None]:
    """Within the block, the model accepts `fused_lm_head=True`, as in TRL.

    A reward model has no such head and stays as it is.

    Args:
        model: may be wrapped by PEFT.
        temperature: by which logits are divided.
        outputs: fields of TRL's FusedCausalLMOutput to compute.
    """
    from trl.trainer.utils import add_fused_lm_head

    causal_model = base_of(model)
    if is_reward_model(causal_model):
        yield
        return
    with _restore_forward(causal_model):
        add_fused_lm_head(causal_model, temperature=temperature, outputs=outputs)
        yield


@contextlib.contextmanager
def packed(model: "PreTrainedModel | PeftModel", layout: Layout) -> Iterator[None]:
    """Within the block, calls for log-probabilities are computed in the given layout.

    So are all calls of a reward model.

    A padded layout changes nothing. In a flat one, the model accepts no other calls
    within the block. The model may be wrapped by PEFT. For a bare model, the block must
    begin after `add_fused_lm_head`.
    """
    if not layout.flat:
        yield
        return
    attention.register()
    causal_model = base_of(model)
    if is_reward_model(causal_model):
        with (
            _use_attention(causal_model, attention.NAME),
            _restore_forward(causal_model),
        ):
            causal_model.forward = flat_forward(causal_model)
            yield
        return
    backbone = causal_model.base_model
    with (
        _use_attention(causal_model, attention.NAME),
        _restore_forward(backbone),
        _restore_forward(model),
    ):
        backbone.forward = MethodType(_selecting_forward(backbone.forward), backbone)
        model.forward = MethodType(_flattening_forward(model), model)
        yield


@contextlib.contextmanager
def _restore_forward(module: "Module") -> Iterator[None]:
    """Restore the module's forward function after the block."""
    # Only an instance has one: TRL's fused head, for example, is put there.
    before = module.__dict__.get("forward")
    try:
        yield
    finally:
        module.__dict__.pop("forward", None)
        if before is not None:
            module.forward = before


def trial_loss(
    model: "PreTrainedModel | PeftModel", ids: "Tensor", labels: "Tensor"
) -> "Tensor":
    """Compute a loss of rows without padding, as large in memory as that of training.

    Args:
        model: within `packed`, and within `fused_head` if it writes text.
        ids: shape (rows, tokens).
        labels: the tokens whose log-probability counts, same shape.
    """
    import torch

    mask = torch.ones_like(ids)
    if is_reward_model(base_of(model)):
        return model(input_ids=ids, attention_mask=mask).logits.mean()
    output = model(
        input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True
    )
    return output.log_probs.mean()


def _flattening_forward(
    model: "PreTrainedModel | PeftModel",
) -> "Callable[..., ModelOutput]":
    """Build a forward function that computes calls for log-probabilities flat."""
    inner = model.forward

    @functools.wraps(type(model).forward)  # transformers reads the signature
    def forward(
        self: "Module",
        input_ids: "Tensor | None" = None,
        attention_mask: "Tensor | None" = None,
        labels: "Tensor | None" = None,
        fused_lm_head: bool = False,
        **more: object,
    ) -> "ModelOutput":
        if not fused_lm_head:
            return inner(
                input_ids=input_ids,
                attention_mask=attention_mask,
                labels=labels,
                **more,
            )
        assert input_ids is not None
        assert attention_mask is not None
        assert labels is not None
        is_token = attention_mask.bool()
        next_labels = labels.roll(-1, dims=1)
        # `roll` has put the row's first label there.
        next_labels[:, -1] = IGNORED
        is_scored = is_token & (next_labels != IGNORED)
        output = inner(
            **attention.flatten(input_ids, is_token),
            scored_positions=is_scored[is_token].nonzero()[:, 0],
            shift_labels=next_labels[is_scored][None],
            fused_lm_head=True,
            **more,
        )
        # TRL's outputs have no entry for the last position, which predicts nothing.
        label_mask = is_scored[:, :-1]
        for name in _OUTPUT_FIELDS:
            values = getattr(output, name)
            if values is not None:
                padded = values.new_zeros(label_mask.shape)
                # It fills row by row, which is the order of the flat sequence.
                output[name] = padded.masked_scatter(label_mask, values)
        output.label_mask = label_mask
        return output

    return forward


def _selecting_forward(inner: MethodType) -> "Callable[..., ModelOutput]":
    """Build a backbone's forward function that passes only some positions to the head.

    The head never computes the positions of a prompt.
    """

    @functools.wraps(inner.__func__)
    def forward(
        self: "Module",
        *args: object,
        scored_positions: "Tensor | None" = None,
        **more: object,
    ) -> "ModelOutput":
        output = inner(*args, **more)
        if scored_positions is not None:
            output.last_hidden_state = output.last_hidden_state[:, scored_positions]
        return output

    return forward


def _logit_difference(model: "PreTrainedModel") -> float:
    """Return how far the logits of rows in a flat pass are from those of each alone.

    It is the largest absolute difference, divided by the largest logit.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in _CHECKED_LENGTHS:
        row = torch.randint(vocabulary, (1, length), generator=generator)
        rows.append(row.to(model.device))
    ids = pad_sequence([row[0] for row in rows], batch_first=True)
    ones = [torch.ones_like(row[0]) for row in rows]
    is_token = pad_sequence(ones, batch_first=True).bool()
    was_training = model.training
    # no_grad, since inference mode would leave weights that no backward pass accepts.
    with torch.no_grad():
        model.eval()
        try:
            alone = torch.cat([_token_outputs(model, input_ids=row) for row in rows])
            with _use_attention(model, attention.NAME):
                flat = _token_outputs(model, **attention.flatten(ids, is_token))
                # Some features, such as dropout, are requested only in training mode.
                model.train()
                _token_outputs(model, **attention.flatten(ids, is_token))
        finally:
            model.train(was_training)
    return ((flat - alone).abs().max() / alone.abs().max()).item()


def _token_outputs(model: "PreTrainedModel", **inputs: object) -> "Tensor":
    """Return the outputs of the head at each token, shape (tokens, outputs)."""
    if is_reward_model(model):
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
        return hidden_head(model, hidden[0])
    return model(**inputs, use_cache=False).logits[0]


def computing_in(
    dtype: str, model: "PreTrainedModel"
) -> contextlib.AbstractContextManager[None]:
    """Build a context in which a bfloat16 model computes in `bfloat16` or `float32`."""
    if dtype == "float32":
        return in_float32(model)
    return contextlib.nullcontext()


@contextlib.contextmanager
def in_float32(model: "PreTrainedModel") -> Iterator[None]:
    """Within the block, bfloat16 weights are float32 and 4-bit layers compute in it.

    Buffers, such as the frequencies of positions, keep their precision.
    """
    import torch

    weights = [
        weight for weight in model.parameters() if weight.dtype is torch.bfloat16
    ]
    layers = [layer for layer in model.modules() if hasattr(layer, "compute_dtype")]
    compute_dtypes = [layer.compute_dtype for layer in layers]
    try:
        # One by one, so that never more than one weight is there in both types.
        for weight in weights:
            weight.data = weight.data.float()
        for layer in layers:
            layer.compute_dtype = torch.float32
        yield
    finally:
        for weight in weights:
            # Exact, as the values came from bfloat16.
            weight.data = weight.data.to(torch.bfloat16)
        for layer, dtype in zip(layers, compute_dtypes, strict=True):
            layer.compute_dtype = dtype


@contextlib.contextmanager
def _use_attention(causal_model: "PreTrainedModel", name: str) -> Iterator[None]:
    """Within the block, the model uses another attention function.

    Raises:
        NotImplementedError: the architecture implements its own attention.
    """
    before = causal_model.config._attn_implementation
    try:
        causal_model.set_attn_implementation(name)
        if causal_model.config._attn_implementation != name:
            raise NotImplementedError("it implements its own attention")
        yield
    finally:
        causal_model.set_attn_implementation(before)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type without one."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
