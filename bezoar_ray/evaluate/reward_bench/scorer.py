"""The reward model's ratings: vLLM reads whole conversations, in one Ray task.

The reward model is a model of its own, which the endpoint of the checkpoints does not
serve.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bezoar_ray import layout
from bezoar_ray.data.schema import ATTRIBUTES
from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.engine import complete_engine_arguments, load_format_arguments
from bezoar_ray.recipe import Recipe
from bezoar_ray.runtime.engine_parent import bind_children
from bezoar_ray.runtime.logs import redirect
from bezoar_ray.runtime.metrics import hold_gpus
from bezoar_ray.runtime.session import errors_as_raised
from bezoar_ray.stages import REWARD_MODEL
from bezoar_ray.store import Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray
    from vllm import LLM

LOG = "reward_model.log"


def rate(
    recipe: Recipe, store: Store, conversations: Sequence[list[int]]
) -> "NDArray[np.float64]":
    """Rate conversations with the reward model of a run directory.

    One task loads the model, with the resources of the recipe's `serve`, and rates all
    of them.

    Args:
        recipe: the run's recipe.
        store: the run directory.
        conversations: token ids, rendered by the chat template.

    Returns:
        The raw outputs for the last token, of shape (conversations, 5). A conversation
        that does not fit in the model's context has NaN.

    Raises:
        BezoarError: vLLM fails, or the model is no reward model of ours; the message
            names the folder and the log.
    """
    import ray

    section = recipe.serve
    options: dict[str, Any] = {
        "num_cpus": section.num_cpus,
        "num_gpus": section.num_gpus,
        # The process ends with the task, and gives the GPU's memory back.
        "max_calls": 1,
        **section.placement,
    }
    task = ray.remote(**options)(_rate)
    with errors_as_raised():
        ratings: NDArray[np.float64] = ray.get(
            task.remote(recipe, str(store.root), list(conversations))
        )
    return ratings


def weighted_scores(
    ratings: "ArrayLike", weights: Mapping[Any, float]
) -> "NDArray[np.float64]":
    """Return the score of each answer: the weighted sum of its ratings.

    Args:
        ratings: of shape (..., 5), in the order of `ATTRIBUTES`.
        weights: by attribute; 0 for those that are absent.
    """
    import numpy as np

    in_order = np.array([weights.get(attribute, 0.0) for attribute in ATTRIBUTES])
    scores: NDArray[np.float64] = np.asarray(ratings) @ in_order
    return scores


def _rate(
    recipe: Recipe, root: str, conversations: list[list[int]]
) -> "NDArray[np.float64]":
    """Rate conversations in this process, which runs nothing else."""
    import numpy as np

    store = Store(root)
    redirect(store.log(LOG))
    hold_gpus(store.name, "evaluate")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    bind_children()
    folder = str(store.path(layout.checkpoint(REWARD_MODEL).merged))
    try:
        model = _load(recipe, folder)
        fitting = []
        for index, ids in enumerate(conversations):
            if len(ids) < model.model_config.max_model_len:
                fitting.append(index)
        outputs = _outputs(model, [conversations[index] for index in fitting])
    except Exception as error:  # vLLM and torch raise many types
        raise BezoarError(
            f"the reward model in {folder} does not rate answers: "
            f"{type(error).__name__}: {error}. See its log, {store.where(LOG)}"
        ) from None
    ratings = np.full((len(conversations), len(ATTRIBUTES)), np.nan)
    if not fitting:
        return ratings
    if outputs.shape[1] != len(ATTRIBUTES):
        raise BezoarError(
            f"the reward model in {folder} has {outputs.shape[1]} outputs; expected "
            f"one for each of {', '.join(ATTRIBUTES)}. Train the stage rm again"
        )
    if not np.isfinite(outputs).all():
        raise BezoarError(
            f"the reward model in {folder} gives NaN or inf. Set serve.dtype: float32, "
            "or train the stage rm with a lower learning_rate"
        )
    ratings[fitting] = outputs
    return ratings


def _load(recipe: Recipe, folder: str) -> "LLM":
    """Load the reward model with the engine arguments of the recipe's `serve`."""
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    section = recipe.serve
    arguments: dict[str, Any] = load_format_arguments(recipe.base)
    for name, value in section.engine.items():
        # The others belong to vLLM's server, such as `tool_call_parser`.
        if name in EngineArgs.__dataclass_fields__:
            arguments[name] = value
    return LLM(
        model=folder,
        runner="pooling",
        dtype=section.dtype,
        trust_remote_code=recipe.base.trust_remote_code,
        **complete_engine_arguments(arguments, section.num_gpus),
    )


def _outputs(model: "LLM", conversations: Sequence[list[int]]) -> "NDArray[np.float64]":
    """Return the raw outputs, of shape (conversations, outputs)."""
    import numpy as np
    from vllm import PoolingParams

    results = model.encode(
        [{"prompt_token_ids": ids} for ids in conversations],
        # vLLM would apply a softmax, as to the classes of a classifier.
        PoolingParams(use_activation=False),
        pooling_task="classify",
        use_tqdm=False,
    )
    rows = [result.outputs.data.float().numpy() for result in results]
    outputs: NDArray[np.float64] = np.array(rows, dtype=np.float64)
    return outputs
