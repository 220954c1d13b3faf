"""A plan as text for a terminal."""

from bezoar_ray.plan.memory import MemoryNeed
from bezoar_ray.plan.scaling import COUNTS, GAIN, Scaling
from bezoar_ray.plan.speeds import SPEEDS
from bezoar_ray.plan.steps import Plan, Step
from bezoar_ray.runtime.gpus import GPUS, USUAL
from bezoar_ray.stages import training_stages

_COLUMNS = (
    "stage",
    "step",
    "model",
    "calls",
    "tokens in",
    "tokens out",
    "API dollars",
    "GPU hours",
)
_TEXT_COLUMNS = 3
"""The first columns hold text and are aligned to the left, the others hold numbers."""


def render(plan: Plan) -> str:
    """A plan as a table, with its assumptions below."""
    total = Step(
        stage="total",
        description="",
        model="",
        calls=plan.total("calls"),
        tokens_in=plan.total("tokens_in"),
        tokens_out=plan.total("tokens_out"),
        usd=plan.total("usd"),
        gpu_hours=plan.total("gpu_hours"),
    )
    cells = [_cells(step) for step in plan.steps]
    head, *lines, total_line = _align([_COLUMNS, *cells, _cells(total)])
    rule = "-" * len(head)
    counts = [f"{scheme} {count:,.0f}" for scheme, count in plan.rows.items()]
    rows = ", ".join(counts) or "none"
    text = [
        f"Plan of {plan.recipe}: nothing has run. Rows to generate, at most: {rows}.",
        "",
        head,
        rule,
        *lines,
        rule,
        total_line,
        "",
        *_bill(plan),
        *_memory(plan),
        *_commercial_use(plan),
        *_code(plan),
        *_assumptions(plan),
    ]
    return "\n".join(text)


def render_scaling(scaling: Scaling) -> str:
    """Hours and dollars on more GPUs as a table, with what bounds each stage."""
    columns = [_gpus(count) for count in COUNTS]
    rows: list[tuple[str, ...]] = [("stage", *columns, "gains up to", "then")]
    counts = [count for count in COUNTS if count >= scaling.fewest]
    dashes = ["–"] * (len(COUNTS) - len(counts))  # The recipe needs more GPUs.
    for stage in scaling.stages:
        hours = [_hours(stage.hours(count)) for count in counts]
        rows.append((stage.name, *dashes, *hours, _gpus(stage.full), stage.bound))
    all_hours = [_hours(scaling.hours(count)) for count in counts]
    dollars = [f"{scaling.usd(count):,.0f}" for count in counts]
    rows.append(("hours in all", *dashes, *all_hours, "", ""))
    rows.append(("dollars", *dashes, *dollars, "", ""))
    head, *lines, hours_line, dollars_line = _align(rows, text_columns=len(rows[0]))
    rule = "-" * len(head)
    first = scaling.first
    text = [
        f"{scaling.recipe} on {scaling.gpu.kind}s, as planned: hours of each stage.",
        "",
        *_too_large(scaling),
        head,
        rule,
        *lines,
        rule,
        hours_line,
        dollars_line,
        "",
        f"{first.name} stops gaining first, at {_gpus(first.full)}: {first.bound}.",
        "",
        *_scaling_assumptions(scaling),
    ]
    return "\n".join(text)


def _gpus(count: float) -> str:
    return f"{count:g} GPUs" if count > 1 else f"{count:g} GPU"


def _hours(hours: float) -> str:
    return f"{hours:,.2f}" if hours < 10 else f"{hours:,.1f}"


def _count(number: float) -> str:
    return f"{number / 1e6:,.2f} M" if number >= 1e6 else f"{number:,.0f}"


def _cells(step: Step) -> tuple[str, ...]:
    return (
        step.stage,
        step.description,
        step.model.rsplit("/", 1)[-1],
        _count(step.calls),
        _count(step.tokens_in),
        _count(step.tokens_out),
        f"{step.usd:,.2f}",
        f"{step.gpu_hours:,.1f}",
    )


def _align(rows: list[tuple[str, ...]], text_columns: int = _TEXT_COLUMNS) -> list[str]:
    """Lines with columns of equal width: text to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            is_text = column < text_columns
            cells.append(cell.ljust(width) if is_text else cell.rjust(width))
        lines.append("  ".join(cells).rstrip())
    return lines


def _bill(plan: Plan) -> list[str]:
    """The most that the run can cost."""
    most = plan.total("usd_most")
    if not most:
        return []
    limit = "sets no limit"
    if plan.budget is not None:
        limit = f"stops the run at {plan.budget:,.2f}"
    return [
        f"At most {most:,.2f} API dollars, if every answer is as long as its "
        "max_tokens. Judges with hidden reasoning can write that much. "
        f"budget_usd {limit}.",
        "",
    ]


def _memory(plan: Plan) -> list[str]:
    """The GPU memory that each stage needs."""
    if not plan.needs:
        return []
    kinds = list(dict.fromkeys(need.gpu.kind for need in plan.needs))
    sizes = [f"{_with_article(kind)} ({GPUS[kind].memory:g} GiB)" for kind in kinds]
    choices = "|".join(GPUS)
    lines = [
        f"Memory of {' and '.join(sizes)}, estimated; another kind: --gpu {choices}:"
    ]
    for need in plan.needs:
        kind = f"{need.gpu.kind}: " if len(kinds) > 1 else ""
        lines.append(f"- {need.stage:<9} {kind}{need}")
    for name in plan.unknown_gpus:
        lines.append(f"- {name} is not known, and planned as {_with_article(USUAL)}")
    return [*lines, ""]


def _too_large(scaling: Scaling) -> list[str]:
    """The stages whose model does not fit on such a GPU, however many there are."""
    too_large = [need for need in scaling.needs if not need.fits]
    if not too_large:
        return []
    head = f"The recipe does not fit: {scaling.gpu.memory:g} GiB are too few."
    return [head, *(f"- {need.stage:<9} {need}" for need in too_large), ""]


def _with_article(kind: str) -> str:
    """A kind of GPU with "a" or "an", by the sound of its first letter's name."""
    article = "an" if kind[0] in "AHLR" else "a"
    return f"{article} {kind}"


def _commercial_use(plan: Plan) -> list[str]:
    verdict, causes = plan.commercial_use
    return [
        f"May the result be used commercially? {verdict.capitalize()}:",
        *(f"- {cause}" for cause in causes),
        "",
    ]


def _code(plan: Plan) -> list[str]:
    if not plan.code:
        return []
    lines = [f"- {line}" for line in plan.code]
    return ["The run executes code that is not ours:", *lines, ""]


def _assumptions(plan: Plan) -> list[str]:
    assumed = plan.assumed
    source = "none of them measured for this recipe"
    if assumed.measured:
        source = f"measured in {assumed.measured} where possible"
    calls = []
    for kind, tokens in assumed.call.items():
        calls.append(f"{kind} {tokens.into:,.0f} + {tokens.out:,.0f}")
    shares = []
    for scheme, share in assumed.accepted.items():
        shares.append(f"{scheme} {share:.0%}")
    return [
        f"Assumptions ({source}):",
        f"- tokens of a call, in + out: {', '.join(calls)}",
        f"- accepted by the filter: {', '.join(shares)}",
        f"- judge calls per row and judge: {assumed.judged:.2f}",
        f"- an HH-RLHF conversation has {assumed.hh_row:,.0f} tokens, a rated answer "
        f"with its prompt {assumed.rated_row:,.0f}",
        f"- a source or sub-mixture without a limit gives {assumed.open_rows:,} rows",
        f"- an lm-eval task has {assumed.harness_items:,} items of "
        f"{assumed.harness_choices} requests",
        f"- MT-Bench has {assumed.mt_bench_questions} questions, the embedded one 16",
        f"- RewardBench 1 has {assumed.reward_bench_items:,} items of 2 answers, "
        f"RewardBench 2 {assumed.reward_bench_2_items:,} of 4",
        f"- on one {USUAL}, for each billion of active weights, vLLM writes "
        f"{assumed.write_speed:,.0f} and reads {assumed.read_speed:,.0f} tokens/s; "
        "other kinds write by their bandwidth and read by their operations; start-up is not "
        "counted",
        *_training_speed(plan.needs),
        "- no call is repeated after a fault; a judge's hidden reasoning comes on top",
        "- a custom scheme makes one call a row, and the filter accepts "
        f"{assumed.own_accepted:.0%} of its rows",
        "- a stage without a GPU takes no GPU hours",
    ]


def _scaling_assumptions(scaling: Scaling) -> list[str]:
    gpu = scaling.gpu
    assumed = scaling.assumed
    return [
        "Assumptions, besides those of `bezoar plan`:",
        f"- {_with_article(gpu.kind)} has {gpu.tflops:g} TFLOPS in bfloat16 and "
        f"{gpu.bandwidth:g} TB/s, as its maker says",
        f"- it costs {gpu.usd:g} dollars an hour, our guess (your price: "
        f"--cluster {gpu.kind}=1.23); dollars are those of APIs and GPUs",
        "- training is as fast as the TFLOPS, writing as fast as the bandwidth",
        *_training_speed(scaling.needs),
        "- actors, workers and replicas fill all GPUs, whatever the recipe says; a "
        "stage's GPUs are paid while it runs",
        f"- an engine or worker starts in {assumed.start:g} s; one sequence is written "
        f"at {assumed.one_sequence:g} tokens/s; a judge answers in "
        f"{assumed.judge_latency:g} s",
        f"- a stage gains as long as twice the GPUs take less than {GAIN:.0%} of the "
        "time",
        f"- the recipe needs at least {_gpus(scaling.fewest)}",
    ]


def _training_speed(needs: tuple[MemoryNeed, ...]) -> list[str]:
    """The assumption about the speed of training, if a stage trains on a GPU."""
    if not any(need.stage in training_stages() for need in needs):
        return []
    cards = sorted({measured.card for measured in SPEEDS})
    return [
        f"- training: QLoRA in flat passes, measured on "
        f"{_with_article(', '.join(cards))} with a model of {SPEEDS[0].billions:g} "
        "billion weights, without the trainer's own work between steps; other models "
        "and kinds are scaled by their operations, and never faster than the kernels of "
        "their layers can be launched. Padded passes (docs/how-to/training.md) and "
        "float32 take longer"
    ]
