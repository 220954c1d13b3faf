"""Several answers to one instruction, of which the filter keeps the best: rejection sampling (as in arXiv 2009.01325).

A scheme knows nothing of it: what its answer was asked for with is asked again, as further samples of the same call.
"""

from dataclasses import replace
from typing import Any

from bezoar_ray.data.schema import Sample, row_id
from bezoar_ray.generate.task import answered, call_failed, prompt_hash
from bezoar_ray.llm.aio import to_the_end
from bezoar_ray.llm.chat import CallFailed, Chat, Messages, Reply


class Remembering:
    """A `Chat` that remembers the calls of its chain."""

    def __init__(self, chat: Chat):
        self._chat = chat
        self._calls: dict[str, tuple[Messages, dict[str, Any]]] = {}

    async def __call__(self, messages: Messages, **how: Any) -> Reply:
        self._calls[prompt_hash(messages)] = messages, how
        return await self._chat(messages, **how)

    async def others(self, sample: Sample, candidates: int) -> list[Sample]:
        """The further candidates of a generated sample: rows with ids of their own."""
        if sample.status != "generated" or sample.prompt_hash not in self._calls:
            return []
        messages, how = self._calls[sample.prompt_hash]
        return await to_the_end(
            self._candidate(sample, n, messages, how) for n in range(1, candidates)
        )

    async def _candidate(
        self, sample: Sample, number: int, messages: Messages, how: dict[str, Any]
    ) -> Sample:
        other = replace(sample, id=row_id(sample.id, "candidate", number))
        try:
            return replace(
                other,
                **answered(
                    messages, await self._chat(messages, **how | {"sample": number})
                ),
            )
        except CallFailed as error:
            return other.ended(*call_failed(error))
