"""Comparison of runs: the differences of their recipes, and their results side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from bezoar_ray.recipe import Recipe
from bezoar_ray.report import plots
from bezoar_ray.report.content import Content, gather
from bezoar_ray.report.harness_table import Score
from bezoar_ray.report.page import environment
from bezoar_ray.stages import checkpoint_names
from bezoar_ray.stats import as_percent
from bezoar_ray.store import Store

_NO_VALUE = "–"

Line = tuple[str, list[str]]
"""A measure, and its value in each run as text; a dash in a run that does not have it."""


@dataclass(frozen=True)
class RunComparison:
    """A table of runs."""

    names: list[str]
    differences: list[Line]
    """The recipe fields that differ."""
    results: dict[str, list[Line]]
    """The results, by group."""
    learning: dict[str, Any]
    """Of each run in which a policy learned by reward, the results of its training."""


def compare(runs: list[tuple[str, Recipe, Store]]) -> RunComparison:
    """Compare runs, each given by name, recipe and run directory."""
    contents = [gather(recipe, store) for _, recipe, store in runs]
    groups = {
        "rows accepted": _accepted,
        "held-out pair accuracy, 95 % interval": _heldout,
        "answers to held-out prompts, before and after": _reward_learning,
        "steered rounds": _steered,
        "served as": _served,
        "harness mean, %": _harness_mean,
        "harness, other metrics": _harness_others,
        "social bias": _social_bias,
        f"{_bench_name(contents)}, 95 % interval": _mt_bench,
        "dollars": _dollars,
        "seconds": _seconds,
        "commercial use": _commercial_use,
    }
    results = {}
    for group, measure in groups.items():
        results[group] = _lines(contents, measure)
    names = [name for name, _, _ in runs]
    learning = {}
    for name, content in zip(names, contents, strict=True):
        if content.reward_learning:
            learning[name] = content.train[content.reward_learning.checkpoint]
    return RunComparison(names, _differences(contents), results, learning)


def as_text(comparison: RunComparison) -> str:
    """Format the table for a terminal."""
    groups = {"recipe": comparison.differences} | comparison.results
    every_line = [line for lines in groups.values() for line in lines]
    name_lengths = [len(name) for name, _ in every_line]
    first_width = 2 + max(name_lengths, default=0)
    widths = []
    for index, run in enumerate(comparison.names):
        cells = [run]
        for _, values in every_line:
            cells.append(values[index])
        widths.append(2 + max(len(cell) for cell in cells))

    def align(cells: Sequence[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return "".join(padded)

    text = [" " * first_width + align(comparison.names)]
    for group, lines in groups.items():
        if lines:
            text.append(group)
        for name, values in lines:
            text.append(f"  {name}".ljust(first_width) + align(values))
    return "\n".join(text)


def as_page(
    comparison: RunComparison, chart: str = "", notes: Sequence[str] = ()
) -> str:
    """Render the table as one HTML file that opens offline.

    Args:
        comparison: the table.
        chart: our own SVG to show above it. By default, the scores of runs in which a
            policy learned by reward.
        notes: sentences to show between chart and table.
    """
    chart = chart or plots.score_against_kl(comparison.learning) or ""
    template = environment().get_template("compare.html")
    return template.render(comparison=comparison, chart=Markup(chart), notes=notes)


def _differences(contents: list[Content]) -> list[Line]:
    """Return the recipe fields whose values differ."""
    recipes = []
    for content in contents:
        fields = content.recipe.model_dump(mode="json")
        recipes.append(dict(_flatten(fields)))
    paths = dict.fromkeys(path for fields in recipes for path in fields)
    differences = []
    for path in paths:
        values = [str(fields.get(path, _NO_VALUE)) for fields in recipes]
        if len(set(values)) > 1:
            differences.append((path, values))
    return differences


def _flatten(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield the path and value of each field that is not a section."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _lines(
    contents: list[Content], measure: Callable[[Content], Mapping[str, str]]
) -> list[Line]:
    """Return a line for each value that at least one run has."""
    by_run = [measure(content) for content in contents]
    names = dict.fromkeys(name for values in by_run for name in values)
    lines = []
    for name in names:
        in_each_run = [values.get(name, _NO_VALUE) for values in by_run]
        lines.append((name, in_each_run))
    return lines


def _accepted(content: Content) -> dict[str, str]:
    return {
        scheme.name: f"{scheme.accepted:,} of {scheme.generated:,}"
        for scheme in content.schemes
    }


def _heldout(content: Content) -> dict[str, str]:
    values = {}
    for name, results in content.train.items():
        accuracy = results.get("heldout_accuracy")
        if accuracy is not None:
            values[name] = as_percent(accuracy, results.get("heldout_ci95"))
    return values


def _reward_learning(content: Content) -> dict[str, str]:
    learning = content.reward_learning
    if learning is None:
        return {}
    first = learning.looks[0]
    last = learning.looks[-1]
    values = {
        "score, in standard deviations": f"{first['score']:.2f} to {last['score']:.2f}",
        "KL divergence, in nats": f"{first['kl']:.2f} to {last['kl']:.2f}",
        "tokens": f"{first['length']:.1f} to {last['length']:.1f}",
    }
    before = learning.right_share(first)
    after = learning.right_share(last)
    if before is not None and after is not None:
        shares = f"{100 * before:.0f} to {100 * after:.0f}"
        values["right answers, %"] = f"{shares} of {last['known']}"
    return values


def _steered(content: Content) -> dict[str, str]:
    values = {}
    for index, round_ in enumerate(_rounds(content), start=1):
        first = round_["distance_first"]
        last = round_["distance_last"]
        if first is not None and last is not None:
            values[f"distance, round {index}"] = f"{first:.2f} to {last:.2f}"
        effective = round_["effective_samples"]
        values[f"effective samples, round {index}"] = f"{effective:.1f}"
    return values


def _rounds(content: Content) -> list[dict[str, Any]]:
    """Return the metrics of SteerLM's rounds."""
    rounds = []
    for results in content.train.values():
        rounds += results.get("rounds", [])
    return rounds


def _served(content: Content) -> dict[str, str]:
    return content.served


def _harness_mean(content: Content) -> dict[str, str]:
    values = {}
    for name, mean in content.harness.mean.items():
        stderr = None if mean.stderr is None else 100 * mean.stderr
        in_percent = Score(100 * mean.value, stderr)
        values[name] = _with_error(in_percent, digits=1)
    return values


def _harness_others(content: Content) -> dict[str, str]:
    values = {}
    for row in content.harness.others:
        for name, score in row.scores.items():
            line = f"{name}: {row.task} {row.metric}, {row.direction}"
            values[line] = _with_error(score, digits=3)
    return values


def _social_bias(content: Content) -> dict[str, str]:
    values = {}
    for row in content.harness.bias:
        for name, score in row.scores.scores.items():
            line = f"{name}: {row.scores.task} {row.scores.metric}"
            if row.ideal is not None:
                line += f", ideal {row.ideal:g}"
            values[line] = _with_error(score, digits=3)
    return values


def _with_error(score: Score, digits: int) -> str:
    text = f"{score.value:.{digits}f}"
    if score.stderr is None:
        return text
    return f"{text} ± {score.stderr:.{digits}f}"


def _bench_name(contents: Sequence[Content]) -> str:
    """Name the graded questions, or use a general term if the runs' questions differ."""
    names = {content.bench_name for content in contents if content.mt_bench}
    return names.pop() if len(names) == 1 else "graded answers"


def _mt_bench(content: Content) -> dict[str, str]:
    values = {}
    for name in checkpoint_names():
        scores = content.mt_bench.get(name)
        if scores and scores["score"] is not None:
            details = [_interval(scores["ci95"]), *_bias(scores)]
            values[name] = f"{scores['score']:.2f} ({'; '.join(details)})"
    return values


def _bias(scores: dict[str, Any]) -> list[str]:
    """Return the judge's known biases as text, as far as they were measured."""
    bias = scores.get("bias", {})
    shares = {
        "flips": bias.get("flip_rate"),
        "longer wins": bias.get("longer_wins"),
    }
    return [
        f"{label} {100 * share:.0f} %"
        for label, share in shares.items()
        if share is not None
    ]


def _interval(ci95: list[float] | None) -> str:
    return f"{ci95[0]:.2f} to {ci95[1]:.2f}" if ci95 else _NO_VALUE


def _dollars(content: Content) -> dict[str, str]:
    return {role: f"{calls['usd']:,.2f}" for role, calls in content.calls.items()}


def _seconds(content: Content) -> dict[str, str]:
    return {
        stage.name: f"{stage.seconds:,.0f}"
        for stage in content.stages
        if stage.status == "done"
    }


def _commercial_use(content: Content) -> dict[str, str]:
    return {"verdict": content.commercial_use["verdict"]}
