"""The floating-point type in which this machine computes."""


def compute_dtype(dtype: str, gpu: bool = False) -> str:
    """Return the type to compute in: `dtype`, or float32 in place of a slow bfloat16.

    A CPU without AVX-512 multiplies bfloat16 matrices 10 to 20 times as slowly as
    float32 ones (AMD Zen 3, torch 2.13). Weights are stored as bfloat16 all the same.

    Args:
        dtype: the recipe's type, such as `bfloat16`.
        gpu: a GPU does the computing.
    """
    import torch

    fast = gpu or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype if fast or dtype != "bfloat16" else "float32"
