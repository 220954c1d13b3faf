"""Attention within the rows of a flat pass is that of each row alone, by whichever of its two ways."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bezoar_ray.train import attention

LENGTHS = [5, 1, 17, 9]
MODULE = SimpleNamespace(is_causal=True)


def tensors(
    heads: int,
    kv_heads: int,
    size: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> list[Any]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, count, sum(LENGTHS), size) for count in (heads, kv_heads, kv_heads)]
    return [
        torch.randn(shape, generator=draw).to(device, dtype).requires_grad_()
        for shape in shapes
    ]


def boundaries(device: str = "cpu") -> torch.Tensor:
    return torch.tensor(
        [0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32, device=device
    )


def alone(
    query: Any,
    key: Any,
    value: Any,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Any:
    """Each row by itself, with a dense mask, from the definition."""
    outputs = []
    for q, k, v in zip(
        *(tensor.split(LENGTHS, dim=2) for tensor in (query, key, value)), strict=True
    ):
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        scores = q @ k.transpose(2, 3) * scaling
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        at = torch.arange(q.shape[2])
        seen = at[None] <= at[:, None]
        seen = seen & (at[:, None] - at[None] < window) if window else seen
        outputs.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v)
    return torch.cat(outputs, dim=2).transpose(1, 2)


SHAPES = [  # heads, heads of keys and values, head size, sliding window, softcap
    (4, 4, 16, None, None),
    (4, 2, 16, None, None),
    (8, 1, 20, None, None),
    (4, 4, 100, None, None),
    (4, 2, 16, 8, None),
    (4, 4, 16, None, 30.0),
    (4, 2, 16, 3, 30.0),
]


@pytest.mark.parametrize(("heads", "kv_heads", "size", "window", "softcap"), SHAPES)
def test_rows_see_themselves_alone(
    heads: int, kv_heads: int, size: int, window: int | None, softcap: float | None
) -> None:
    given = tensors(heads, kv_heads, size)
    output, weights = attention.varlen_attention(
        MODULE,
        *given,
        None,
        scaling=0.3,
        sliding_window=window,
        softcap=softcap,
        cu_seq_lens_q=boundaries(),
        max_length_q=32,
    )
    expected = alone(*given, 0.3, window, softcap)
    assert weights is None and torch.allclose(output, expected, atol=1e-5)
    found = torch.autograd.grad(output.square().sum(), given)
    wanted = torch.autograd.grad(expected.square().sum(), given)
    assert all(
        torch.allclose(a, b, atol=1e-4) for a, b in zip(found, wanted, strict=True)
    )


def test_without_a_scale_the_head_size_gives_it() -> None:
    given = tensors(4, 4, 16)
    output, _ = attention.varlen_attention(
        MODULE, *given, None, cu_seq_lens_q=boundaries()
    )
    assert torch.allclose(output, alone(*given, 16**-0.5, None, None), atol=1e-5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"dropout": 0.1}, "dropout"),
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"position_bias": torch.zeros(4)}, "position_bias"),
        ({"is_causal": False}, "causal"),
        ({"cu_seq_lens_q": None}, "boundaries"),
    ],
)
def test_what_it_cannot_compute_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(NotImplementedError, match=said):
        attention.varlen_attention(
            MODULE, *tensors(4, 4, 16), None, **{"cu_seq_lens_q": boundaries()} | more
        )


def torch_2_13(
    query: Any,
    key: Any,
    value: Any,
    cu_seq_q: Any,
    cu_seq_k: Any,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Any:
    """torch's function by its documentation, computed by plain products."""
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert query.shape[-1] % 8 == 0 and max_q >= max(LENGTHS) and window_size[1] == 0
    window = None if window_size[0] == -1 else window_size[0] + 1
    scale = scale or query.shape[-1] ** -0.5
    return alone(
        *(t.transpose(0, 1)[None] for t in (query, key, value)), scale, window, None
    )[0]


def torch_2_11(
    query: Any,
    key: Any,
    value: Any,
    cu_seq_q: Any,
    cu_seq_k: Any,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
) -> Any:
    """An earlier one, without a scale, windows and groups of heads."""
    assert is_causal
    return torch_2_13(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size=(-1, 0)
    )


@pytest.mark.parametrize("function", [torch_2_13, torch_2_11])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "window"),
    [shape[:4] for shape in SHAPES if not shape[4]],
)
def test_torchs_own_is_asked_for_the_same(
    monkeypatch: pytest.MonkeyPatch,
    function: Any,
    heads: int,
    kv_heads: int,
    size: int,
    window: int | None,
) -> None:
    """Without a GPU: its arguments, computed as its documentation says."""
    if window and function is torch_2_11:
        pytest.skip("it has no sliding window")
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", function)
    attention._varlen_parameters.cache_clear()
    given = tensors(heads, kv_heads, size)
    output = attention._flash(*given, 0.3, window, boundaries(), 32)
    attention._varlen_parameters.cache_clear()
    assert torch.allclose(output, alone(*given, 0.3, window, None), atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "window"),
    [shape[:4] for shape in SHAPES if not shape[4]],
)
def test_on_a_gpu_torchs_own_gives_the_same(
    heads: int, kv_heads: int, size: int, window: int | None
) -> None:
    given = tensors(heads, kv_heads, size, torch.bfloat16, "cuda")
    output, _ = attention.varlen_attention(
        MODULE,
        *given,
        None,
        scaling=0.3,
        sliding_window=window,
        cu_seq_lens_q=boundaries("cuda"),
        max_length_q=32,
    )
    plain = [tensor.detach().float().cpu().requires_grad_() for tensor in given]
    expected = alone(*plain, 0.3, window, None)
    assert torch.allclose(output.float().cpu(), expected, atol=0.03)
    found = torch.autograd.grad(output.float().square().sum(), given)
    wanted = torch.autograd.grad(expected.square().sum(), plain)
    assert all(
        torch.allclose(a.float().cpu(), b, atol=0.1)
        for a, b in zip(found, wanted, strict=True)
    )
