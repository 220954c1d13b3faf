"""In which type this machine computes what a recipe keeps in bfloat16."""


def compute_dtype(dtype: str) -> str:
    """`dtype`, or float32 in place of bfloat16 on a machine without a GPU whose CPU has no AVX-512.

    There torch multiplies bfloat16 matrices ten to twenty times as slowly as float32 ones (AMD Zen 3, torch 2.13).
    What is stored stays bfloat16.
    """
    import torch

    fast = torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype if fast or dtype != "bfloat16" else "float32"
