"""Runs side by side: what differs in their recipes, and what came of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from bezoar_ray.recipe import Recipe
from bezoar_ray.report.content import Content, gather
from bezoar_ray.report.page import environment
from bezoar_ray.stages import checkpoint_names
from bezoar_ray.stats import as_percent
from bezoar_ray.store import Store

Line = tuple[str, list[str]]
"""A measure, and its value in each run as text; a dash where a run has none."""


@dataclass(frozen=True)
class RunComparison:
    """Runs by name, the recipe fields in which they differ, and their results in groups of lines."""

    names: list[str]
    differences: list[Line]
    results: dict[str, list[Line]]


def compare(runs: list[tuple[str, Recipe, Store]]) -> RunComparison:
    """Runs, each with its recipe and run directory, in the order given."""
    contents = [gather(recipe, store) for _, recipe, store in runs]
    return RunComparison(
        [name for name, _, _ in runs],
        _differences(contents),
        {
            "rows accepted": _lines(contents, _accepted),
            "held-out pairs right, 95 %": _lines(contents, _heldout),
            "served": _lines(contents, lambda content: content.served),
            "harness mean": _lines(contents, _harness),
            "harness, in no mean": _lines(contents, _harness_others),
            f"{_bench_name(contents)}, 95 %": _lines(contents, _mt_bench),
            "dollars": _lines(
                contents,
                lambda content: {
                    role: f"{part['usd']:,.2f}" for role, part in content.calls.items()
                },
            ),
            "seconds": _lines(
                contents,
                lambda content: {
                    stage.name: f"{stage.seconds:,.0f}"
                    for stage in content.stages
                    if stage.status == "done"
                },
            ),
            "commercial use": _lines(
                contents, lambda content: {"verdict": content.commercial_use["verdict"]}
            ),
        },
    )


def as_text(found: RunComparison) -> str:
    """For a terminal."""
    groups = [("recipe", found.differences), *found.results.items()]
    width = max((len(name) for _, lines in groups for name, _ in lines), default=0) + 2
    sizes = [
        max(len(name), *(len(values[n]) for _, lines in groups for _, values in lines))
        + 2
        for n, name in enumerate(found.names)
    ]
    text = [
        " " * width
        + "".join(
            name.rjust(size) for name, size in zip(found.names, sizes, strict=True)
        )
    ]
    for group, lines in groups:
        text += [group] if lines else []
        for name, values in lines:
            shown = "".join(
                value.rjust(size) for value, size in zip(values, sizes, strict=True)
            )
            text.append(f"  {name}".ljust(width) + shown)
    return "\n".join(text)


def as_page(found: RunComparison, chart: str = "", notes: Sequence[str] = ()) -> str:
    """One HTML file that opens offline, with a chart of ours (SVG) on top if there is one, and notes below it."""
    return (
        environment()
        .get_template("compare.html")
        .render(found=found, chart=Markup(chart), notes=notes)
    )


def _differences(contents: list[Content]) -> list[Line]:
    flat = [
        dict(_leaves(content.recipe.model_dump(mode="json"))) for content in contents
    ]
    paths = dict.fromkeys(path for fields in flat for path in fields)
    values = {path: [str(fields.get(path, "–")) for fields in flat] for path in paths}
    return [(path, found) for path, found in values.items() if len(set(found)) > 1]


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _lines(
    contents: list[Content], measure: Callable[[Content], Mapping[str, str]]
) -> list[Line]:
    found = [measure(content) for content in contents]
    names = dict.fromkeys(name for values in found for name in values)
    return [(name, [values.get(name, "–") for values in found]) for name in names]


def _accepted(content: Content) -> dict[str, str]:
    return {
        scheme.name: f"{scheme.accepted:,} of {scheme.generated:,}"
        for scheme in content.schemes
    }


def _heldout(content: Content) -> dict[str, str]:
    scores = {
        name: part.get("heldout_accuracy") for name, part in content.train.items()
    }
    return {
        name: as_percent(score, content.train[name].get("heldout_ci95"))
        for name, score in scores.items()
        if score is not None
    }


def _harness(content: Content) -> dict[str, str]:
    return {
        name: f"{100 * mean.value:.1f}"
        + (f" ± {100 * mean.stderr:.1f}" if mean.stderr is not None else "")
        for name, mean in content.harness.mean.items()
    }


def _harness_others(content: Content) -> dict[str, str]:
    return {
        f"{name}: {row.task} {row.metric}, {row.direction}": f"{score.value:.3f}"
        + (f" ± {score.stderr:.3f}" if score.stderr is not None else "")
        for row in content.harness.others
        for name, score in row.scores.items()
    }


def _bench_name(contents: Sequence[Content]) -> str:
    """What the graded questions are called; a plain word where runs were asked different ones."""
    names = {content.bench_name for content in contents if content.mt_bench}
    return names.pop() if len(names) == 1 else "graded answers"


def _mt_bench(content: Content) -> dict[str, str]:
    scores = {
        name: part
        for name in checkpoint_names()
        if (part := content.mt_bench.get(name)) and part["score"] is not None
    }
    return {
        name: f"{part['score']:.2f} ({_interval(part['ci95'])}{_bias(part)})"
        for name, part in scores.items()
    }


def _bias(part: dict[str, Any]) -> str:
    """What to know of the judge beside its score."""
    shares = {"flips": "flip_rate", "longer wins": "longer_wins"}
    known = {said: part.get("bias", {}).get(name) for said, name in shares.items()}
    return "".join(
        f"; {said} {100 * share:.0f} %"
        for said, share in known.items()
        if share is not None
    )


def _interval(ci95: list[float] | None) -> str:
    return f"{ci95[0]:.2f} to {ci95[1]:.2f}" if ci95 else "–"
