"""The report's charts as inline SVG; text takes the page's colour, so that they suit light and dark alike."""

import math
from collections.abc import Callable
from io import StringIO
from typing import TYPE_CHECKING, Any, cast

from bezoar_ray.report.content import SchemeFunnel
from bezoar_ray.report.harness_table import HarnessTable
from bezoar_ray.stages import BASE, checkpoint_names, checkpoint_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.projections.polar import PolarAxes


COLOURS = {BASE: "#8a93a3"} | {
    name: checkpoint_of(name).colour for name in checkpoint_names()[1:]
}
_OTHER = "#a855f7"  # models that are no checkpoints
_ENDS = (
    "#10b981",
    "#f97316",
    "#ef4444",
    "#a855f7",
    "#eab308",
    "#06b6d4",
    "#ec4899",
    "#84cc16",
    "#64748b",
)
_INK = "#010203"  # replaced by the page's own colour
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#8884",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#8883",
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def _figure(
    name: str, size: tuple[float, float], draw: "Callable[[Figure], None]"
) -> str:
    """The SVG of a figure that `draw(figure)` fills; the same input gives the same text."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = {
        **_STYLE,
        "svg.hashsalt": name,
    }  # its type lists every key of matplotlib's
    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    return f'<svg role="img" aria-label="{name}"{svg[4:]}'


def funnel(schemes: list[SchemeFunnel]) -> str | None:
    """Where the rows of each scheme ended: accepted, or taken by which gate."""
    if not schemes:
        return None
    gates = list(dict.fromkeys(gate for scheme in schemes for gate in scheme.reasons))
    parts = [("accepted", [s.accepted for s in schemes])]
    parts += [(gate, [s.reasons.get(gate, 0) for s in schemes]) for gate in gates]
    unended = [
        max(0, s.generated - s.accepted - sum(s.reasons.values())) for s in schemes
    ]
    parts += [("not judged yet", unended)] if any(unended) else []

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        left = [0.0] * len(schemes)
        for place, (label, counts) in enumerate(parts):
            shares = [
                count / max(s.generated, 1)
                for s, count in zip(schemes, counts, strict=True)
            ]
            colour = _ENDS[min(place, len(_ENDS) - 1)]
            axes.barh(
                [s.name for s in schemes],
                shares,
                left=left,
                color=colour,
                label=_short(label),
                height=0.62,
            )
            left = [a + b for a, b in zip(left, shares, strict=True)]
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        figure.legend(loc="outside lower center", ncols=4)

    return _figure(
        "Where the rows ended",
        (8, 1.3 + 0.55 * len(schemes) + 0.2 * (len(parts) // 4)),
        draw,
    )


def losses(train: dict[str, Any]) -> str | None:
    """Training loss by step, a panel for each stage; data sets in the stage's order have their own shade."""
    curves = {
        name: part["by_step"] for name, part in train.items() if part.get("by_step")
    }
    if not curves:
        return None

    def draw(figure: "Figure") -> None:
        panels = figure.subplots(1, len(curves), squeeze=False)[0]
        for axes, (name, points) in zip(panels, curves.items(), strict=True):
            sets = list(dict.fromkeys(point.get("dataset") or name for point in points))
            for place, dataset in enumerate(sets):
                own = [
                    point
                    for point in points
                    if (point.get("dataset") or name) == dataset
                ]
                axes.plot(
                    [p["step"] for p in own],
                    [p["loss"] for p in own],
                    color=COLOURS.get(name, _ENDS[0]),
                    alpha=1 - 0.3 * (place % 3),
                    linewidth=1.6,
                    label=_short(dataset),
                )
            axes.set_title(name, loc="left")
            axes.set_xlabel("step")
            if len(sets) > 1:
                axes.legend(fontsize=8)
        panels[0].set_ylabel("loss")

    return _figure("Training loss", (max(4.0, 3.3 * len(curves)), 2.8), draw)


def bars(table: HarnessTable) -> str | None:
    """Harness scores by task, a bar for each checkpoint, with one standard error."""
    if not table.rows:
        return None
    rows = [(row.task, row.scores) for row in table.rows]
    rows += [("mean", table.mean)] if table.mean and len(rows) > 1 else []

    def draw(figure: "Figure") -> None:
        axes, width = figure.subplots(), 0.8 / len(table.checkpoints)
        for place, name in enumerate(table.checkpoints):
            there = [
                (at, scores[name])
                for at, (_, scores) in enumerate(rows)
                if name in scores
            ]
            axes.bar(
                [at + (place + 0.5) * width - 0.4 for at, _ in there],
                [score.value for _, score in there],
                width * 0.92,
                yerr=[score.stderr or 0 for _, score in there],
                color=COLOURS[name],
                label=name,
                error_kw={"elinewidth": 1, "ecolor": "#888"},
            )
        axes.set_xticks(
            range(len(rows)),
            [_short(task) for task, _ in rows],
            rotation=30 if len(rows) > 5 else 0,
        )
        axes.set_ylim(0, 1)
        axes.grid(visible=False, axis="x")
        figure.legend(loc="outside lower center", ncols=4)

    return _figure("Harness scores", (min(10, 3.5 + 0.9 * len(rows)), 3.2), draw)


def radar(mt_bench: dict[str, Any]) -> str | None:
    """MT-Bench by category, from 0 to 10, a line for each checkpoint."""
    categories = sorted(
        {
            category
            for part in mt_bench.values()
            for category in part.get("by_category", {})
        }
    )
    if len(categories) < 3:
        return None
    angles = [2 * math.pi * place / len(categories) for place in range(len(categories))]

    def draw(figure: "Figure") -> None:
        axes = cast("PolarAxes", figure.subplots(subplot_kw={"projection": "polar"}))
        axes.set_theta_offset(math.pi / 2)
        axes.set_theta_direction(-1)
        for name, part in mt_bench.items():
            values = [
                part["by_category"].get(category, float("nan"))
                for category in categories
            ]
            colour = COLOURS.get(name, _OTHER)
            axes.plot(
                [*angles, angles[0]],
                [*values, values[0]],
                color=colour,
                label=_short(name),
                linewidth=1.8,
            )
            axes.fill(angles, values, color=colour, alpha=0.08)
        axes.set_xticks(angles, [_short(category) for category in categories])
        axes.set_ylim(0, 10)
        axes.set_yticks([2, 4, 6, 8, 10], ["2", "4", "6", "8", "10"], fontsize=7)
        axes.spines["polar"].set_visible(False)
        figure.legend(loc="outside lower center", ncols=4)

    return _figure("Grades by category", (5.2, 4.6), draw)


def ranked(
    title: str, values: dict[str, float], intervals: dict[str, list[float] | None]
) -> str:
    """Shares by name, in their order from the top, each with its 95 % interval where it has one."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.barh(
            [_short(name) for name in values],
            list(values.values()),
            color=_ENDS[0],
            height=0.62,
        )
        for place, name in enumerate(values):
            if ci95 := intervals[name]:
                axes.plot(ci95, [place, place], color="#888", linewidth=1.5)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")

    return _figure(title, (8, 0.8 + 0.4 * len(values)), draw)


def _short(label: str) -> str:
    return label if len(label) <= 28 else f"{label[:27]}…"
