"""Numbers that a recipe does not give, each with a name."""

from dataclasses import dataclass, field

from bezoar_ray.runtime.gpus import GPUS, USUAL, Gpu
from bezoar_ray.runtime.model_shapes import USUAL_BILLIONS
from bezoar_ray.schemes import CUSTOM, SCHEMES, custom_scheme

_ANY_CUSTOM = custom_scheme(CUSTOM, "dolly")
"""A scheme with the numbers that are assumed of all custom schemes."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of one call."""

    into: float
    """Of the prompt."""
    out: float
    """Of the answer."""


def _assumed_calls() -> dict[str, Tokens]:
    calls = {}
    for scheme in (*SCHEMES.values(), _ANY_CUSTOM):
        for call in scheme.calls:
            kind = f"{scheme.name} {call.kind}"
            calls[kind] = Tokens(call.tokens_in, call.tokens_out)
    # The prompt has the rubric and the row, the answer a rating with its reason.
    calls["judge"] = Tokens(800, 80)
    # A reward model reads a row, and writes nothing.
    calls["reward judge"] = Tokens(350, 0)
    # The second turn's prompt holds the first turn.
    calls["mt_bench answer"] = Tokens(250, 350)
    calls["mt_bench judge"] = Tokens(900, 150)
    calls["mt_bench comparison"] = Tokens(1500, 200)
    calls["harness request"] = Tokens(120, 1)
    # A prompt with one of its answers.
    calls["reward_bench answer"] = Tokens(450, 1)
    return calls


def _assumed_yields() -> dict[str, float]:
    return {scheme.name: scheme.accepted for scheme in SCHEMES.values()}


@dataclass(frozen=True)
class Assumed:
    """The assumptions of a plan.

    The defaults are rough means of public data of each kind; we measured none of them.
    vLLM's speeds are those of one H100. Training speeds were measured, and are in
    speeds.py.
    """

    call: dict[str, Tokens] = field(default_factory=_assumed_calls)
    """Tokens of each kind of call."""
    accepted: dict[str, float] = field(default_factory=_assumed_yields)
    """Share of the generated rows that the filter accepts, by scheme."""
    own_accepted: float = _ANY_CUSTOM.accepted
    """The same share for custom schemes, of which nothing is known."""
    judged: float = 1.0
    """Judge calls for each generated row and judge. Rows that a gate rejects need none,
    and a reply without a rating needs two."""
    hh_row: float = 250
    """Tokens of an HH-RLHF conversation."""
    rated_row: float = 500
    """Tokens of a rated answer with its prompt. HelpSteer2's answers have 1,493
    characters in the mean (arXiv 2406.08673)."""
    open_rows: int = 1000
    """Rows of a source or sub-mixture that the recipe sets no limit to."""
    harness_items: int = 2500
    """Items of an lm-eval task without a limit."""
    harness_choices: float = 3.5
    """Requests for each item: one for each choice."""
    mt_bench_questions: int = 80
    """Questions in FastChat's file. The embedded world has 16."""
    reward_bench_items: int = 2985
    """Items of RewardBench 1, of two answers each (arXiv 2403.13787)."""
    reward_bench_2_items: int = 1865
    """Items of RewardBench 2, of four answers each (arXiv 2506.01937). Those of Ties
    have more."""
    write_speed: float = 30_000
    """Tokens that vLLM writes in a second on one GPU, times the billions of active
    weights."""
    read_speed: float = 120_000
    """Prompt tokens that vLLM reads in a second on one GPU, times the billions of
    active weights."""
    one_sequence: float = 30
    """Tokens that vLLM writes in a second for one sequence while its batch is full."""
    start: float = 120
    """Seconds until an engine or a training worker has loaded its model."""
    step: float = 0.1
    """Seconds of an optimizer step that more GPUs do not shorten."""
    judge_latency: float = 3
    """Seconds until a judge at an endpoint answers."""
    billions: float = USUAL_BILLIONS
    """Billions of weights of a model whose name does not tell."""
    measured: str = ""
    """The run directory whose measurements replace some of these numbers."""

    def tokens(self, kind: str) -> Tokens:
        """Tokens of a kind of call; those of custom schemes for an unknown kind."""
        # A judge reads the same prompt of a row and of its counterfactual.
        kind = kind.removeprefix("counterfactual ")
        return self.call.get(kind) or self.call["own answer"]

    def engine_seconds(
        self, gpu: Gpu, billions: float, into: float, out: float
    ) -> float:
        """Seconds that one GPU takes for some tokens in vLLM.

        Reading is bound by a GPU's operations, writing by its memory bandwidth.

        Args:
            gpu: its kind.
            billions: active weights of the model, in billions.
            into: tokens of the prompts.
            out: tokens of the answers.
        """
        reference = GPUS[USUAL]
        read_speed = self.read_speed * gpu.tflops / reference.tflops
        write_speed = self.write_speed * gpu.bandwidth / reference.bandwidth
        return billions * (into / read_speed + out / write_speed)
