"""What a recipe does not say, with a name for each number; a pilot's measurements take their place."""

from dataclasses import dataclass, field

from bezoar_ray.runtime.gpus import GPUS, USUAL, Gpu
from bezoar_ray.runtime.model_shapes import USUAL_BILLIONS
from bezoar_ray.schemes import CUSTOM, SCHEMES, custom


@dataclass(frozen=True)
class Tokens:
    """Tokens of one call."""

    into: float
    out: float


@dataclass(frozen=True)
class Assumed:
    """Rough means of public data of each kind, as defaults; none was measured by us.

    vLLM's speeds are of one H100. Training speeds are measured ones, and stand in speeds.py.
    """

    call: dict[str, Tokens] = field(
        default_factory=lambda: {
            **{
                f"{scheme.name} {call.kind}": Tokens(call.tokens_in, call.tokens_out)
                for scheme in (*SCHEMES.values(), custom(CUSTOM, "dolly"))
                for call in scheme.calls
            },
            "judge": Tokens(800, 80),  # rubric and row; a rating with its reason
            "mt_bench answer": Tokens(250, 350),  # the second turn carries the first
            "mt_bench judge": Tokens(900, 150),
            "mt_bench comparison": Tokens(1500, 200),
            "harness request": Tokens(120, 1),
        }
    )
    """Tokens of each kind of call."""
    accepted: dict[str, float] = field(
        default_factory=lambda: {
            scheme.name: scheme.accepted for scheme in SCHEMES.values()
        }
    )
    """Share of the generated rows that the filter accepts, by scheme."""
    own_accepted: float = custom(CUSTOM, "dolly").accepted
    """The same of schemes of one's own, of which nothing is known."""
    judged: float = 1.0
    """Judge calls per generated row and judge; the gates and repeated questions change it."""
    hh_row: float = 250
    """Tokens of an HH-RLHF conversation."""
    open_rows: int = 1000
    """Rows of a source or sub-mixture to which the recipe sets no limit."""
    harness_items: int = 2500
    """Items of an lm-eval task without a limit."""
    harness_choices: float = 3.5
    """Requests for each item: one for each choice."""
    mt_bench_questions: int = 80
    """Questions in FastChat's file; the embedded world has 16."""
    write_speed: float = 30_000
    """Tokens that vLLM writes in a second on one GPU, times the billions of active weights."""
    read_speed: float = 120_000
    """Prompt tokens that it reads in a second, likewise."""
    one_sequence: float = 30
    """Tokens that vLLM writes in a second of one sequence, while its batch is full."""
    start: float = 120
    """Seconds until an engine or a training worker has loaded its model."""
    step: float = 0.1
    """Seconds of an optimiser step that more GPUs do not share."""
    judge_latency: float = 3
    """Seconds until a judge at an endpoint has answered."""
    billions: float = USUAL_BILLIONS
    """Billions of weights of a model whose name does not say."""
    measured: str = ""
    """The run directory whose numbers stand in place of some of these."""

    def tokens(self, kind: str) -> Tokens:
        """Tokens of a kind of call; one that is not known is of a scheme of one's own."""
        return self.call.get(kind) or self.call["own answer"]

    def engine_seconds(
        self, gpu: Gpu, billions: float, into: float, out: float
    ) -> float:
        """Seconds of one GPU for so many tokens: it reads as fast as its operations, and writes as fast as its memory.

        Args:
            gpu: its kind.
            billions: active weights of the model.
            into: tokens of the prompts.
            out: tokens of the answers.
        """
        here = GPUS[USUAL]
        reading = into / (self.read_speed * gpu.tflops / here.tflops)
        writing = out / (self.write_speed * gpu.bandwidth / here.bandwidth)
        return billions * (reading + writing)
