"""report.html: one file that opens offline. Text from models and data is escaped, and no script runs in it."""

from functools import cache
from importlib import resources

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bezoar_ray.report import plots
from bezoar_ray.report.content import Content
from bezoar_ray.runtime.progress import duration


def render(content: Content) -> str:
    """The page's HTML."""
    charts = {
        "funnel": plots.funnel(content.schemes),
        "losses": plots.losses(content.train),
        "bars": plots.bars(content.harness),
        "radar": plots.radar(content.mt_bench),
    }
    return (
        environment()
        .get_template("report.html")
        .render(
            content=content,
            charts={
                name: Markup(svg) for name, svg in charts.items() if svg
            },  # ours; its texts are escaped in it
            recipe_yaml=yaml.safe_dump(
                content.recipe.model_dump(mode="json"),
                sort_keys=False,
                allow_unicode=True,
            ),
            colours=plots.COLOURS,
        )
    )


@cache
def environment() -> Environment:
    """Templates with everything escaped, Markdown's included: a card is read as HTML in the end."""
    found = Environment(
        loader=PackageLoader("bezoar_ray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "count": _count,
        "share": _share,
        "percent": _percent,
        "fixed": _fixed,
        "dollars": _dollars,
    }
    found.filters["duration"] = duration
    found.globals["style"] = Markup(
        (resources.files("bezoar_ray.report") / "templates" / "style.css").read_text()
    )
    return found


def _count(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}"


def _share(number: float | None) -> str:
    return "–" if number is None else f"{100 * number:.1f}"


def _percent(number: float | None) -> str:
    return "–" if number is None else f"{100 * number:.1f} %"


def _fixed(number: float | None, digits: int = 2) -> str:
    return "–" if number is None else f"{number:.{digits}f}"


def _dollars(number: float | None) -> str:
    return "–" if number is None else f"${number:,.2f}"
