"""`generate.vs_vllm`: output tokens a second of our graph over those of `vllm.LLM.generate`, both steady: engine starts
and the first and last tenth of the rows are left out of ours, start and warm-up out of vLLM's."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import fmean

from bezoar_ray.cluster import ray_session
from bezoar_ray.fan_out import Pass, Place, fan_out
from bezoar_ray.items import spool
from bezoar_ray.llm.models import model_path
from bezoar_ray.recipe import load_recipe

PROMPTS = 3_000
SAMPLING = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 128}


def figures() -> Iterator[tuple[str, list[float]]]:
    """Our speed over the mean of vLLM's before and after, on the same prompts and model, three times."""
    with ray_session():
        theirs, ratios = [_theirs()], []
        for _ in range(3):
            rate = ours()
            theirs.append(_theirs())
            ratios.append(round(rate / fmean(theirs[-2:]), 4))
        yield "generate.vs_vllm", ratios


def prompts() -> list[str]:
    """Orca's queries as the tiny teacher gets them."""
    from bezoar_ray import sources

    seeds = [seed.instruction for seed in sources.read(load_recipe("tiny").seeds.flan, "flan").rows]
    return [f"{seeds[n % len(seeds)]}{' ' * (n // len(seeds))}" for n in range(PROMPTS)]


async def _ask(item: bytes, talker) -> Iterator[bytes]:
    reply = await talker.for_row(item.decode())([{"role": "user", "content": json.loads(item)}], step="answer")
    yield json.dumps([time.monotonic(), reply.tokens_out]).encode()


def ours() -> float:
    """Our tokens a second, steady, in the Ray that is running."""
    settings = {"max_tokens": SAMPLING["max_tokens"], "max_in_flight": 384}  # half as many again as vLLM runs at a time
    teacher = load_recipe("tiny").teachers[0].model_copy(update=settings)
    with tempfile.TemporaryDirectory() as folder:
        items = spool((json.dumps(prompt).encode() for prompt in prompts()), Path(folder) / "items.arrow")
        rows = fan_out([(items, Pass(_ask, teacher, "teacher"))], [], Place(folder, "s"))
        return steady([tuple(json.loads(row)) for row in rows])


def steady(rows: list[tuple[float, int]]) -> float:
    """Tokens a second of rows by when they were done, their first and last tenth left out."""
    rows = sorted(rows)[len(rows) // 10 : -len(rows) // 10]
    return sum(tokens for _, tokens in rows[1:]) / (rows[-1][0] - rows[0][0])


def _theirs() -> float:
    """In a process of its own: an engine keeps its memory. One thread, as Ray gives our actor of one CPU."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs.benchmarks.generate"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])


def _measure() -> float:
    from vllm import LLM, SamplingParams

    from bezoar_ray.llm.engine import on_this_machine

    engine = LLM(model=model_path("tiny-teacher"), dtype="float32", disable_log_stats=True, **on_this_machine({}))
    tokenizer = engine.get_tokenizer()
    render = partial(tokenizer.apply_chat_template, add_generation_prompt=True, tokenize=False)
    asked = [render([{"role": "user", "content": prompt}]) for prompt in prompts()]
    sampling = SamplingParams(**SAMPLING)
    engine.generate(asked[:64], sampling, use_tqdm=False)
    began = time.monotonic()
    answers = engine.generate(asked, sampling, use_tqdm=False)
    return sum(len(answer.outputs[0].token_ids) for answer in answers) / (time.monotonic() - began)


if __name__ == "__main__":
    print(_measure())
