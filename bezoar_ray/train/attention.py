"""Attention for flat passes, in which rows follow one another in one sequence.

Each row attends to itself alone. The function is registered with transformers'
attention interface. Row boundaries arrive as `cu_seq_lens_q`, the keyword argument that
transformers passes to FlashAttention. On a GPU, torch's own FlashAttention
(`torch.nn.attention.varlen`) computes the rows, and no mask is built. On other devices,
and for heads that FlashAttention does not support, the rows are computed one by one
with plain matrix products.
"""

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NAME = "bezoar_varlen"
_HEAD_MULTIPLE = 8
"""FlashAttention takes head sizes that are a multiple of it; OpenLLaMA 3B has 100."""
_LARGEST_HEAD = 256
_AMPERE = (8, 0)  # compute capability of the oldest cards with FlashAttention


def register() -> None:
    """Register the implementation with transformers as `NAME`."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, varlen_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _no_mask)
    _varlen_parameters()  # fill its cache now, not while layers are compiled


def _no_mask(*_: object, **__: object) -> None:
    """Build no mask: the row boundaries take its place."""


def flatten(
    input_ids: "Tensor", is_token: "Tensor"
) -> "dict[str, Tensor | int | None]":
    """Return a model's arguments for the tokens of a padded batch as one sequence.

    Both tensors have the shape (rows, longest); `input_ids` becomes (1, tokens).
    """
    import torch

    lengths = is_token.sum(dim=1)
    boundaries = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    # Each new value may compile the layers anew, so round up to a power of two.
    max_length = 1 << (is_token.shape[1] - 1).bit_length()
    positions = is_token.cumsum(dim=1) - 1
    return {
        "input_ids": input_ids[is_token][None],
        "attention_mask": None,
        "position_ids": positions[is_token][None],
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": max_length,
        "max_length_k": max_length,
    }


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
    """Compute causal attention within each row.

    The signature is that of transformers' attention functions.

    Args:
        module: the attention layer.
        query: shape (1, heads, tokens, head size).
        key: shape (1, key and value heads, tokens, head size).
        value: same shape as `key`.
        attention_mask: not used.
        scaling: factor of the products; by default the head size to the power of -0.5.
        dropout: not supported, and 0 in all models that are trained here.
        sliding_window: tokens that a token attends to, itself included; by default all
            tokens before it.
        softcap: bound of the products, as in Gemma 2.
        cu_seq_lens_q: int32, shape (rows + 1): the start of each row and the end of the
            last one.
        max_length_q: tokens of the longest row, or more.
        more: further arguments of transformers.

    Returns:
        The output, shape (1, tokens, heads, head size), and no weights.

    Raises:
        NotImplementedError: the model needs a feature that this attention lacks.
    """
    _check_supported(module, dropout, more)
    if cu_seq_lens_q is None:
        raise NotImplementedError(f"{NAME} needs the row boundaries")
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    query, key, value = _to_autocast_dtype(query, key, value)
    if max_length_q is not None and _flash_supports(query, value, softcap):
        output = _flash(
            query, key, value, scaling, sliding_window, cu_seq_lens_q, max_length_q
        )
    else:
        output = _row_by_row(
            query, key, value, scaling, sliding_window, softcap, cu_seq_lens_q
        )
    return output, None


def _check_supported(
    module: "torch.nn.Module", dropout: float, options: dict[str, object]
) -> None:
    unsupported = [
        name for name in ("s_aux", "position_bias") if options.get(name) is not None
    ]
    if unsupported:
        raise NotImplementedError(f"{NAME} does not support {', '.join(unsupported)}")
    if dropout:
        raise NotImplementedError(f"{NAME} does not support dropout")
    is_causal = getattr(module, "is_causal", True)
    if not is_causal or options.get("is_causal") is False:
        raise NotImplementedError(f"{NAME} supports causal attention only")


def _to_autocast_dtype(*tensors: "Tensor") -> "tuple[Tensor, ...]":
    """Convert the tensors to the type that autocast computes products in.

    In some architectures norms and positions leave float32 queries beside bfloat16
    values.
    """
    import torch

    device = tensors[0].device.type
    if device == "cpu" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor.to(dtype) for tensor in tensors)


def _flash_supports(query: "Tensor", value: "Tensor", softcap: float | None) -> bool:
    """Whether torch's FlashAttention computes such heads on this device."""
    import torch

    if not query.is_cuda or query.dtype.itemsize != 2 or softcap is not None:
        return False
    head_size = query.shape[-1]
    if head_size != value.shape[-1] or head_size > _LARGEST_HEAD:
        return False
    return torch.cuda.get_device_capability(query.device) >= _AMPERE


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

    head_size = query.shape[-1]
    padding = -head_size % _HEAD_MULTIPLE
    # varlen_attn takes (tokens, heads, head size).
    query = query.transpose(1, 2)[0]
    key = key.transpose(1, 2)[0]
    value = value.transpose(1, 2)[0]
    if padding:
        query = pad(query, (0, padding))
        key = pad(key, (0, padding))
        value = pad(value, (0, padding))
    known = _varlen_parameters()
    options: dict[str, Any] = {}
    if "window_size" in known:
        tokens_before = -1 if window is None else window - 1  # -1: no limit
        options["window_size"] = (tokens_before, 0)
    elif window is None:
        options["is_causal"] = True
    else:
        raise NotImplementedError("this torch's varlen_attn has no sliding window")
    if "scale" in known:
        options["scale"] = scaling
    else:  # its default is the scale of the padded head size
        query = query * (scaling * (head_size + padding) ** 0.5)
    heads = query.shape[1]
    if heads > key.shape[1] and "enable_gqa" in known:
        options["enable_gqa"] = True
    else:
        key = _repeat_heads(key, heads)
        value = _repeat_heads(value, heads)
    output = varlen_attn(
        query, key, value, boundaries, boundaries, longest, longest, **options
    )
    assert isinstance(output, torch.Tensor)  # it returns a pair only on request
    return output[None, ..., :head_size]


@cache
def _varlen_parameters() -> frozenset[str]:
    """Return the parameters of this torch's `varlen_attn`.

    torch 2.11 has neither `scale` nor `enable_gqa`.
    """
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _repeat_heads(tensor: "Tensor", heads: int) -> "Tensor":
    """Repeat key or value heads (dimension 1) until there are `heads` of them."""
    group = heads // tensor.shape[1]
    if group <= 1:
        return tensor
    return tensor.repeat_interleave(group, dim=1)


def _row_by_row(
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    scaling: float,
    window: int | None,
    softcap: float | None,
    boundaries: "Tensor",
) -> "Tensor":
    """Compute the rows one by one with plain products.

    As in transformers' eager attention, products have the type of the queries and the
    softmax is in float32.
    """
    import torch

    heads = query.shape[1]
    key = _repeat_heads(key, heads)
    value = _repeat_heads(value, heads)
    lengths = boundaries.diff().tolist()
    row_queries = query.split(lengths, dim=2)
    row_keys = key.split(lengths, dim=2)
    row_values = value.split(lengths, dim=2)
    outputs = []
    for q, k, v in zip(row_queries, row_keys, row_values, strict=True):
        scores = (q @ k.transpose(2, 3)) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        hidden = _hidden_positions(q.shape[2], window, scores.device)
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
        outputs.append(weights @ v)
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _hidden_positions(
    length: int, window: int | None, device: "torch.device"
) -> "Tensor":
    """Return True where a token (row) does not attend to another one (column)."""
    import torch

    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    hidden = distance < 0
    if window is not None:
        hidden = hidden | (distance >= window)
    return hidden
