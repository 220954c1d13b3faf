"""A plan as text for a terminal."""

from collections.abc import Callable
from functools import partial

from bezoar_ray.plan.memory import MemoryNeed
from bezoar_ray.plan.scaling import COUNTS, GAIN, PlannedStage, Scaling
from bezoar_ray.plan.speeds import SPEEDS
from bezoar_ray.plan.steps import Plan, Step
from bezoar_ray.runtime.gpus import GPUS, USUAL
from bezoar_ray.stages import training_stages

_COLUMNS = ("calls", "tokens_in", "tokens_out", "usd", "gpu_hours")


def render(found: Plan) -> str:
    """A plan as a table for a terminal, with its assumptions below."""
    head = (
        "stage",
        "what",
        "model",
        "calls",
        "tokens in",
        "tokens out",
        "API dollars",
        "GPU hours",
    )
    lines = [_cells(step.stage, step.what, step.model, step) for step in found.steps]
    table = [
        head,
        *lines,
        _cells("total", "", "", Step("", "", "", *map(found.total, _COLUMNS))),
    ]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    text = [_line(line, widths) for line in table]
    rule = "-" * len(text[0])
    rows = (
        ", ".join(f"{scheme} {count:,.0f}" for scheme, count in found.rows.items())
        or "none"
    )
    return "\n".join(
        [
            f"Plan of {found.recipe}: nothing has run. Rows to generate, at most: {rows}.",
            "",
            text[0],
            rule,
            *text[1:-1],
            rule,
            text[-1],
            "",
            *_bill(found),
            *_memory(found),
            *_use(found),
            *_code(found),
            *_assumptions(found),
        ]
    )


def _stage_hours(stage: PlannedStage, gpus: int) -> str:
    return _hours(stage.hours(gpus))


def render_scaling(found: Scaling) -> str:
    """Hours and dollars on more and more GPUs, and what bounds each stage."""
    head = ("stage", *map(_gpus, COUNTS), "gains up to", "then")
    counts = [count if count >= found.fewest else None for count in COUNTS]

    def line(
        name: str, value: Callable[[int], str], full: str = "", then: str = ""
    ) -> tuple[str, ...]:
        return (name, *(value(count) if count else "–" for count in counts), full, then)

    lines = [
        line(stage.name, partial(_stage_hours, stage), _gpus(stage.full), stage.bound)
        for stage in found.stages
    ]
    lines += [
        line("hours in all", lambda n: _hours(found.hours(n))),
        line("dollars", lambda n: f"{found.usd(n):,.0f}"),
    ]
    table = [head, *lines]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    text = [
        "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in table
    ]
    rule, gpu, assumed, first = (
        "-" * len(text[0]),
        found.gpu,
        found.assumed,
        found.first,
    )
    return "\n".join(
        [
            f"{found.recipe} on {gpu.kind}s, on paper: hours of each stage.",
            "",
            *_too_large(found),
            text[0],
            rule,
            *text[1:-2],
            rule,
            *text[-2:],
            "",
            f"{first.name} stops gaining first, at {_gpus(first.full)}: {first.bound}.",
            "",
            "Assumptions, beside those of `bezoar plan`:",
            f"- {_a(gpu.kind)} has {gpu.tflops:g} TFLOPS in bfloat16 and "
            f"{gpu.bandwidth:g} TB/s, by its maker, and costs "
            f"{gpu.usd:g} dollars an hour, by ourselves "
            f"(your price: --cluster {gpu.kind}=1.23); "
            "speeds follow the first in training, the second in writing; "
            "dollars are those of APIs and GPUs",
            *_training_speed(found.needs),
            "- actors, workers and replicas fill all GPUs, whatever the recipe says; "
            "a stage's GPUs are paid while it runs",
            f"- an engine or worker starts in {assumed.start:g} s; one sequence is written at {assumed.one_sequence:g} "
            f"tokens/s; a judge answers in {assumed.judge_latency:g} s",
            f"- a stage gains as long as twice the GPUs take less than {GAIN:.0%} of the time; "
            f"the recipe needs {_gpus(found.fewest)} at least",
        ]
    )


def _gpus(count: float) -> str:
    return f"{count:g} GPU" + ("s" if count > 1 else "")


def _hours(hours: float) -> str:
    return f"{hours:,.2f}" if hours < 10 else f"{hours:,.1f}"


def _cells(stage: str, what: str, model: str, step: Step) -> tuple[str, ...]:
    numbers = (_count(step.calls), _count(step.tokens_in), _count(step.tokens_out))
    return (
        stage,
        what,
        model.rsplit("/", 1)[-1],
        *numbers,
        f"{step.usd:,.2f}",
        f"{step.gpu_hours:,.1f}",
    )


def _count(number: float) -> str:
    return f"{number / 1e6:,.2f} M" if number >= 1e6 else f"{number:,.0f}"


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    left = [
        cell.ljust(width) for cell, width in zip(cells[:3], widths[:3], strict=True)
    ]
    return "  ".join(
        left
        + [cell.rjust(width) for cell, width in zip(cells[3:], widths[3:], strict=True)]
    )


def _bill(found: Plan) -> list[str]:
    if not found.total("usd_most"):
        return []
    most = f"At most {found.total('usd_most'):,.2f} API dollars, if every answer is as long as its max_tokens, as a "
    limit = (
        "sets no limit"
        if found.budget is None
        else f"stops the run at {found.budget:,.2f}"
    )
    return [f"{most}judge's with hidden reasoning may be; budget_usd {limit}.", ""]


def _memory(found: Plan) -> list[str]:
    """What each stage's model takes of a GPU."""
    if not found.needs:
        return []
    kinds = " and ".join(
        f"{_a(kind)} ({GPUS[kind].memory:g} GiB)" for kind in _kinds(found)
    )
    several = len(_kinds(found)) > 1
    head = f"Memory of {kinds}, estimated; another kind: --gpu {'|'.join(GPUS)}:"
    lines = [
        f"- {need.stage:<9} {f'{need.gpu.kind}: ' if several else ''}{need}"
        for need in found.needs
    ]
    return [
        head,
        *lines,
        *(
            f"- {kind} is not known, and planned as {_a(USUAL)}"
            for kind in found.unknown_gpus
        ),
        "",
    ]


def _kinds(found: Plan) -> list[str]:
    """The kinds of GPU of a plan's stages."""
    return list(dict.fromkeys(need.gpu.kind for need in found.needs))


def _too_large(found: Scaling) -> list[str]:
    """What does not fit on such a GPU, however many there are."""
    too_large = [need for need in found.needs if not need.fits]
    lines = [f"- {need.stage:<9} {need}" for need in too_large]
    return (
        [f"Not as the recipe stands: {found.gpu.memory:g} GiB are too few.", *lines, ""]
        if too_large
        else []
    )


def _a(kind: str) -> str:
    """A kind with its article, by how its first letter is spoken."""
    return f"{'an' if kind[0] in 'AHLR' else 'a'} {kind}"


def _use(found: Plan) -> list[str]:
    verdict, causes = found.commercial_use
    return [
        f"May the result be used commercially? {verdict.capitalize()}:",
        *(f"- {cause}" for cause in causes),
        "",
    ]


def _code(found: Plan) -> list[str]:
    return (
        ["It will run what is not ours:", *(f"- {line}" for line in found.code), ""]
        if found.code
        else []
    )


def _assumptions(found: Plan) -> list[str]:
    assumed = found.assumed
    measured = f"measured in {assumed.measured} where it could be"
    source = measured if assumed.measured else "none of them measured for this recipe"
    tokens = ", ".join(
        f"{kind} {t.into:,.0f} + {t.out:,.0f}" for kind, t in assumed.call.items()
    )
    shares = ", ".join(
        f"{scheme} {share:.0%}" for scheme, share in assumed.accepted.items()
    )
    return [
        f"Assumptions ({source}):",
        f"- tokens of a call, in + out: {tokens}",
        f"- accepted by the filter: {shares}; judge calls per row and judge: {assumed.judged:.2f}",
        f"- an HH-RLHF conversation has {assumed.hh_row:,.0f} tokens",
        f"- a source or sub-mixture without a limit gives {assumed.open_rows:,} rows",
        f"- an lm-eval task has {assumed.harness_items:,} items of {assumed.harness_choices} requests",
        f"- MT-Bench has {assumed.mt_bench_questions} questions, the embedded one 16",
        f"- on one {USUAL}, for each billion of active weights, vLLM writes {assumed.write_speed:,.0f} and reads "
        f"{assumed.read_speed:,.0f} tokens/s; another kind writes by its bandwidth and reads by its operations; "
        "starting up is not counted",
        *_training_speed(found.needs),
        "- no call is repeated after a fault, and a judge's hidden reasoning comes on top",
        f"- a scheme of your own makes one call a row, and the filter accepts {assumed.own_accepted:.0%} of them",
        "- what runs without a GPU takes no GPU hours",
    ]


def _training_speed(needs: tuple[MemoryNeed, ...]) -> list[str]:
    if not any(need.stage in training_stages() for need in needs):
        return []
    cards = ", ".join(sorted({measured.card for measured in SPEEDS}))
    return [
        f"- training: QLoRA in flat passes, measured on {_a(cards)} with a model of {SPEEDS[0].billions:g} billion "
        "weights, without the trainer's own work between steps; another model or kind by its operations, and never "
        "faster than its layers can be started. Padded passes (docs/how-to/training.md) and float32 take "
        "longer"
    ]
