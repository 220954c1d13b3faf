"""The embedded world: small real models, seeds, held-out items and questions, made on this machine from our text."""

import ast
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from bezoar_ray.errors import BezoarError

_PROCESSES = 2  # always, so that the weights do not depend on the number of cores
_JUDGE_ONLY = ("judge.py", "grading.py", "truth.py")  # the judge needs no build


@dataclass(frozen=True)
class World:
    """Where the parts of the embedded world lie."""

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
        """The world in a folder."""
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


def world(say: Callable[[str], None] = print) -> World:
    """The embedded world, built first where this code's version of it is not in the cache (5 to 15 minutes).

    The cache is the folder that BEZOAR_CACHE names, or ~/.cache/bezoar_ray.

    Raises:
        BezoarError: the build failed; the message holds its last lines.
    """
    folder = cache() / f"tiny-{fingerprint()}"
    if not folder.exists():
        with _lock(folder.with_suffix(".lock"), say):
            if not folder.exists():
                _build(folder, say)
    return World.at(folder)


def cache() -> Path:
    """The user's cache directory for bezoar_ray."""
    return (
        Path(os.environ.get("BEZOAR_CACHE") or "~/.cache/bezoar_ray")
        .expanduser()
        .absolute()
    )


def fingerprint() -> str:
    """12 hex digits over the code and prompts that make the world.

    Python files count as syntax trees: a change of layout or of a comment makes no new world.
    """
    package = resources.files("bezoar_ray")
    modules = [
        path for path in package.joinpath("tiny").iterdir() if path.name.endswith(".py")
    ]
    modules.sort(key=lambda path: path.name)
    sources = [path for path in modules if path.name not in _JUDGE_ONLY]
    sources.append(package.joinpath("generate/prompts.py"))
    digest = hashlib.sha256()
    for path in sources:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        digest.update(path.name.encode() + ast.dump(tree).encode())
    digest.update(package.joinpath("recipes/alpaca.jinja").read_bytes())
    return digest.hexdigest()[:12]


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
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    say("building the embedded world (once; 5 to 15 minutes)")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={_PROCESSES}",
    ]
    command = [*torchrun, "-m", "bezoar_ray.tiny.build", str(partial), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    lines = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as build:
        for line in build.stdout:
            lines.append(line.rstrip())
            if line.startswith(("tiny-", "tokenizer")):
                say(lines[-1])
    if build.returncode:
        raise BezoarError(
            "building the embedded world failed:\n" + "\n".join(lines[-15:])
        )
    partial.rename(folder)
