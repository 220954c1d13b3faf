"""`generate.vs_vllm`: output tokens a second of our graph (Ray Data, client, ledger) over those of `vllm.LLM.generate`.

Both sides have the same prompts, model, engine arguments and threads, and the same measure: all tokens over the time
from the first call to the last answer. Engine starts are left out of both.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from bezoar_ray.data.row import StageRow
from bezoar_ray.data.spool import spool_rows
from bezoar_ray.llm.chat import Chat, Sampling
from bezoar_ray.llm.model_identity import model_path
from bezoar_ray.pipeline.actor_pool import ModelStage, RunContext, stream_rows
from bezoar_ray.recipe import ModelSection, load_recipe
from bezoar_ray.runtime.session import ray_session

PROMPTS = 3_000


@dataclass(frozen=True)
class Load:
    """What both sides are given."""

    model: str
    prompts: tuple[str, ...]
    longest: tuple[int, ...]
    """Tokens of each answer, at most."""
    temperature: float = 1.0
    top_p: float = 0.95
    dtype: str = "bfloat16"
    engine: dict[str, Any] = field(default_factory=dict)
    in_flight: int = 384
    num_gpus: float = 0.0
    num_cpus: float = 1.0


@dataclass(frozen=True)
class Prompt(StageRow):
    """One call to be made."""

    id: str
    text: str
    longest: int
    """Tokens of the answer, at most."""


@dataclass(frozen=True)
class Answered(StageRow):
    """One call: when it was made, when its answer was there, and the tokens of the answer."""

    id: str
    began: float
    ended: float
    tokens: int


def figures() -> Iterator[tuple[str, list[float]]]:
    """Our speed over the mean of vLLM's before and after, three times."""
    load = tiny_load()
    with ray_session():
        theirs_before, ratios = theirs(load), []
        for _ in range(3):
            rate = whole(ours(load))
            theirs_after = theirs(load)
            ratios.append(round(rate / fmean((theirs_before, theirs_after)), 4))
            theirs_before = theirs_after
        yield "generate.vs_vllm", ratios


def tiny_load() -> Load:
    """Orca's queries to the tiny teacher, half as many again in flight as vLLM runs at a time."""
    return Load("tiny-teacher", tuple(prompts()), (128,) * PROMPTS, dtype="float32")


def prompts() -> list[str]:
    """Orca's queries as the tiny teacher gets them."""
    from bezoar_ray import sources

    seeds = [
        seed.instruction
        for seed in sources.read(load_recipe("tiny").seeds.flan, "flan").rows
    ]
    return [f"{seeds[n % len(seeds)]}{' ' * (n // len(seeds))}" for n in range(PROMPTS)]


def ours(load: Load) -> list[Answered]:
    """The calls of our graph, in the Ray that is running."""
    teacher = ModelSection(
        model=load.model,
        dtype=load.dtype,
        temperature=load.temperature,
        top_p=load.top_p,
        max_in_flight=load.in_flight,
        num_gpus=load.num_gpus,
        num_cpus=load.num_cpus,
    ).model_copy(update={"engine": load.engine})  # dummy weights are no recipe's
    calls = (
        Prompt(str(number), text, longest)
        for number, (text, longest) in enumerate(
            zip(load.prompts, load.longest, strict=True)
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        spool = spool_rows(calls, Path(folder) / "rows.arrow", Prompt)
        ask = partial(_ask, temperature=load.temperature, top_p=load.top_p)
        stage = ModelStage(ask, teacher, "teacher", Prompt, Answered)
        return list(stream_rows([(spool, stage)], [], RunContext(folder, "s")))


async def _ask(
    prompt: Prompt, chat: Chat, *, temperature: float, top_p: float
) -> AsyncIterator[Answered]:
    began = time.monotonic()
    reply = await chat(
        [{"role": "user", "content": prompt.text}],
        step="answer",
        sampling=Sampling(temperature, top_p, prompt.longest),
    )
    yield Answered(prompt.id, began, time.monotonic(), reply.tokens_out)


def whole(calls: list[Answered]) -> float:
    """Tokens a second from the first call to the last answer."""
    seconds = max(call.ended for call in calls) - min(call.began for call in calls)
    return sum(call.tokens for call in calls) / seconds


def steady(ends: list[tuple[float, int]]) -> float:
    """Tokens a second of answers by when they were there, the first and last tenth of them left out."""
    ends = sorted(ends)[len(ends) // 10 : -len(ends) // 10]
    return sum(tokens for _, tokens in ends[1:]) / (ends[-1][0] - ends[0][0])


def theirs(load: Load) -> float:
    """vLLM's tokens a second, in a process of its own: an engine keeps its memory. It has as many threads as Ray gives
    our actor."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "load.json")
        path.write_text(json.dumps(asdict(load)))
        done = subprocess.run(
            [sys.executable, "-m", "jobs.benchmarks.generate", str(path)],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"OMP_NUM_THREADS": str(int(load.num_cpus))},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"vLLM failed: {done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def _measure(load: Load) -> float:
    from vllm import LLM, SamplingParams

    from bezoar_ray.llm.engine import complete_engine_arguments

    arguments = complete_engine_arguments(load.engine, load.num_gpus)
    engine = LLM(
        model=model_path(load.model),
        dtype=load.dtype,
        disable_log_stats=True,
        **arguments,
    )
    render = partial(
        engine.get_tokenizer().apply_chat_template,
        add_generation_prompt=True,
        tokenize=False,
    )
    sampling = [
        SamplingParams(temperature=load.temperature, top_p=load.top_p, max_tokens=n)
        for n in load.longest
    ]
    others = [
        prompt[::-1] for prompt in load.prompts[:64]
    ]  # the prompts themselves would be in the prefix cache
    engine.generate(others, sampling[:64], use_tqdm=False)
    began = time.monotonic()
    asked = [render([{"role": "user", "content": prompt}]) for prompt in load.prompts]
    answers = engine.generate(asked, sampling, use_tqdm=False)
    return sum(len(answer.outputs[0].token_ids) for answer in answers) / (
        time.monotonic() - began
    )


if __name__ == "__main__":
    print(_measure(Load(**json.loads(Path(sys.argv[1]).read_text()))))
