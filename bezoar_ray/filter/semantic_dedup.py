"""Instructions that ask the same in other words: near one another for a sentence-embedding model."""

from typing import TYPE_CHECKING

from bezoar_ray.llm.model_identity import model_path
from bezoar_ray.recipe import Meaning

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BLOCK = 1_000  # rows that are compared with all before them at a time


def same_meaning(tasks: list[str], part: Meaning) -> list[bool]:
    """Whether an earlier instruction, which is kept itself, is as near. The model runs in a Ray task on a CPU."""
    import ray

    return ray.get(ray.remote(_found).remote(tasks, part))


def _found(tasks: list[str], part: Meaning) -> list[bool]:
    from sentence_transformers import SentenceTransformer

    safe = {"use_safetensors": True}
    model = SentenceTransformer(
        model_path(part.model), revision=part.revision, device="cpu", model_kwargs=safe
    )
    if model.tokenizer.pad_token is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
    vectors = model.encode(tasks, normalize_embeddings=True, show_progress_bar=False)
    return near_an_earlier(vectors, part.threshold).tolist()


def near_an_earlier(
    vectors: "NDArray[np.float32]", threshold: float
) -> "NDArray[np.bool_]":
    """For unit vectors, one a row: whether the cosine with an earlier row that is not itself so near reaches it."""
    import numpy as np

    near = np.zeros(len(vectors), bool)
    for start in range(0, len(vectors), _BLOCK):
        block, before = vectors[start : start + _BLOCK], vectors[:start][~near[:start]]
        near_before = (block @ before.T >= threshold).any(axis=1)
        inside = block @ block.T >= threshold
        for row in range(len(block)):
            near[start + row] = (
                near_before[row]
                or (inside[row, :row] & ~near[start : start + row]).any()
            )
    return near
