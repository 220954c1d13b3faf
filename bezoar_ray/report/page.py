"""report.html: one file that opens offline.

Text from models and data is escaped, and the page runs no script.
"""

from functools import cache
from importlib import resources

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bezoar_ray.report import plots
from bezoar_ray.report.content import Content
from bezoar_ray.runtime.progress import duration

_NO_VALUE = "–"


def render(content: Content) -> str:
    """Render the page as HTML."""
    drawn = {
        "funnel": plots.funnel(content.schemes),
        "losses": plots.losses(content.train),
        "score_against_kl": plots.score_against_kl(content.train),
        "bars": plots.bars(content.harness),
        "radar": plots.radar(content.mt_bench),
    }
    # The SVG is ours, and matplotlib has escaped the texts in it.
    charts = {name: Markup(svg) for name, svg in drawn.items() if svg}
    recipe_yaml = yaml.safe_dump(
        content.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True
    )
    template = environment().get_template("report.html")
    return template.render(
        content=content,
        charts=charts,
        recipe_yaml=recipe_yaml,
        colors=plots.COLORS,
    )


@cache
def environment() -> Environment:
    """Return the Jinja environment of all templates.

    Markdown is escaped, too: in the end, a card is read as HTML.
    """
    templates = Environment(
        loader=PackageLoader("bezoar_ray.report"),
        autoescape=True,
        # A misspelled field is an error, and not a gap in the page.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "count": _count,
        "share": _share,
        "percent": _percent,
        "fixed": _fixed,
        "signed": _signed,
        "dollars": _dollars,
        "duration": duration,
    }
    style = resources.files("bezoar_ray.report") / "templates" / "style.css"
    templates.globals["style"] = Markup(style.read_text())
    return templates


def _count(number: float | None) -> str:
    return _NO_VALUE if number is None else f"{number:,.0f}"


def _share(number: float | None) -> str:
    return _NO_VALUE if number is None else f"{100 * number:.1f}"


def _percent(number: float | None) -> str:
    return _NO_VALUE if number is None else f"{100 * number:.1f} %"


def _fixed(number: float | None, digits: int = 2) -> str:
    return _NO_VALUE if number is None else f"{number:.{digits}f}"


def _signed(number: float | None, digits: int = 2) -> str:
    return _NO_VALUE if number is None else f"{number:+.{digits}f}"


def _dollars(number: float | None) -> str:
    return _NO_VALUE if number is None else f"${number:,.2f}"
