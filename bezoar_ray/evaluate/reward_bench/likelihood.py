"""The log-probability of answers under the checkpoints, from their endpoint.

The endpoint computes it as for lm-eval's tasks: it echoes a prompt of tokens, each with
its log-probability.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bezoar_ray.evaluate.reward_bench.tokenized_items import TokenizedAnswer
from bezoar_ray.evaluate.served_endpoint import Endpoint
from bezoar_ray.llm.aio import to_the_end
from bezoar_ray.llm.endpoint import open_openai_client
from bezoar_ray.recipe import ModelSection

if TYPE_CHECKING:
    from openai import AsyncOpenAI

# With one answer per request, HTTP costs more time than a small model.
_ANSWERS_PER_REQUEST = 8
_CONCURRENT_REQUESTS = 16
_TIMEOUT = 600.0  # seconds; a request waits for its turn in the engine
_RETRIES = 3  # while a replica of the endpoint is replaced


async def answer_log_probabilities(
    endpoint: Endpoint, checkpoint: str, answers: Sequence[TokenizedAnswer]
) -> list[float | None]:
    """Return the summed log-probability of each answer's tokens, in nats.

    Args:
        endpoint: where the checkpoints are served.
        checkpoint: name of the checkpoint.
        answers: any number of answers.

    Returns:
        One sum for each answer; None for a conversation that does not fit in the
        context.
    """
    section = ModelSection(
        model=checkpoint, base_url=endpoint.base_url, timeout=_TIMEOUT
    )
    slots = asyncio.Semaphore(_CONCURRENT_REQUESTS)
    fitting = []
    for index, answer in enumerate(answers):
        if len(answer.ids) < endpoint.context:
            fitting.append(index)
    groups = [
        fitting[begin : begin + _ANSWERS_PER_REQUEST]
        for begin in range(0, len(fitting), _ANSWERS_PER_REQUEST)
    ]
    sums: list[float | None] = [None] * len(answers)

    async with open_openai_client(section).with_options(max_retries=_RETRIES) as client:

        async def fill_group(indices: list[int]) -> None:
            group = [answers[index] for index in indices]
            async with slots:
                group_sums = await _request(client, checkpoint, group)
            for index, value in zip(indices, group_sums, strict=True):
                sums[index] = value

        await to_the_end(fill_group(indices) for indices in groups)
    return sums


async def _request(
    client: "AsyncOpenAI", checkpoint: str, answers: list[TokenizedAnswer]
) -> list[float]:
    """Return the sums of a few answers, from one request."""
    completion = await client.completions.create(
        model=checkpoint,
        prompt=[answer.ids for answer in answers],
        echo=True,
        logprobs=1,
        # The endpoint writes at least one token. It comes after those of the answer.
        max_tokens=1,
        temperature=0.0,
    )
    by_index = {choice.index: choice for choice in completion.choices}
    sums = []
    for index, answer in enumerate(answers):
        logprobs = by_index[index].logprobs
        assert logprobs and logprobs.token_logprobs
        sums.append(sum(logprobs.token_logprobs[answer.answer]))
    return sums
