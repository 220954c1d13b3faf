"""Check this machine, and list what each packaged recipe is missing on it."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from bezoar_ray.errors import RecipeError
from bezoar_ray.llm.engine import installed_vllm, is_cpu_build
from bezoar_ray.plan import Plan, plan
from bezoar_ray.recipe import (
    ModelSection,
    Recipe,
    SourceSection,
    load_recipe,
    recipe_names,
)
from bezoar_ray.recipe.section import matches
from bezoar_ray.runs.preflight import Findings, check
from bezoar_ray.runtime.caches import hub_cache, unwritable
from bezoar_ray.runtime.capacity import requests_of
from bezoar_ray.runtime.embedded_world import is_world_missing, world_folder
from bezoar_ray.runtime.gpus import GPUS, USUAL, Gpu, kind_of
from bezoar_ray.stages import TOGETHER, working_stages

_WHEELS = {
    ("Linux", "x86_64"),
    ("Linux", "aarch64"),
}  # what the pinned CPU stack has wheels for
_NEEDED = (
    "ray",
    "torch",
    "vllm",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "lm_eval",
    "openai",
)
_DOCKER = """docker build -f cluster/Dockerfile -t bezoar-ray:cpu .
    docker run --rm -v "$PWD/runs:/bezoar/runs" bezoar-ray:cpu run tiny"""


def report(recipes: Iterable[str] = ()) -> str:
    """The findings as text, of some recipes or, without trying their parts, of all packaged ones. Keys are looked for
    by name; what they hold is never shown."""
    gpus = graphics()
    lines = [
        "This machine",
        *(f"  {name:<10} {value}" for name, value in _machine(gpus)),
        "",
        "Recipes",
    ]
    for name in recipes or recipe_names():
        recipe = load_recipe(name)
        lines += _recipe_lines(
            recipe, gpus, check(recipe, working_stages()) if recipes else Findings()
        )
    advice = list(_advice())
    return "\n".join(
        [
            *lines,
            *(["", "What to do", *(f"  {line}" for line in advice)] if advice else []),
        ]
    )


def _machine(gpus: list[str]) -> Iterator[tuple[str, str]]:
    import psutil

    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(".")
    yield (
        "system",
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    )
    slow = "" if gpus else "; bfloat16 is trained in float32"
    yield "cores", f"{os.cpu_count()}{_instructions(slow)}"
    yield (
        "memory",
        f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB free",
    )
    yield "disk", f"{disk.free / 2**30:.1f} GiB free here"
    yield "GPU", "; ".join(gpus) or "none"
    yield "vLLM", vllm_build()
    yield (
        "packages",
        f"missing: {', '.join(missing)}"
        if (missing := missing_packages())
        else "all there",
    )
    yield (
        "keys",
        ", ".join(
            f"{name} {'is set' if os.environ.get(name) else 'is not set'}"
            for name in _key_names()
        ),
    )
    yield "tiny world", _tiny_world()


def graphics() -> list[str]:
    """The GPUs that nvidia-smi knows, with their memory; empty without one."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(
            query, capture_output=True, text=True, timeout=20, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in found.splitlines() if line.strip()]


def vllm_build() -> str:
    """Which build of vLLM is installed."""
    found = installed_vllm()
    if not found:
        return "not installed"
    return f"{'CPU' if is_cpu_build() else 'CUDA'} build, {' '.join(found)}"


def missing_packages() -> list[str]:
    """Packages of the stack that cannot be found."""
    return [name for name in _NEEDED if importlib.util.find_spec(name) is None]


def _instructions(without_avx512: str) -> str:
    """The vector instructions that decide how fast, and whether, a CPU runs vLLM and trains."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return ""
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "amx_tile": "AMX", "asimd": "NEON"}
    found = [name for flag, name in known.items() if flag in flags]
    note = without_avx512 if "AVX2" in found and "AVX-512" not in found else ""
    return f" ({', '.join(found)}{note})" if found else ""


def _key_names() -> list[str]:
    keys = {
        part.api_key_env
        for name in recipe_names()
        for _, part in models(load_recipe(name))
        if part.api_key_env
    }
    return [*sorted(keys), "HF_TOKEN"]


def _tiny_world() -> str:
    folder = world_folder()
    return (
        f"built, in {folder}"
        if folder.exists()
        else "not built: the first `bezoar run tiny` builds it in 5 to 15 minutes"
    )


# What a recipe misses.


def models(recipe: Recipe) -> list[tuple[str, ModelSection]]:
    """The models that a recipe talks to, teachers and judges, each with the stage that does."""
    found: list[tuple[str, ModelSection]] = [
        ("generate", part) for part in recipe.teachers
    ]
    found += [
        ("filter", part) for part in (recipe.judges if recipe.filter.judge else ())
    ]
    return found + [
        ("evaluate", part)
        for part in (recipe.mt_bench_judges if recipe.evaluate.mt_bench else ())
    ]


def misses(recipe: Recipe, gpus: list[str]) -> list[str]:
    """A sentence for each thing that this machine lacks for a recipe."""
    return _misses(recipe, gpus, plans(recipe, gpus))


def _misses(recipe: Recipe, gpus: list[str], planned: list[Plan]) -> list[str]:
    files = [line for _, line in missing_files(recipe)]
    machine = [*_packages(), *_gpus(recipe, gpus), *_too_large(planned, gpus)]
    return list(
        dict.fromkeys(
            [*machine, *_keys(recipe), *_hub(recipe), *_caches(recipe), *files]
        )
    )


def _recipe_lines(recipe: Recipe, gpus: list[str], tried: Findings) -> list[str]:
    planned = plans(recipe, gpus)
    found = list(dict.fromkeys([*_misses(recipe, gpus, planned), *tried.problems]))
    lines = [
        f"  {recipe.name}: {'misses' if found else 'can run'}",
        *(f"    - {line}" for line in found),
    ]
    for plan_here in planned[:1]:
        lines += [
            f"    {need.stage:<9} {need}" for need in plan_here.needs if need.fits
        ]
        lines += [f"    GPU hours: {hours}" for hours in _hours(plan_here)]
    lines += [f"    note: {note}" for note in tried.notes]
    return lines + [f"    not tried: {what}" for what in tried.unchecked]


def plans(recipe: Recipe, gpus: list[str]) -> list[Plan]:
    """A recipe's plan for each kind of GPU of this machine, by `nvidia-smi`'s lines, the largest first."""
    cards = {line.rpartition(", ")[0]: line.rpartition(", ")[2] for line in gpus}
    memory = {
        name: int(told.removesuffix(" MiB"))
        for name, told in cards.items()
        if re.fullmatch(r"\d+ MiB", told)
    }
    largest_first = sorted(memory, key=memory.__getitem__, reverse=True)
    return [plan(recipe, gpu=_gpu(name, memory[name] / 1024)) for name in largest_first]


def _gpu(name: str, memory: float) -> Gpu:
    """A card of this machine; one of a kind that is not known keeps its name."""
    if kind := kind_of(name):
        return replace(GPUS[kind], memory=min(memory, GPUS[kind].memory))
    return replace(GPUS[USUAL], kind=name, memory=memory)


def _hours(found: Plan) -> Iterator[str]:
    """GPU hours by stage, in one line; none of a card whose speed is not known."""
    hours: dict[str, float] = {}
    for step in found.steps:
        hours[step.stage] = hours.get(step.stage, 0.0) + step.gpu_hours
    if found.needs and all(need.gpu.kind in GPUS for need in found.needs):
        yield ", ".join(f"{stage} {time:.1f}" for stage, time in hours.items() if time)


def _too_large(planned: list[Plan], gpus: list[str]) -> Iterator[str]:
    """What does not fit on the largest card, and the smaller ones on which Ray may start what does."""
    too_large = [
        [need for need in of_card.needs if not need.fits] for of_card in planned
    ]
    for need in too_large[0] if planned else ():
        yield f"GPU memory: {need.stage}: {need}"
    for needs in too_large[1:]:
        if needs and not too_large[0]:
            stages = ", ".join(need.stage for need in needs)
            yield (
                f"GPU memory: {needs[0].gpu.kind} is too small for {stages}, and Ray may choose it: leave it out of "
                "CUDA_VISIBLE_DEVICES"
            )
    if unread := [line for line in gpus if not line.endswith(" MiB")]:
        yield f"GPU memory: nvidia-smi does not say how much {unread[0].rpartition(', ')[0]} has"


def _packages() -> Iterator[str]:
    if missing := missing_packages():
        yield f"packages: {', '.join(missing)}"


def _running_together() -> Iterator[tuple[str, ...]]:
    """The stages that hold their GPUs at the same time."""
    yield from TOGETHER
    yield from ((stage,) for stage in working_stages())


def _gpus(recipe: Recipe, gpus: list[str]) -> Iterator[str]:
    asked, stages = max(
        (
            sum(
                ask.count * ask.needs.get("GPU", 0.0)
                for stage in together
                for ask in requests_of(recipe, stage)
            ),
            together,
        )
        for together in _running_together()
    )
    if asked > len(gpus):
        who = " and ".join(stages)
        yield f"GPUs: {who} asks for {asked:g}, this machine has {len(gpus)} (a Ray cluster may have them: RAY_ADDRESS)"
    if asked and (not installed_vllm() or is_cpu_build()):
        yield "vLLM's CUDA build: install the extra `gpu` in place of `cpu`"


def _keys(recipe: Recipe) -> Iterator[str]:
    for _, part in models(recipe):
        if part.api_key_env and not os.environ.get(part.api_key_env):
            yield f"a key: set {part.api_key_env} for {part.model}"


def _hub(recipe: Recipe) -> Iterator[str]:
    """Hub models and data that are not in the cache; a `/` tells a hub's name from an embedded model's."""
    run_here = [part.model for _, part in models(recipe) if not part.base_url] + [
        recipe.base.model
    ]
    run_here += [recipe.filter.meaning.model] if recipe.filter.meaning else []
    names = [
        f"models--{name}"
        for name in run_here
        if "/" in name and not Path(name).exists()
    ]
    names += [
        f"datasets--{_dataset(part)}"
        for part in _sources(recipe)
        if part.source.startswith("hub:")
    ]
    absent = [
        name
        for name in dict.fromkeys(names)
        if not (hub_cache() / name.replace("/", "--")).exists()
    ]
    if absent:
        blocked = (
            " But HF_HUB_OFFLINE is set."
            if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "")
            else ""
        )
        listed = ", ".join(name.split("--", 1)[1] for name in absent)
        yield f"from the Hugging Face hub, at first use: {listed}.{blocked}"


def _caches(recipe: Recipe) -> Iterator[str]:
    """Those that the recipe would fill, and cannot."""
    return unwritable(
        is_world_missing(recipe),
        hub=any(_hub(recipe)),
        datasets=recipe.evaluate.harness is not None,
    )


def _sources(recipe: Recipe) -> tuple[SourceSection, ...]:
    return (*recipe.seeds.dolly, *recipe.seeds.flan, *recipe.seeds.hh_rlhf)


def _dataset(part: SourceSection) -> str:
    return part.source.removeprefix("hub:").partition(":")[0]


def missing_files(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The stage that would read it, and a sentence, for each file that the recipe names and that is not there."""
    bench, lamini = recipe.evaluate.mt_bench, recipe.generate.lamini
    if lamini and lamini.topics and not Path(lamini.topics).is_file():
        yield "generate", f"generate.lamini.topics: no file {lamini.topics!r}"
    for scheme, part in recipe.generate.own.items():
        if not Path(part.path).is_file():
            yield "generate", f"generate.own.{scheme}.function: no file {part.path!r}"
    for scheme, path in recipe.filter.rubrics.items():
        if not Path(path).is_file():
            yield "filter", f"filter.rubrics.{scheme}: no file {path!r}"
    for field in ("questions", "references", "prompts") if bench else ():
        name = getattr(bench, field)
        if name and name != "tiny" and not Path(name).is_file():
            where = "See fastchat/llm_judge/data/mt_bench in FastChat, or --set evaluate.mt_bench=null"
            yield "evaluate", f"evaluate.mt_bench.{field}: no file {name!r}. {where}"
            if field == "questions" and recipe.filter.decontaminate:
                yield (
                    "filter",
                    f"evaluate.mt_bench.{field}: no file {name!r}, to keep out of the data. {where}",
                )
    for field in ("answers", "judgments") if bench else ():
        for pattern in getattr(bench, field):
            if not matches(pattern):
                yield "evaluate", f"evaluate.mt_bench.{field}: no file {pattern!r}"
    yield from _training_files(recipe)
    folder = recipe.evaluate.harness and recipe.evaluate.harness.include_path
    if folder and folder != "tiny" and not Path(folder).is_dir():
        yield "evaluate", f"evaluate.harness.include_path: no folder {folder!r}"


def _training_files(recipe: Recipe) -> Iterator[tuple[str, str]]:
    try:
        _ = recipe.template
    except RecipeError as error:
        yield "sft", str(error)
    named = {
        f"sft.data.{name}": ("sft", (part,)) for name, part in recipe.sft.data.items()
    }
    for field, (stage, parts) in (
        named | {"seeds.hh_rlhf": ("hh-sft", recipe.seeds.hh_rlhf)}
    ).items():
        for part in parts:
            if (
                part.source != "tiny"
                and not part.source.startswith("hub:")
                and not matches(part.source)
            ):
                yield stage, f"{field}: no file {part.source!r}"
    if not recipe.seeds.hh_rlhf:
        yield (
            "hh-sft",
            "seeds.hh_rlhf: hh-sft and align learn from its conversations; name a source",
        )
    adapter = recipe.sft.adapter
    if adapter and not Path(adapter).is_dir() and adapter.count("/") != 1:
        yield "sft", f"sft.adapter: no folder {adapter!r}, and no OWNER/NAME of a hub"


def _advice() -> Iterator[str]:
    import psutil

    if (platform.system(), platform.machine()) not in _WHEELS:
        yield f"The CPU stack has no wheels for {platform.system()} {platform.machine()}. Use the container:"
        yield f"  {_DOCKER}"
    elif missing_packages():
        yield "Install the stack: `make demo` in a clone does, or the `uv` command of the README."
    if psutil.virtual_memory().total < 7.5 * 2**30:
        yield "`bezoar run tiny` needs about 8 GiB of memory; close other programs."
    if shutil.disk_usage(".").free < 5 * 2**30:
        yield "There are less than 5 GiB of free disk here; the stack alone takes about 4."
