"""A plan as text for a terminal."""

from bezoar_ray.plan.assumed import Assumed
from bezoar_ray.plan.steps import Plan, Step

_COLUMNS = ("calls", "tokens_in", "tokens_out", "usd", "gpu_hours")


def render(found: Plan) -> str:
    """A plan as a table for a terminal, with its assumptions below."""
    head = ("stage", "what", "model", "calls", "tokens in", "tokens out", "dollars", "GPU hours")
    lines = [_cells(step.stage, step.what, step.model, step) for step in found.steps]
    table = [head, *lines, _cells("total", "", "", Step("", "", "", *map(found.total, _COLUMNS)))]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    text = [_line(line, widths) for line in table]
    rule = "-" * len(text[0])
    rows = ", ".join(f"{scheme} {count:,.0f}" for scheme, count in found.rows.items())
    return "\n".join([
        f"Plan of {found.recipe}: nothing has run. Rows to generate, at most: {rows}.", "",
        text[0], rule, *text[1:-1], rule, text[-1], "", *_assumptions(found.assumed),
    ])  # fmt: skip


def _cells(stage: str, what: str, model: str, step: Step) -> tuple[str, ...]:
    numbers = (_count(step.calls), _count(step.tokens_in), _count(step.tokens_out))
    return (stage, what, model.rsplit("/", 1)[-1], *numbers, f"{step.usd:,.2f}", f"{step.gpu_hours:,.1f}")


def _count(number: float) -> str:
    return f"{number / 1e6:,.2f} M" if number >= 1e6 else f"{number:,.0f}"


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    left = [cell.ljust(width) for cell, width in zip(cells[:3], widths[:3], strict=True)]
    return "  ".join(left + [cell.rjust(width) for cell, width in zip(cells[3:], widths[3:], strict=True)])


def _assumptions(assumed: Assumed) -> list[str]:
    source = f"measured in {assumed.measured} where it could be" if assumed.measured else "none of them measured"
    tokens = ", ".join(f"{kind} {t.into:,.0f} + {t.out:,.0f}" for kind, t in assumed.call.items())
    shares = ", ".join(f"{scheme} {share:.0%}" for scheme, share in assumed.accepted.items())
    return [
        f"Assumptions ({source}):",
        f"- tokens of a call, in + out: {tokens}",
        f"- accepted by the filter: {shares}; judge calls per row and judge: {assumed.judged:.2f}",
        f"- an HH-RLHF conversation has {assumed.hh_row:,.0f} tokens",
        f"- a source or sub-mixture without a limit gives {assumed.open_rows:,} rows",
        f"- an lm-eval task has {assumed.harness_items:,} items of {assumed.harness_choices} requests",
        f"- MT-Bench has {assumed.mt_bench_questions} questions, the embedded one 16",
        f"- one 80 GB GPU, for each billion of active weights: vLLM writes {assumed.write_speed:,.0f} and reads "
        f"{assumed.read_speed:,.0f} tokens/s, QLoRA trains on {assumed.train_speed:,.0f}; starting up is not counted",
        "- no call is repeated after a fault, and a judge's hidden reasoning comes on top",
        "- what runs without a GPU takes no GPU hours",
    ]
