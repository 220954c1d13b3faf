"""Flat passes: the tokens of a padded batch go through a model as one sequence, without the padding.

Callers see padded batches alone: TRL's trainers and collators stay as they are. Within a model that is `packed`, a call
for log-probabilities (TRL's `fused_lm_head=True`) drops the padding, computes the rows side by side (`attention.py`),
projects only the positions whose next token is labelled, and puts the results back where the caller expects them.

Packing is right only where a row's output does not depend on its neighbours: positions must separate the rows, and
nothing else may run on from one to the next (learned positions that count on, recurrent states, convolutions). That is
measured before the first step, on the model itself. Where it does not hold, rows are padded.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING

from bezoar_ray.train import attention
from bezoar_ray.train.encoding import IGNORED

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

TOLERANCE = 1e-3  # relative difference of logits, in float32, between a row in a pass and the row alone
_LOOSE_TOLERANCE = (
    3e-2  # the same where memory has no room for float32, and bfloat16 rounds either
)
_CHECKED_LENGTHS = (24, 16)  # tokens of the rows that are compared
_FIELDS = (
    "log_probs",
    "entropy",
    "log_sum_sq_probs",
    "mean_logits",
    "is_top1",
)  # of TRL's FusedCausalLMOutput


@dataclass(frozen=True)
class Layout:
    """How the rows of a pass lie: `flat`, one after the other, or `padded`; `because` says why they are padded."""

    name: str
    because: str = ""

    @property
    def flat(self) -> bool:
        """Whether no padding is computed."""
        return self.name == "flat"


def choose(model: "PreTrainedModel | PeftModel") -> Layout:
    """Flat, where the model gives a row in a flat pass the logits of the row alone; else padded.

    Two short rows are computed both ways in float32, whatever the model computes in; in its own type, and held to a
    looser tolerance, where its weights do not fit into memory in float32.
    """
    import torch

    attention.register()
    causal = _causal(model)
    kind, tolerance = causal.config.model_type, TOLERANCE
    try:
        try:
            with in_float32(causal):
                difference = _difference(causal)
        except torch.OutOfMemoryError:
            tolerance, difference = _LOOSE_TOLERANCE, _difference(causal)
    except Exception as error:  # what an architecture cannot do, it says in many ways
        return Layout("padded", f"{kind} does not run flat: {first_line(error)}")
    if difference <= tolerance:
        return Layout("flat")
    return Layout(
        "padded",
        f"{kind} mixes the rows of a flat pass: logits differ by {difference:.2g}",
    )


@contextlib.contextmanager
def fused_head(model: "PreTrainedModel | PeftModel") -> Iterator[None]:
    """Within the block, the model takes `fused_lm_head=True`, as TRL's trainers make it."""
    from trl.trainer.utils import add_fused_lm_head

    causal = _causal(model)
    with _forward_restored(causal):
        add_fused_lm_head(causal)
        yield


@contextlib.contextmanager
def packed(model: "PreTrainedModel | PeftModel", layout: Layout) -> Iterator[None]:
    """Within the block, calls for log-probabilities are computed in a layout. Padded is what the model does anyway.

    Flat, it takes no other calls in the block. The model may be wrapped by PEFT. Of a bare one, the block has to begin
    after `add_fused_lm_head`.
    """
    if not layout.flat:
        yield
        return
    attention.register()
    causal = _causal(model)
    backbone = causal.base_model
    with (
        _attention(causal, attention.NAME),
        _forward_restored(backbone),
        _forward_restored(model),
    ):
        backbone.forward = MethodType(_selecting(backbone.forward), backbone)
        model.forward = MethodType(_flattening(model), model)
        yield


@contextlib.contextmanager
def _forward_restored(module: "Module") -> Iterator[None]:
    """After the block, the module's forward function is what it was."""
    before = module.__dict__.get("forward")
    try:
        yield
    finally:
        module.__dict__.pop("forward", None)
        if before is not None:
            module.forward = before


def _flattening(model: "PreTrainedModel | PeftModel") -> "Callable[..., ModelOutput]":
    """The forward function of a model whose calls for log-probabilities are computed flat."""
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
        assert (
            input_ids is not None and attention_mask is not None and labels is not None
        )
        tokens = attention_mask.bool()
        next_labels = labels.roll(-1, dims=1)
        next_labels[:, -1] = IGNORED
        scored = tokens & (next_labels != IGNORED)
        output = inner(
            **_flat(input_ids, tokens),
            scored_positions=scored[tokens].nonzero()[:, 0],
            shift_labels=next_labels[scored][None],
            fused_lm_head=True,
            **more,
        )
        places = scored[:, :-1]
        for name in _FIELDS:
            values = getattr(output, name)
            if values is not None:
                output[name] = values.new_zeros(places.shape).masked_scatter(
                    places, values
                )
        output.label_mask = places
        return output

    return forward


def _flat(input_ids: "Tensor", tokens: "Tensor") -> "dict[str, Tensor | int | None]":
    """A model's arguments for the tokens of a padded batch, (rows, longest), as one sequence: (1, tokens)."""
    import torch

    lengths = tokens.sum(dim=1)
    boundaries = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    longest = (
        1 << (tokens.shape[1] - 1).bit_length()
    )  # few values, as each may compile the layers anew
    return {
        "input_ids": input_ids[tokens][None],
        "attention_mask": None,
        "position_ids": (tokens.cumsum(dim=1) - 1)[tokens][None],
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _selecting(inner: MethodType) -> "Callable[..., ModelOutput]":
    """The forward function of a backbone that hands only some positions on to the head: never those of a prompt."""

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


def _difference(causal: "PreTrainedModel") -> float:
    """The largest difference of the logits of two rows in a flat pass from those of each alone, over the largest."""
    import torch

    vocabulary = causal.config.get_text_config().vocab_size
    draw = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(vocabulary, (1, length), generator=draw).to(causal.device)
        for length in _CHECKED_LENGTHS
    ]
    together = torch.nn.utils.rnn.pad_sequence(
        [row[0] for row in rows], batch_first=True
    )
    tokens = torch.nn.utils.rnn.pad_sequence(
        [torch.ones_like(row[0]) for row in rows], batch_first=True
    ).bool()
    was_training = causal.training
    with (
        torch.no_grad()
    ):  # inference mode would leave weights that no backward pass takes
        causal.eval()
        try:
            alone = torch.cat(
                [causal(input_ids=row, use_cache=False).logits[0] for row in rows]
            )
            with _attention(causal, attention.NAME):
                flat = causal(**_flat(together, tokens), use_cache=False).logits[0]
                causal.train()  # where dropout, for one, may be asked for
                causal(**_flat(together, tokens), use_cache=False)
        finally:
            causal.train(was_training)
    return ((flat - alone).abs().max() / alone.abs().max()).item()


@contextlib.contextmanager
def in_float32(model: "PreTrainedModel") -> Iterator[None]:
    """Within the block, bfloat16 weights are float32, and 4-bit layers compute in it. Buffers, such as the frequencies
    of positions, stay as exact as they are."""
    import torch

    stored = [weight for weight in model.parameters() if weight.dtype is torch.bfloat16]
    layers = [
        (layer, layer.compute_dtype)
        for layer in model.modules()
        if hasattr(layer, "compute_dtype")
    ]
    try:
        for weight in stored:
            weight.data = weight.data.float()
        for layer, _ in layers:
            layer.compute_dtype = torch.float32
        yield
    finally:
        for weight in stored:
            weight.data = weight.data.to(torch.bfloat16)
        for layer, before in layers:
            layer.compute_dtype = before


@contextlib.contextmanager
def _attention(causal: "PreTrainedModel", name: str) -> Iterator[None]:
    """Another attention function for the block.

    Raises:
        NotImplementedError: the architecture has an attention of its own.
    """
    before = causal.config._attn_implementation
    try:
        causal.set_attn_implementation(name)
        if causal.config._attn_implementation != name:
            raise NotImplementedError("it has an attention of its own")
        yield
    finally:
        causal.set_attn_implementation(before)


def _causal(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel":
    """The causal language model, without PEFT around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def first_line(error: Exception) -> str:
    """Of what an error says, or what it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
