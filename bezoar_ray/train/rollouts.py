"""Rollouts: the prompts of an iteration, and the answers that the policy samples.

Which prompts an iteration has, how much of the chosen answer is forced, and the random
numbers of the sampling are functions of the seed, the iteration and the row. A resumed
training therefore samples what an undisturbed one would, on any number of workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bezoar_ray.data.schema import row_id
from bezoar_ray.train.resets import prefix_length

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import LogitsProcessor, PreTrainedModel

_PURPOSE = "rollout"
_BATCH_TOKENS = 32_768
"""Tokens that are sampled side by side; their keys and values are kept in memory."""


@dataclass(frozen=True)
class Prompt:
    """A prompt of an iteration, with the tokens that its answers begin with."""

    id: str
    """Of the row."""
    draw: str
    """Names it within the iteration, in which a row may come twice."""
    prompt_ids: list[int]
    forced_ids: list[int]
    """A prefix of the chosen answer; empty without a reset."""

    @property
    def context(self) -> list[int]:
        """The tokens that the policy continues."""
        return [*self.prompt_ids, *self.forced_ids]


@dataclass(frozen=True)
class Episode:
    """A prompt and its answer, which begins with the forced tokens."""

    id: str
    prompt_ids: list[int]
    forced_ids: list[int]
    own_ids: list[int]
    """The tokens that the policy wrote; at least one."""
    ended: bool
    """Whether the policy ended the answer itself."""
    engine_log_probs: tuple[float, ...] = ()
    """Of its own tokens, by the engine that sampled them. Empty where the model that
    learns has sampled them itself."""

    @property
    def ids(self) -> list[int]:
        """All tokens."""
        return [*self.prompt_ids, *self.forced_ids, *self.own_ids]


@dataclass(frozen=True)
class PromptSchedule:
    """The prompts of each iteration.

    They are the rows in an order that is new in each epoch. An iteration has equally
    many in any case, so it may begin in one epoch and end in the next.
    """

    rows: int
    prompts: int
    """Prompts of an iteration, over all workers."""
    epochs: float
    seed: int

    @property
    def iterations(self) -> int:
        """The iterations of all epochs; at least one."""
        return max(1, int(self.rows * self.epochs / self.prompts))

    def positions(self, iteration: int) -> list[tuple[int, int]]:
        """Return the epoch and the row of each prompt of an iteration."""
        begin = iteration * self.prompts
        orders: dict[int, list[int]] = {}
        positions = []
        for number in range(begin, begin + self.prompts):
            epoch, place = divmod(number, self.rows)
            if epoch not in orders:
                orders[epoch] = self._order(epoch)
            positions.append((epoch, orders[epoch][place]))
        return positions

    def _order(self, epoch: int) -> list[int]:
        import torch

        generator = torch.Generator().manual_seed(self.seed + epoch)
        return torch.randperm(self.rows, generator=generator).tolist()


def prompts_of(
    iteration: int, schedule: PromptSchedule, rows: "Dataset", reset: float
) -> list[Prompt]:
    """Return the prompts of an iteration, over all workers.

    Args:
        iteration: of the training.
        schedule: which rows it has.
        rows: with the columns `id`, `prompt_ids` and `chosen_ids`.
        reset: share of prompts whose answers begin with forced tokens.
    """
    prompts = []
    for epoch, index in schedule.positions(iteration):
        row = rows[index]
        draw = f"{row['id']}.{epoch}"
        chosen = row["chosen_ids"]
        length = prefix_length(schedule.seed, iteration, draw, len(chosen), reset)
        prompt = Prompt(row["id"], draw, row["prompt_ids"], chosen[:length])
        prompts.append(prompt)
    return prompts


@dataclass(frozen=True)
class Sampler:
    """Samples answers with the model in this process."""

    seed: int
    temperature: float
    max_tokens: int
    """Most tokens that the policy writes."""
    max_length: int
    """Most tokens of an episode."""
    end_ids: tuple[int, ...]
    """Tokens that end an answer."""
    pad_id: int

    def episodes(
        self,
        model: "PreTrainedModel",
        prompts: list[Prompt],
        iteration: int,
        group: int,
    ) -> list[Episode]:
        """Sample `group` answers to each prompt; those of a prompt are neighbors.

        Args:
            model: without PEFT's wrapper; the policy's adapter is active.
            prompts: of this worker.
            iteration: enters the random numbers, with the prompt and the member.
            group: answers to each prompt.
        """
        members = []
        numbers = []
        for prompt in prompts:
            for member in range(group):
                members.append(prompt)
                key = self.random_key(iteration, prompt.draw, member)
                numbers.append(self._random_numbers(key))
        longest = max(len(prompt.context) for prompt in members) + self.max_tokens
        rows = max(1, _BATCH_TOKENS // longest)
        episodes: list[Episode] = []
        for begin in range(0, len(members), rows):
            batch = members[begin : begin + rows]
            answers = self._sample(model, batch, numbers[begin : begin + rows])
            episodes += self.finish(batch, answers)
        return episodes

    def random_key(self, iteration: int, draw: str, member: int) -> int:
        """Return the number from which the random numbers of an answer follow."""
        return int(row_id(self.seed, _PURPOSE, iteration, draw, member), 16)

    def _random_numbers(self, key: int) -> "Tensor":
        """Return the numbers in [0, 1) that choose an answer's tokens.

        They are drawn on the CPU, so that they are the same on all devices.
        """
        import torch

        generator = torch.Generator().manual_seed(key)
        return torch.rand(self.max_tokens, generator=generator, dtype=torch.float64)

    def _sample(
        self, model: "PreTrainedModel", prompts: list[Prompt], numbers: "list[Tensor]"
    ) -> list[list[int]]:
        """Return the sampled tokens, with what follows their end."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        longest = max(len(prompt.context) for prompt in prompts)
        ids = torch.full((len(prompts), longest), self.pad_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            begin = longest - len(prompt.context)
            ids[row, begin:] = torch.tensor(prompt.context)
            mask[row, begin:] = 1
        chooser = _token_chooser(
            torch.stack(numbers).to(model.device), self.temperature
        )
        config = GenerationConfig(
            max_new_tokens=max(self.budget(prompt) for prompt in prompts),
            do_sample=False,  # the chooser has drawn the token
            eos_token_id=list(self.end_ids),
            pad_token_id=self.pad_id,
        )
        # Its other settings, such as a penalty for repetitions, would apply as well.
        before = model.generation_config
        model.generation_config = GenerationConfig()
        try:
            # Inference mode would leave 4-bit weights that no backward pass accepts.
            with torch.no_grad():
                output = model.generate(
                    input_ids=ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    generation_config=config,
                    logits_processor=LogitsProcessorList([chooser]),
                )
        finally:
            model.generation_config = before
        return output[:, longest:].tolist()

    def budget(self, prompt: Prompt) -> int:
        """Return the most tokens that the policy may write."""
        return min(self.max_tokens, self.max_length - len(prompt.context))

    def finish(
        self, prompts: list[Prompt], answers: list[list[int]]
    ) -> Iterator[Episode]:
        """Yield the episode of each answer, which ends at its end or its budget."""
        for prompt, answer in zip(prompts, answers, strict=True):
            own_ids = answer[: self.budget(prompt)]
            ended = False
            for length, token in enumerate(own_ids, start=1):
                if token in self.end_ids:
                    own_ids = own_ids[:length]
                    ended = True
                    break
            yield Episode(
                prompt.id, prompt.prompt_ids, prompt.forced_ids, own_ids, ended
            )


def _token_chooser(numbers: "Tensor", temperature: float) -> "LogitsProcessor":
    """Build a processor that leaves only the token that a random number chooses.

    It inverts the distribution function: the token is the first one whose cumulative
    probability exceeds the number. So one number suffices for a token, and other rows
    of the batch do not change what a row draws.

    Args:
        numbers: in [0, 1), shape (rows, tokens).
        temperature: of the distribution.
    """
    import torch
    from transformers import LogitsProcessor

    class TokenChooser(LogitsProcessor):
        """Counts the steps; generation calls it once in each."""

        def __init__(self) -> None:
            self._step = 0

        def __call__(self, input_ids: "Tensor", scores: "Tensor") -> Any:
            shares = torch.softmax(scores.double() / temperature, dim=-1)
            cumulative = shares.cumsum(dim=-1)
            # Rounded, they do not add up to 1 exactly.
            wanted = numbers[:, self._step, None] * cumulative[:, -1:]
            chosen = torch.searchsorted(cumulative, wanted, right=True)
            chosen = chosen.clamp(max=scores.shape[1] - 1)
            self._step += 1
            only_one = torch.full_like(scores, -torch.inf)
            return only_one.scatter(1, chosen, 0.0)

    return TokenChooser()
