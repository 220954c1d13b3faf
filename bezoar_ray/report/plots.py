"""The report's charts as inline SVG.

Text has the color of the page's text, so the charts fit a light and a dark page.
"""

import math
from collections.abc import Callable
from io import StringIO
from typing import TYPE_CHECKING, Any, cast

from bezoar_ray.report.content import SchemeFunnel
from bezoar_ray.report.harness_table import HarnessTable
from bezoar_ray.stages import BASE, checkpoint_of, trained_checkpoint_names
from bezoar_ray.train.heldout_answers import right_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.projections.polar import PolarAxes


COLORS = {BASE: "#8a93a3"} | {
    name: checkpoint_of(name).colour for name in trained_checkpoint_names()
}
"""The color of each checkpoint."""
_OTHER_MODEL = "#a855f7"
_SERIES = (
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
# A color that occurs nowhere else. In the finished SVG, `currentColor` replaces it.
_INK = "#010203"
_STYLE = {
    # Text stays text, which can be searched and has the font of the page.
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    # A `$` in the name of a task begins no formula.
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


def _render(
    title: str, size: tuple[float, float], draw: "Callable[[Figure], None]"
) -> str:
    """Render a figure as SVG; the same data give the same text.

    Args:
        title: for screen readers.
        size: width and height in inches.
        draw: fills the figure.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # The type of rc_context's argument lists every key of matplotlib's.
    # Without a salt, matplotlib draws the ids of an SVG's parts at random. The title
    # keeps those of two charts on a page apart.
    style: Any = _STYLE | {"svg.hashsalt": title}
    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        file = StringIO()
        # A date or a version in the file would make each report different.
        metadata = {"Date": None, "Creator": None}
        figure.savefig(file, format="svg", metadata=metadata)
    text = file.getvalue()
    # Inside of HTML, an SVG has no XML declaration.
    svg = text[text.index("<svg") :].replace(_INK, "currentColor")
    return f'<svg role="img" aria-label="{title}"{svg.removeprefix("<svg")}'


def funnel(schemes: list[SchemeFunnel]) -> str | None:
    """Draw the share of each scheme's rows that was accepted, and the other reasons."""
    if not schemes:
        return None
    counts_by_end = _count_ends(schemes)
    names = [scheme.name for scheme in schemes]

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        left = [0.0] * len(schemes)
        for index, (end, counts) in enumerate(counts_by_end.items()):
            shares = []
            for scheme, count in zip(schemes, counts, strict=True):
                shares.append(count / max(scheme.generated, 1))
            axes.barh(
                names,
                shares,
                left=left,
                color=_SERIES[min(index, len(_SERIES) - 1)],
                label=_shorten(end),
                height=0.62,
            )
            for row, share in enumerate(shares):
                left[row] += share
        # `barh` draws from the bottom up.
        axes.invert_yaxis()
        axes.grid(visible=False)
        _show_percent(axes)
        figure.legend(loc="outside lower center", ncols=4)

    legend_rows = len(counts_by_end) // 4
    height = 1.3 + 0.55 * len(schemes) + 0.2 * legend_rows
    return _render("Generated rows by outcome", (8, height), draw)


def _count_ends(schemes: list[SchemeFunnel]) -> dict[str, list[int]]:
    """Count each scheme's rows by outcome: accepted, each reason, not judged yet."""
    counts = {"accepted": [scheme.accepted for scheme in schemes]}
    for scheme in schemes:
        for reason in scheme.reasons:
            if reason not in counts:
                counts[reason] = [other.reasons.get(reason, 0) for other in schemes]
    not_judged = []
    for scheme in schemes:
        ended = scheme.accepted + sum(scheme.reasons.values())
        not_judged.append(max(0, scheme.generated - ended))
    if any(not_judged):
        counts["not judged yet"] = not_judged
    return counts


def losses(train: dict[str, Any]) -> str | None:
    """Draw the training loss by step, with one panel for each checkpoint.

    The data sets of one checkpoint have shades of its color.
    """
    curves = {}
    for name, results in train.items():
        if results.get("by_step"):
            curves[name] = results["by_step"]
    if not curves:
        return None

    def draw(figure: "Figure") -> None:
        panels = figure.subplots(1, len(curves), squeeze=False)[0]
        for axes, (name, points) in zip(panels, curves.items(), strict=True):
            by_dataset: dict[str, list[dict[str, Any]]] = {}
            for point in points:
                dataset = point.get("dataset") or name
                by_dataset.setdefault(dataset, []).append(point)
            for index, (dataset, its_points) in enumerate(by_dataset.items()):
                axes.plot(
                    [point["step"] for point in its_points],
                    [point["loss"] for point in its_points],
                    color=COLORS.get(name, _SERIES[0]),
                    alpha=1 - 0.3 * (index % 3),
                    linewidth=1.6,
                    label=_shorten(dataset),
                )
            axes.set_title(name, loc="left")
            axes.set_xlabel("step")
            if len(by_dataset) > 1:
                axes.legend(fontsize=8)
        panels[0].set_ylabel("loss")

    width = max(4.0, 3.3 * len(curves))
    return _render("Training loss", (width, 2.8), draw)


def score_against_kl(train: dict[str, Any]) -> str | None:
    """Draw what each policy gained by reward, and how far it moved for that.

    Points are iterations. The line connects the looks at held-out prompts. A second
    panel has the share of right answers, where it is known.

    Args:
        train: the results of training, by checkpoint or by run.
    """
    policies = {}
    for name, results in train.items():
        if results.get("heldout_answers"):
            policies[name] = results
    if not policies:
        return None
    knows_right = any(
        look.get("known")
        for results in policies.values()
        for look in results["heldout_answers"]
    )

    def draw(figure: "Figure") -> None:
        panels = figure.subplots(1, 1 + knows_right, squeeze=False)[0]
        for index, (name, results) in enumerate(policies.items()):
            color = COLORS.get(name, _SERIES[index % len(_SERIES)])
            looks = results["heldout_answers"]
            panels[0].scatter(
                [point["kl"] for point in results["by_step"]],
                [point["score"] for point in results["by_step"]],
                color=color,
                alpha=0.3,
                s=10,
            )
            panels[0].plot(
                [look["kl"] for look in looks],
                [look["score"] for look in looks],
                color=color,
                marker="o",
                label=_shorten(name),
            )
            known = [look for look in looks if look.get("known")]
            if knows_right and known:
                panels[1].plot(
                    [look["kl"] for look in known],
                    [right_share(look) for look in known],
                    color=color,
                    marker="o",
                )
        panels[0].set_ylabel("score, in standard deviations")
        if knows_right:
            panels[1].set_ylabel("share of right answers")
            panels[1].set_ylim(0, 1)
        for axes in panels:
            axes.set_xlabel("KL divergence, in nats")
        if len(policies) > 1:
            figure.legend(loc="outside lower center", ncols=4)

    return _render("Score against KL divergence", (4.2 * (1 + knows_right), 3.2), draw)


def bars(table: HarnessTable) -> str | None:
    """Draw the harness scores by task, with one standard error."""
    if not table.rows:
        return None
    tasks = [(row.task, row.scores) for row in table.rows]
    if table.mean and len(tasks) > 1:
        tasks.append(("mean", table.mean))

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        width = 0.8 / len(table.checkpoints)
        for index, name in enumerate(table.checkpoints):
            positions = []
            scores = []
            for position, (_, by_checkpoint) in enumerate(tasks):
                if name in by_checkpoint:
                    positions.append(position + (index + 0.5) * width - 0.4)
                    scores.append(by_checkpoint[name])
            axes.bar(
                positions,
                [score.value for score in scores],
                width * 0.92,
                yerr=[score.stderr or 0 for score in scores],
                color=COLORS[name],
                label=name,
                error_kw={"elinewidth": 1, "ecolor": "#888"},
            )
        labels = [_shorten(task) for task, _ in tasks]
        rotation = 30 if len(tasks) > 5 else 0
        axes.set_xticks(range(len(tasks)), labels, rotation=rotation)
        axes.set_ylim(0, 1)
        axes.grid(visible=False, axis="x")
        figure.legend(loc="outside lower center", ncols=4)

    width_in_inches = min(10, 3.5 + 0.9 * len(tasks))
    return _render("Harness scores", (width_in_inches, 3.2), draw)


def radar(mt_bench: dict[str, Any]) -> str | None:
    """Draw the MT-Bench grades by category, from 0 to 10; None below three categories."""
    found = set()
    for scores in mt_bench.values():
        found.update(scores.get("by_category", {}))
    categories = sorted(found)
    if len(categories) < 3:
        return None
    angles = []
    for index in range(len(categories)):
        angles.append(2 * math.pi * index / len(categories))

    def draw(figure: "Figure") -> None:
        axes = cast("PolarAxes", figure.subplots(subplot_kw={"projection": "polar"}))
        axes.set_theta_offset(math.pi / 2)
        axes.set_theta_direction(-1)
        for name, scores in mt_bench.items():
            grades = scores["by_category"]
            # NaN leaves a gap where a model has no grade.
            values = [grades.get(category, float("nan")) for category in categories]
            color = COLORS.get(name, _OTHER_MODEL)
            axes.plot(
                [*angles, angles[0]],  # back to the first point
                [*values, values[0]],
                color=color,
                label=_shorten(name),
                linewidth=1.8,
            )
            axes.fill(angles, values, color=color, alpha=0.08)
        axes.set_xticks(angles, [_shorten(category) for category in categories])
        axes.set_ylim(0, 10)
        ticks = (2, 4, 6, 8, 10)
        axes.set_yticks(ticks, [str(tick) for tick in ticks], fontsize=7)
        axes.spines["polar"].set_visible(False)
        figure.legend(loc="outside lower center", ncols=4)

    return _render("Grades by category", (5.2, 4.6), draw)


def ranked(
    title: str, values: dict[str, float], intervals: dict[str, list[float] | None]
) -> str:
    """Draw shares by name, in the order given, each with its 95 % interval if it has one."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.barh(
            [_shorten(name) for name in values],
            list(values.values()),
            color=_SERIES[0],
            height=0.62,
        )
        for index, name in enumerate(values):
            interval = intervals[name]
            if interval:
                axes.plot(interval, [index, index], color="#888", linewidth=1.5)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        _show_percent(axes)

    return _render(title, (8, 0.8 + 0.4 * len(values)), draw)


def _show_percent(axes: "Axes") -> None:
    """Scale the horizontal axis from 0 to 100 %."""
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _shorten(label: str) -> str:
    return label if len(label) <= 28 else f"{label[:27]}…"
