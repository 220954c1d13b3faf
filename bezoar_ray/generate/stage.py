"""The generate stage: seeds in, one Ray Data pass over the works of all schemes, samples out in the order of ids."""

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

import orjson

from bezoar_ray import sources
from bezoar_ray.errors import RecipeError
from bezoar_ray.fan_out import Line, fan_out
from bezoar_ray.generate import evol_instruct, lamini, orca
from bezoar_ray.generate.work import Work
from bezoar_ray.recipe import SCHEMES, Recipe
from bezoar_ray.rows import Sample, Seed
from bezoar_ray.samples import write_samples
from bezoar_ray.sources import Loaded
from bezoar_ray.stage import Context, Outcome

_FAILED_SEEDS = "logs/seeds-failed.txt"
_SEEDS = {"lamini": "dolly", "evol_instruct": "dolly", "orca": "flan"}  # what each scheme starts from
_PLANS = {"lamini": lamini.plan, "evol_instruct": evol_instruct.plan, "orca": orca.plan}
_FUNCTIONS = {"lamini": lamini.lamini, "evol_instruct": evol_instruct.evol_instruct, "orca": orca.orca}


def run(context: Context) -> Outcome:
    """Make the rows that `data/<scheme>/generated` holds."""
    loaded = _read(context)
    works = plan(context.recipe, loaded["dolly"].rows, loaded["flan"].rows)
    samples = _generate(works, context)
    files, counts = [], {}
    for scheme in asked(context.recipe):
        rows = [sample for sample in samples if sample.scheme == scheme]
        files += write_samples(context.store, scheme, "generated", rows)
        used = {seed.id for work in works if work.scheme == scheme for seed in work.seeds}
        counts[scheme] = {
            "seeds": len(used),
            "seeds_failed": len(loaded[_SEEDS[scheme]].failed),
            "generated": len(rows),
        }
    return Outcome(files, {"data": counts})


def asked(recipe: Recipe) -> list[str]:
    """The schemes that the recipe does not leave out."""
    return [scheme for scheme in SCHEMES if getattr(recipe.generate, scheme)]


def plan(recipe: Recipe, dolly: list[Seed], flan: list[Seed]) -> list[Work]:
    """The works of all schemes; the same for the same recipe seed and rows.

    Raises:
        RecipeError: a scheme has no seed to start from.
    """
    seeds, works = {"dolly": dolly, "flan": flan}, []
    for scheme in asked(recipe):
        if not seeds[_SEEDS[scheme]]:
            raise RecipeError(
                f"generate.{scheme} starts from seeds.{_SEEDS[scheme]}, which holds no usable row. "
                f"Add a source, or leave the scheme out with generate.{scheme}: null"
            )
        works += _PLANS[scheme](getattr(recipe.generate, scheme), recipe.seed, seeds[_SEEDS[scheme]])
    return works


def expected(recipe: Recipe, works: list[Work]) -> int:
    """How many rows the works will give."""
    made, evolved = recipe.generate.lamini, recipe.generate.evol_instruct
    rows = {"lamini": made.per_call if made else 0, "evol_instruct": evolved.epochs if evolved else 0, "orca": 1}
    return sum(rows[work.scheme] for work in works)


def _read(context: Context) -> dict[str, Loaded[Seed]]:
    """The seeds by kind; what is malformed among them is logged and counted."""
    kinds = {_SEEDS[scheme] for scheme in asked(context.recipe)}
    seeds = context.recipe.seeds
    loaded = {kind: sources.read(getattr(seeds, kind) if kind in kinds else (), kind) for kind in ("dolly", "flan")}
    failed = loaded["dolly"].failed + loaded["flan"].failed
    context.store.remove(_FAILED_SEEDS)
    if failed:
        context.store.replace(_FAILED_SEEDS, "\n".join(failed) + "\n")
        context.progress.say(f"{len(failed)} malformed seed rows are left out: see {_FAILED_SEEDS}; first: {failed[0]}")
    return loaded


def _generate(works: list[Work], context: Context) -> list[Sample]:
    recipe, total = context.recipe, expected(context.recipe, works)
    line = Line(recipe.teacher, str(context.store.root), "teacher", context.session)
    samples: list[Sample] = []
    for row in fan_out([work.to_json() for work in works], partial(_answer, _parts(recipe)), line):
        sample = Sample.from_row(orjson.loads(row))
        samples.append(replace(sample, teacher=recipe.teacher.model, teacher_license=recipe.teacher.license))
        context.progress.update(len(samples), total)
    return samples


def _parts(recipe: Recipe) -> dict[str, Any]:
    return {scheme: getattr(recipe.generate, scheme) for scheme in asked(recipe)}


async def _answer(parts: dict[str, Any], item: bytes, talker: Any) -> AsyncIterator[bytes]:
    """The rows of one work, in an actor."""
    work = Work.from_json(item)
    async for sample in _FUNCTIONS[work.scheme](work, talker.for_row(work.id), parts[work.scheme]):
        yield orjson.dumps(sample.to_row())
