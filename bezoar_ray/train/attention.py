"""Attention for flat passes: whole rows one after the other in one sequence, each of which sees itself alone.

It is registered with transformers' attention interface. The rows' boundaries come as `cu_seq_lens_q`, the keyword
argument that transformers hands through to FlashAttention. On a GPU torch's own FlashAttention
(`torch.nn.attention.varlen`) computes it; no mask is ever built. Elsewhere, and for what FlashAttention cannot compute,
the rows are computed one by one with plain matrix products.
"""

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NAME = "bezoar_varlen"
_HEAD_MULTIPLE = 8  # of the head sizes that FlashAttention takes; OpenLLaMA 3B has 100
_LARGEST_HEAD = 256
_AMPERE = (8, 0)  # the oldest cards that have it


def register() -> None:
    """Make the implementation known to transformers as `NAME`."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, varlen_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _no_mask)
    _varlen_parameters()  # once, and not while layers are compiled


def _no_mask(*_: object, **__: object) -> None:
    """The rows' boundaries take the mask's place."""


def varlen_attention(
    module: "torch.nn.Module",
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    attention_mask: "Tensor | None",
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seq_lens_q: "Tensor | None" = None,
    max_length_q: int | None = None,
    **more: object,
) -> "tuple[Tensor, None]":
    """Causal attention within each row, with the signature of transformers' attention functions.

    Args:
        module: the layer that asks.
        query: shape (1, heads, tokens, head size).
        key: shape (1, heads of keys and values, tokens, head size); so is `value`.
        value: see `key`.
        attention_mask: not used.
        scaling: of the products; the head size to the power of -0.5 where empty.
        dropout: not supported, and 0 in all models that are trained here.
        sliding_window: tokens that a token sees, itself included; all before it where empty.
        softcap: bound of the products, as in Gemma 2.
        cu_seq_lens_q: int32, shape (rows + 1): where each row begins, and the end of the last one.
        max_length_q: tokens of the longest row, at least.
        more: what else transformers passes on.

    Returns:
        The output, shape (1, tokens, heads, head size), and no weights.

    Raises:
        NotImplementedError: the model needs what this attention does not have.
    """
    unsupported = [
        name for name in ("s_aux", "position_bias") if more.get(name) is not None
    ]
    if (
        dropout
        or unsupported
        or more.get("is_causal") is False
        or not getattr(module, "is_causal", True)
    ):
        raise NotImplementedError(
            f"{NAME} has no {', '.join(unsupported) or 'dropout, and is causal'}"
        )
    if cu_seq_lens_q is None:
        raise NotImplementedError(f"{NAME} needs the rows' boundaries")
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    query, key, value = _as_autocast_has_them(query, key, value)
    if max_length_q is not None and _flash_can(query, value, softcap):
        output = _flash(
            query, key, value, scaling, sliding_window, cu_seq_lens_q, max_length_q
        )
    else:
        output = _row_by_row(
            query, key, value, scaling, sliding_window, softcap, cu_seq_lens_q
        )
    return output, None


def _as_autocast_has_them(*tensors: "Tensor") -> "tuple[Tensor, ...]":
    """Norms and positions may leave float32 queries in an architecture whose products are bfloat16."""
    import torch

    device = tensors[0].device.type
    if device == "cpu" or not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


def _flash_can(query: "Tensor", value: "Tensor", softcap: float | None) -> bool:
    """Whether torch's FlashAttention computes such heads on this device."""
    import torch

    if not query.is_cuda or query.dtype.itemsize != 2 or softcap is not None:
        return False
    size = query.shape[-1]
    return (
        size == value.shape[-1] <= _LARGEST_HEAD
        and torch.cuda.get_device_capability(query.device) >= _AMPERE
    )


def _flash(
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    scaling: float,
    window: int | None,
    boundaries: "Tensor",
    longest: int,
) -> "Tensor":
    import torch
    from torch.nn.attention.varlen import varlen_attn
    from torch.nn.functional import pad

    size = query.shape[-1]
    missing = -size % _HEAD_MULTIPLE
    query, key, value = (tensor.transpose(1, 2)[0] for tensor in (query, key, value))
    if missing:
        query, key, value = (
            pad(tensor, (0, missing)) for tensor in (query, key, value)
        )
    known = _varlen_parameters()
    options: dict[str, Any] = {}
    if "window_size" in known:
        options["window_size"] = (-1 if window is None else window - 1, 0)
    elif window is None:
        options["is_causal"] = True
    else:
        raise NotImplementedError("this torch's varlen_attn has no sliding window")
    if "scale" in known:
        options["scale"] = scaling
    else:  # its own scale is that of the padded head size
        query = query * (scaling * (size + missing) ** 0.5)
    if query.shape[1] > key.shape[1] and "enable_gqa" in known:
        options["enable_gqa"] = True
    else:
        key, value = _repeated(key, query.shape[1]), _repeated(value, query.shape[1])
    output = varlen_attn(
        query, key, value, boundaries, boundaries, longest, longest, **options
    )
    assert isinstance(output, torch.Tensor)  # a pair only where more is asked for
    return output[None, ..., :size]


@cache
def _varlen_parameters() -> frozenset[str]:
    """The parameters of this torch's `varlen_attn`: 2.11 has neither `scale` nor `enable_gqa`."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _repeated(tensor: "Tensor", heads: int) -> "Tensor":
    """Keys or values with so many heads, in dimension 1."""
    groups = heads // tensor.shape[1]
    return tensor.repeat_interleave(groups, dim=1) if groups > 1 else tensor


def _row_by_row(
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    scaling: float,
    window: int | None,
    softcap: float | None,
    boundaries: "Tensor",
) -> "Tensor":
    """The same by plain products, in the queries' type with a float32 softmax, as transformers' eager attention."""
    import torch

    key, value = _repeated(key, query.shape[1]), _repeated(value, query.shape[1])
    lengths = boundaries.diff().tolist()
    outputs = []
    for q, k, v in zip(
        *(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True
    ):
        scores = (q @ k.transpose(2, 3)) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(
            _unseen(q.shape[2], window, scores.device), torch.finfo(scores.dtype).min
        )
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
        outputs.append(weights @ v)
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _unseen(length: int, window: int | None, device: "torch.device") -> "Tensor":
    """True where a token (row) does not see another (column)."""
    import torch

    places = torch.arange(length, device=device)
    distance = places[:, None] - places[None, :]
    unseen = distance < 0
    return unseen if window is None else unseen | (distance >= window)
