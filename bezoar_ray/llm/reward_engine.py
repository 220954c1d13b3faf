"""A reward model in vLLM, in this process, which rates conversations as a judge does."""

import asyncio
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bezoar_ray.data.schema import ATTRIBUTES, HIGHEST_RATING
from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.chat import Messages, ModelDied, PromptTooLong, Reply, Sampling
from bezoar_ray.llm.chat_tokens import answer_ids
from bezoar_ray.llm.engine import start_engine
from bezoar_ray.llm.model_identity import identity
from bezoar_ray.recipe import RowJudge
from bezoar_ray.recipe.model_sections import Attribute

# A judge's lowest and highest rating.
_LOWEST = 1.0
_HIGHEST = 5.0
_REMEDY = (
    "Give the folder `checkpoints/rm` of a run directory in which the stage rm is done"
)


class RewardEngine:
    """A reward model that vLLM runs in this process.

    Create it inside a running event loop. It ends with its process.

    Raises:
        BezoarError: The model is not a reward model of the stage rm.
    """

    def __init__(self, section: RowJudge):
        self.identity = identity(section)
        self._name = section.model
        self._weights = score_weights(section.model)
        self._engine = start_engine(section, runner="pooling")
        self._tokenizer = self._engine.get_tokenizer()
        # As in `VllmEngine`: tokenizing stays off the event loop.
        self._tokenizer_thread = ThreadPoolExecutor(1, "tokenizer")
        self._context_length = self._engine.model_config.max_model_len

    async def complete(self, messages: Messages, sampling: Sampling) -> Reply:
        """Rate the last message of a conversation.

        Args:
            messages: A prompt and its answer.
            sampling: Not used: nothing is sampled.

        Returns:
            A reply in the form of a judge's verdict: a JSON object with `rating`, and
            with the attributes' outputs as `reason`.

        Raises:
            PromptTooLong: The conversation fills the context. Only this call fails.
            BezoarError: The outputs are NaN or inf.
            ModelDied: The engine's core process is dead.
        """
        loop = asyncio.get_running_loop()
        ids = await loop.run_in_executor(self._tokenizer_thread, self._encode, messages)
        if len(ids) >= self._context_length:
            raise PromptTooLong(
                f"row of {len(ids)} tokens in a context of {self._context_length}"
            )
        outputs = await self._outputs(ids)
        if not all(map(math.isfinite, outputs)):
            raise BezoarError(
                f"the reward model in {self._name} gives NaN or inf. Set its dtype to "
                "float32, or train it with a lower learning_rate"
            )
        named = zip(ATTRIBUTES, outputs, strict=True)
        verdict = {
            "reason": ", ".join(f"{name} {output:.2f}" for name, output in named),
            "rating": round(rating_of(outputs, self._weights), 4),
        }
        return Reply(json.dumps(verdict), "stop", len(ids), 0)

    async def close(self) -> None:
        """Stop the engine's core process."""
        self._tokenizer_thread.shutdown(wait=False)
        self._engine.shutdown()

    def _encode(self, messages: Messages) -> list[int]:
        """Return the tokens up to the answer's end, which the model reads."""
        *prompt, answer = messages
        return answer_ids(self._tokenizer, prompt, answer["content"])

    async def _outputs(self, ids: list[int]) -> list[float]:
        """Return the raw outputs, one for each attribute."""
        from vllm import PoolingParams
        from vllm.v1.engine.exceptions import EngineDeadError

        # vLLM would apply a softmax, as to the classes of a classifier.
        params = PoolingParams(use_activation=False, task="classify")
        prompt = {"prompt_token_ids": ids}
        try:
            async for result in self._engine.encode(prompt, params, uuid.uuid4().hex):
                outputs = result.outputs.data
        except EngineDeadError as error:
            raise ModelDied(str(error)) from error
        values: list[float] = outputs.float().tolist()
        return values


def score_weights(folder: str) -> dict[Attribute, float]:
    """Read the weights of the score from the configuration of a reward model.

    Raises:
        BezoarError: The folder does not hold a reward model of the stage rm.
    """
    path = Path(folder, "config.json")
    try:
        weights = json.loads(path.read_text()).get("score_weights")
    except (OSError, ValueError) as error:
        raise BezoarError(f"{path}: {error}. {_REMEDY}") from error
    if not weights:
        raise BezoarError(f"{path}: it has no `score_weights`. {_REMEDY}")
    return weights


def rating_of(outputs: Sequence[float], weights: Mapping[Attribute, float]) -> float:
    """Return a judge's rating, from 1 to 5, for the outputs of a reward model.

    It is linear in the score. A score as low as attributes from 0 to 4 can make it has
    the rating 1, and one as high has 5. Where helpfulness alone has a weight, the
    rating is helpfulness plus 1.

    Args:
        outputs: One for each of `ATTRIBUTES`.
        weights: Of the score, by attribute; at least one is not 0.
    """
    score = 0.0
    for name, output in zip(ATTRIBUTES, outputs, strict=True):
        score += weights.get(name, 0.0) * output
    lowest = HIGHEST_RATING * sum(min(0.0, weight) for weight in weights.values())
    highest = HIGHEST_RATING * sum(max(0.0, weight) for weight in weights.values())
    share = (score - lowest) / (highest - lowest)
    rating = _LOWEST + share * (_HIGHEST - _LOWEST)
    # Outputs are not bounded.
    return min(_HIGHEST, max(_LOWEST, rating))
