"""Candidates: several answers to one instruction, of which the filter keeps the best.

This is rejection sampling, as in arXiv 2009.01325. A scheme does not know about it: the
call that wrote its answer is repeated here, as further samples of the same call.
"""

from dataclasses import dataclass, replace
from typing import Any

from bezoar_ray.data.schema import Sample, row_id
from bezoar_ray.generate.task import fail_call, fill_answer, prompt_hash
from bezoar_ray.llm.aio import to_the_end
from bezoar_ray.llm.chat import CallFailed, Chat, Messages, Reply


@dataclass(frozen=True)
class _Call:
    """A call that a scheme made."""

    messages: Messages
    options: dict[str, Any]


class RecordingChat:
    """A `Chat` that records the calls of one task, so that they can be repeated."""

    def __init__(self, chat: Chat):
        self._chat = chat
        self._calls: dict[str, _Call] = {}

    async def __call__(self, messages: Messages, **options: Any) -> Reply:
        # By the hash that a finished row carries: no scheme has to
        # say which call wrote it.
        self._calls[prompt_hash(messages)] = _Call(messages, options)
        return await self._chat(messages, **options)

    async def extra_candidates(self, sample: Sample, candidates: int) -> list[Sample]:
        """Make the candidates of a row beside its first answer.

        Args:
            sample: The row as its scheme made it. Only a generated row gets candidates.
            candidates: Answers in all, the first one included.

        Returns:
            Up to `candidates - 1` rows, each with its own id.
        """
        # A custom scheme may fill in a response by itself, without any call.
        if sample.status != "generated" or sample.prompt_hash not in self._calls:
            return []
        call = self._calls[sample.prompt_hash]
        numbers = range(1, candidates)
        return await to_the_end(
            self._make_candidate(sample, call, number) for number in numbers
        )

    async def _make_candidate(self, sample: Sample, call: _Call, number: int) -> Sample:
        candidate = replace(sample, id=row_id(sample.id, "candidate", number))
        # The number is part of the ledger's key; without it, the first
        # answer is found again.
        options = call.options | {"sample": number}
        try:
            reply = await self._chat(call.messages, **options)
        except CallFailed as error:
            return fail_call(candidate, error)
        return fill_answer(candidate, call.messages, reply)
