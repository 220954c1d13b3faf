"""Find the files of the embedded world on this machine, or build them first.

The embedded world is what the recipe `tiny` runs on: small models, rows, evaluation
tasks and questions, made by `bezoar_ray/tiny` from our own text. Each machine of a
cluster keeps it in its own cache, so a recipe and everything made from it (fingerprints,
rows, the ledger) hold its names and never a path. The code that makes it runs as a
program of its own and is not imported here.

Rated answers are files apart: they take seconds to make, and a change to them must not
build the models again.
"""

import ast
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from bezoar_ray.errors import BezoarError
from bezoar_ray.recipe import Recipe
from bezoar_ray.runtime.caches import bezoar_cache

_BUILD = "bezoar_ray.tiny.build"
_PROCESSES = 2  # on every machine, as the weights depend on their number
_BUILT_NAMES = re.compile(r'"tiny(-teacher|-base)?"')
"""How a recipe names the parts that have to be built."""
_NOT_BUILT = (
    "__init__.py",
    "judge.py",
    "grading.py",
    "truth.py",
    "rater.py",
    "ratings.py",
)
"""Modules of `tiny` that the world does not depend on: the judge and the rater need no
model."""
_RATINGS = "bezoar_ray.tiny.ratings"
_RATING_MODULES = (
    "draws.py",
    "facts.py",
    "grading.py",
    "manners.py",
    "rater.py",
    "ratings.py",
    "tasks.py",
    "truth.py",
)
"""Modules of `tiny` that the rated answers depend on."""


@dataclass(frozen=True)
class World:
    """Paths of the parts of the embedded world."""

    teacher: Path
    base: Path
    dolly: Path
    flan: Path
    hh_rlhf: Path
    harness: Path
    questions: Path
    references: Path

    @classmethod
    def at(cls, folder: Path) -> "World":
        """Return the world in a folder."""
        return cls(
            teacher=folder / "tiny-teacher",
            base=folder / "tiny-base",
            dolly=folder / "dolly.jsonl",
            flan=folder / "flan.jsonl",
            hh_rlhf=folder / "hh_rlhf.jsonl",
            harness=folder / "harness",
            questions=folder / "question.jsonl",
            references=folder / "reference_answer.jsonl",
        )


@dataclass(frozen=True)
class Ratings:
    """Paths of the embedded world's rated answers and reward benchmarks."""

    helpsteer: Path
    preferences: Path
    reward_bench: Path
    reward_bench_2: Path

    @classmethod
    def at(cls, folder: Path) -> "Ratings":
        """Return the files in a folder."""
        return cls(
            helpsteer=folder / "helpsteer.jsonl",
            preferences=folder / "preferences.jsonl",
            reward_bench=folder / "reward_bench.jsonl",
            reward_bench_2=folder / "reward_bench_2.jsonl",
        )


def find_world(say: Callable[[str], None] = print) -> World:
    """Return the embedded world, and build it first where the cache lacks it.

    A build takes 5 to 15 minutes. Other processes that need the world wait for it.

    Args:
        say: takes each line of progress.

    Raises:
        BezoarError: The build failed. The message holds its last lines.
    """
    folder = world_folder()
    if not folder.exists():
        with _lock(folder.with_suffix(".lock"), say):
            if not folder.exists():  # another process may have built it meanwhile
                _build(folder, say)
    return World.at(folder)


def find_ratings(say: Callable[[str], None] = print) -> Ratings:
    """Return the embedded ratings, and make them first where the cache lacks them.

    That takes seconds, and needs none of the world's models.

    Args:
        say: takes a line if another process is making them.

    Raises:
        BezoarError: They could not be made. The message holds the last lines.
    """
    folder = bezoar_cache() / f"tiny-ratings-{ratings_fingerprint()}"
    if not folder.exists():
        with _lock(folder.with_suffix(".lock"), say):
            if not folder.exists():
                _build_ratings(folder)
    return Ratings.at(folder)


def find_bias_tasks() -> Path:
    """Return the folder of the embedded lm-eval task on bias, and write it if missing.

    lm-eval needs the full path of a task's items, so the packaged files do not do.
    """
    packaged = resources.files("bezoar_ray").joinpath("recipes/harness/tiny")
    names = ("tiny_askers.yaml", "tiny_askers.jsonl")
    texts = {name: packaged.joinpath(name).read_text() for name in names}
    digest = hashlib.sha256("".join(texts.values()).encode()).hexdigest()[:12]
    folder = bezoar_cache() / f"tiny-bias-{digest}"
    items = folder / "tiny_askers.jsonl"
    texts["tiny_askers.yaml"] = texts["tiny_askers.yaml"].replace("{data}", str(items))
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        if not (folder / name).exists():
            # Renamed into place: another process may read the folder meanwhile.
            partial = folder / f"{name}.{os.getpid()}"
            partial.write_text(text)
            partial.rename(folder / name)
    return folder


def world_folder() -> Path:
    """Return where the world of this version of the code is, or will be."""
    return bezoar_cache() / f"tiny-{world_fingerprint()}"


def is_world_missing(recipe: Recipe) -> bool:
    """Tell whether the recipe needs a part of the world, and it is not built yet."""
    # The packaged recipe itself has the name `tiny`.
    names = recipe.model_dump_json(exclude={"name"})
    return bool(_BUILT_NAMES.search(names)) and not world_folder().exists()


def world_fingerprint() -> str:
    """Return 12 hex digits over the code and the prompts that make the world.

    Python files count as syntax trees: a change of layout or of a comment makes no new
    world.
    """
    package = resources.files("bezoar_ray")
    modules = [
        path
        for path in package.joinpath("tiny").iterdir()
        if path.name.endswith(".py") and path.name not in _NOT_BUILT
    ]
    modules.sort(key=lambda path: path.name)
    # The teacher is trained on the schemes' real prompts.
    modules.append(package.joinpath("generate/prompts.py"))
    digest = hashlib.sha256(str(_PROCESSES).encode())
    for path in modules:
        digest.update(_syntax(path))
    # The tokenizer is trained on the template, too.
    digest.update(package.joinpath("recipes/alpaca.jinja").read_bytes())
    return digest.hexdigest()[:12]


def ratings_fingerprint() -> str:
    """Return 12 hex digits over the code that makes the rated answers."""
    package = resources.files("bezoar_ray.tiny")
    digest = hashlib.sha256()
    for name in _RATING_MODULES:
        digest.update(_syntax(package.joinpath(name)))
    return digest.hexdigest()[:12]


def _syntax(path: Traversable) -> bytes:
    """Return the name and the syntax tree of a Python file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return path.name.encode() + ast.dump(tree).encode()


@contextlib.contextmanager
def _lock(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is building the embedded world; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(folder: Path, say: Callable[[str], None]) -> None:
    """Build beside the folder and rename at the end: a folder that exists is whole."""
    partial = _empty_partial(folder)
    say("building the embedded world (once; 5 to 15 minutes)")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={_PROCESSES}",
    ]
    command = [*torchrun, "-m", _BUILD, str(partial), str(folder)]
    # On two cores, two processes of one thread are 1.8 times as fast as one; a second
    # thread of one process hardly helps.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    lines = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as build:
        assert build.stdout
        for line in build.stdout:
            lines.append(line.rstrip())
            if line.startswith(("tiny-", "tokenizer")):
                say(lines[-1])
    if build.returncode:
        last_lines = "\n".join(lines[-15:])
        raise BezoarError(f"building the embedded world failed:\n{last_lines}")
    partial.rename(folder)


def _build_ratings(folder: Path) -> None:
    partial = _empty_partial(folder)
    command = [sys.executable, "-m", _RATINGS, str(partial)]
    build = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if build.returncode:
        last_lines = "\n".join(build.stdout.splitlines()[-15:])
        raise BezoarError(f"making the embedded ratings failed:\n{last_lines}")
    partial.rename(folder)


def _empty_partial(folder: Path) -> Path:
    """Make an empty folder beside one that is to be built."""
    partial = folder.with_name(f"{folder.name}.partial")
    # A build that was killed may have left one.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial
