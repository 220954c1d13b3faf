"""Instructions that ask the same in other words, by a sentence-embedding model."""

from typing import TYPE_CHECKING

from bezoar_ray.llm.model_identity import model_path
from bezoar_ray.recipe import Meaning

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROWS_AT_A_TIME = 1_000
"""Rows that are compared with all rows before them at a time. It bounds the memory."""


def same_meaning(instructions: list[str], section: Meaning) -> list[bool]:
    """Return whether each instruction repeats an earlier one that is kept.

    The model runs in a Ray task on a CPU.
    """
    import ray

    return ray.get(ray.remote(_find_repeats).remote(instructions, section))


def _find_repeats(instructions: list[str], section: Meaning) -> list[bool]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        model_path(section.model),
        revision=section.revision,
        device="cpu",
        # Pickled weights can run code.
        model_kwargs={"use_safetensors": True},
    )
    # Embedding models made of decoders may have no padding token.
    if model.tokenizer.pad_token is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
    vectors = model.encode(
        instructions, normalize_embeddings=True, show_progress_bar=False
    )
    return near_an_earlier(vectors, section.threshold).tolist()


def near_an_earlier(
    vectors: "NDArray[np.float32]", threshold: float
) -> "NDArray[np.bool_]":
    """Return whether each row is near an earlier row that is kept.

    Args:
        vectors: Unit vectors of shape (rows, features).
        threshold: The cosine from which two rows are near.

    Returns:
        Booleans of shape (rows,). A row that is near is not kept, so later rows are not
        compared with it.
    """
    import numpy as np

    near = np.zeros(len(vectors), bool)
    for start in range(0, len(vectors), _ROWS_AT_A_TIME):
        chunk = vectors[start : start + _ROWS_AT_A_TIME]
        kept_before = vectors[:start][~near[:start]]
        near_before = (chunk @ kept_before.T >= threshold).any(axis=1)
        near_within = chunk @ chunk.T >= threshold
        for row in range(len(chunk)):
            kept_within = ~near[start : start + row]
            near_kept = (near_within[row, :row] & kept_within).any()
            near[start + row] = near_before[row] or near_kept
    return near
