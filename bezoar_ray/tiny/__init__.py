"""The embedded world: small real models, rows, held-out items, questions and a judge.

All of it is made on this machine from our own text. `build.py` makes the files;
`runtime/embedded_world.py` runs it and finds them by their names, on every machine of a
cluster by itself. `judge.py` is the judge, a program behind an endpoint.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bezoar_ray.recipe import ModelSection, Recipe
    from bezoar_ray.stages import Truth

JUDGE = "tiny-judge"


@dataclass(frozen=True)
class Resolved:
    """A recipe whose embedded judge has an endpoint."""

    recipe: "Recipe"
    truth: "Truth | None"
    """Says whether a response is right, where the first judge is the embedded one."""


@contextlib.contextmanager
def resolve(recipe: "Recipe", host: str) -> Iterator[Resolved]:
    """Run the embedded judge where the recipe asks it, until the block ends.

    Models, rows, tasks and questions keep their names: the world is at another path on
    each node of a cluster, so each node finds them where it reads them.

    Args:
        recipe: As the user wrote it. Fingerprints and files are made of this one.
        host: The address at which the cluster's nodes reach this machine.

    Raises:
        BezoarError: The judge did not start.
    """
    from bezoar_ray.tiny import judge
    from bezoar_ray.tiny.truth import truth

    known = truth if recipe.judges[0].model == JUDGE else None
    judges = [*recipe.judges, *recipe.mt_bench_judges]
    if any(is_embedded_judge(section) for section in judges):
        with judge.running(host) as url:
            yield Resolved(_with_judge_at(recipe, url), known)
    else:
        yield Resolved(recipe, known)


def is_embedded_judge(section: "ModelSection") -> bool:
    """Tell whether a judge is the embedded one and its endpoint is ours to start."""
    return section.model == JUDGE and section.base_url is None


def _with_judge_at(recipe: "Recipe", url: str) -> "Recipe":
    def with_url(section: "ModelSection") -> "ModelSection":
        if is_embedded_judge(section):
            return section.model_copy(update={"base_url": url})
        return section

    bench = recipe.evaluate.mt_bench
    if bench:
        bench_judges = tuple(map(with_url, bench.judges))
        bench = bench.model_copy(update={"judges": bench_judges})
    evaluate = recipe.evaluate.model_copy(update={"mt_bench": bench})
    judges = tuple(map(with_url, recipe.judges))
    return recipe.model_copy(update={"judges": judges, "evaluate": evaluate})
