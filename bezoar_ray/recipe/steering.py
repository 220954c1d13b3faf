"""The section of SteerLM, by which ratings that a prompt names steer the answers."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from bezoar_ray.recipe.model_sections import Attribute, ModelSection
from bezoar_ray.recipe.section import (
    RUNTIME_ONLY,
    Engine,
    Positive,
    PositiveRate,
    SchedulingSection,
    Section,
    decisive,
)

Edges = Literal["rounding", "fifths"]
"""How the range of a rating is cut into bins."""

# Strict: otherwise `true` would be 1.
Goal = dict[Attribute, Annotated[int, Field(ge=0, le=4, strict=True)]]
"""A rating for each attribute that a goal names."""


def _check_goals(goals: tuple[Goal, ...]) -> tuple[Goal, ...]:
    # Not by min_length, which would also count a goal with a wrong rating as missing.
    if not goals:
        raise ValueError("expected at least one goal, such as [{verbosity: 2}]")
    for index, goal in enumerate(goals):
        if not goal:
            raise ValueError(
                f"entry {index} names no attribute. Give it a rating, such as "
                "verbosity: 2"
            )
    return goals


class SteerSampler(SchedulingSection):
    """The engines that sample answers from the steered model."""

    dtype: str = "bfloat16"
    """Data type of the weights in vLLM."""
    max_in_flight: Annotated[Positive, RUNTIME_ONLY] = 64
    """Concurrent answers of one actor."""
    engine: Engine = {}
    """Extra vLLM engine arguments, such as `tensor_parallel_size`,
    `gpu_memory_utilization` or `max_model_len`."""
    actors: Annotated[Positive, RUNTIME_ONLY] = 1
    """Ray actors, each with an engine of its own."""
    num_cpus: Annotated[float, RUNTIME_ONLY] = 1.0
    """Ray CPUs of each actor. Without a GPU, its engine computes with as many
    threads."""
    num_gpus: Annotated[float, RUNTIME_ONLY] = 0.0
    """Ray GPUs of each actor."""

    def fingerprint_fields(self) -> dict[str, object]:
        """The fields, with those engine arguments that change the answers."""
        return super().fingerprint_fields() | {"engine": decisive(self.engine)}


class Steer(Section):
    """SteerLM 1 (arXiv 2310.05344) and SteerLM 2.0 (arXiv 2406.08673).

    SteerLM 1 learns from rated answers, with their ratings in the system message.
    SteerLM 2.0 goes on from there: it samples answers to each prompt and a goal, and
    learns to prefer those that reach the goal by the reward model's ratings.
    """

    iterations: Annotated[int, Field(ge=0)] = 2
    """Rounds of sampling and learning. Each round samples from the model of the one
    before it. 0 is SteerLM 1."""
    samples: Annotated[int, Field(ge=2)] = 10
    """Answers to each prompt. They are compared with one another, so there are at least
    two."""
    prompts: Positive = 20_000
    """Most prompts of a round. They are those of seeds.hh_rlhf."""
    temperature: PositiveRate = 0.7
    """Sampling temperature. At 0, all answers to a prompt would be the same."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Probability mass of nucleus sampling."""
    max_tokens: Positive = 512
    """Maximum length of an answer in tokens. One that is cut off is left out."""
    learning_rate: PositiveRate | None = None
    """Peak learning rate of a round. That of `align`, with which SteerLM 1 learns,
    where empty."""
    epochs: PositiveRate | None = None
    """Passes of a round over its prompts. Those of `align` where empty."""
    batch: Positive | None = None
    """Prompts in an optimizer step of a round, each with all its answers; 128 in the
    paper. That of `align` where empty. Must be a multiple of `align.workers`."""
    edges: Edges = "rounding"
    """How predicted ratings become probabilities of the ratings 0 to 4. With
    `rounding`, each covers what rounds to it. `fifths` cuts the range into equal parts,
    which moves high ratings up and low ones down. The paper does not say which it
    takes."""
    goals: Annotated[tuple[Goal, ...], AfterValidator(_check_goals)]
    """Ratings from 0 to 4 that answers are to have. Each prompt gets one of these
    goals, drawn at random. With a single goal the model learns to reach that one, even
    if it is asked for another, so name several that differ in what you want to control,
    such as verbosity. An attribute that a goal does not name is free. Evaluations ask
    for the first goal."""
    sampler: SteerSampler = SteerSampler()

    def sampling(self, model: str) -> ModelSection:
        """The section of the model that is sampled from, as the pipeline reads it.

        Args:
            model: its folder.
        """
        sampler = self.sampler
        return ModelSection(
            model=model,
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            dtype=sampler.dtype,
            max_in_flight=sampler.max_in_flight,
            engine=sampler.engine,
            actors=sampler.actors,
            num_cpus=sampler.num_cpus,
            num_gpus=sampler.num_gpus,
            accelerator_type=sampler.accelerator_type,
            node_labels=sampler.node_labels,
        )
