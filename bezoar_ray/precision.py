"""In which type this machine computes what a recipe keeps in bfloat16."""


def compute_dtype(dtype: str, gpu: bool = False) -> str:
    """`dtype`, or float32 in place of bfloat16 where there is no GPU to compute on and this CPU has no AVX-512.

    There torch multiplies bfloat16 matrices ten to twenty times as slowly as float32 ones (AMD Zen 3, torch 2.13).
    What is stored stays bfloat16.
    """
    import torch

    fast = gpu or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype if fast or dtype != "bfloat16" else "float32"
