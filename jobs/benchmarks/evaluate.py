"""`evaluate.*`: a family of checkpoints served, and MT-Bench and lm-eval through the endpoint, against vLLM alone.

All on the embedded base with random adapters, as many threads on both sides as the recipe gives. `family_memory` and
`family_ready` come from one pair of starts each: four checkpoints against one.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from bezoar_ray.evaluate import harness
from bezoar_ray.evaluate.mt_bench.answers import Answer, converse, remaining_context_of
from bezoar_ray.evaluate.served_endpoint import Endpoint
from bezoar_ray.llm.client import open_client
from bezoar_ray.llm.model_identity import model_path
from bezoar_ray.recipe import MtBench, load_recipe
from bezoar_ray.runtime.embedded_world import find_world
from bezoar_ray.runtime.session import ray_session
from bezoar_ray.serve.app import _free_port, running
from bezoar_ray.serve.arguments import engine_arguments
from bezoar_ray.sources.mt_bench_files import Question, load_questions
from bezoar_ray.stages import checkpoint_names
from bezoar_ray.store import Store
from jobs.benchmarks.family import write_family

RANKS = {"sft": 16, "hh-sft": 32, "dpo": 32}
QUESTIONS = 80
BENCH = MtBench(questions="tiny", max_tokens=64)
_THREADS = {"OMP_NUM_THREADS": f"{load_recipe('tiny').serve.num_cpus:g}"}


def figures() -> Iterator[tuple[str, list[float]]]:
    """Memory and readiness of four checkpoints over one; our time over vLLM's; our requests a second over vLLM's."""
    with tempfile.TemporaryDirectory() as folder:
        family, alone = Store(Path(folder) / "family"), Store(Path(folder) / "alone")
        write_family(
            family, find_world(), RANKS, std=0.02
        )  # near base: answers of some length
        write_family(alone, find_world(), {})
        pairs = [[_started(store) for store in (family, alone)] for _ in range(3)]
        for n, name in enumerate(("family_ready", "family_memory")):
            yield (
                f"evaluate.{name}",
                [round(four[n] / one[n], 4) for four, one in pairs],
            )
        with ray_session(), running(load_recipe("tiny"), family) as base_url:
            for name in checkpoint_names():  # as vLLM's is below
                _post(f"{base_url}/completions", model=name, prompt="The", max_tokens=1)
            yield (
                "evaluate.mt_bench_vs_vllm",
                [_bench(family, base_url) for _ in range(3)],
            )
            yield "evaluate.harness_vs_vllm", _requests_a_second(family, base_url)


def _run(*arguments: str) -> list[float]:
    """The numbers that this module prints last, run with arguments."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs.benchmarks.evaluate", *arguments],
        cwd=Path(__file__).parents[2],
        env=os.environ | _THREADS,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


# Memory and readiness.


def _started(store: Store) -> list[float]:
    """Seconds until every checkpoint has answered, and how much memory all processes have grown by (PSS, bytes)."""
    return _run("start", str(store.root))


def _start(folder: str) -> list[float]:
    with ray_session():
        before, began = _memory(), time.monotonic()
        with running(load_recipe("tiny"), Store(folder)) as base_url:
            with urllib.request.urlopen(f"{base_url}/models") as answer:
                names = [model["id"] for model in json.load(answer)["data"]]
            for name in names:
                _post(f"{base_url}/completions", model=name, prompt="The", max_tokens=1)
            ready = time.monotonic() - began
            return [ready, _memory() - before]


def _memory() -> float:
    """Of this process and all that it has started: Ray's, and once they serve, the engines'."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


def _post(url: str, **body: Any) -> None:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=300).close()


# MT-Bench's answers.


def _bench(family: Store, base_url: str) -> float:
    """Our time for all conversations over vLLM's for the same prompts and as long answers."""
    endpoint = Endpoint.at(base_url, family)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        answers = asyncio.run(_answers(endpoint, folder))
        ours = time.monotonic() - began
        path = Path(folder) / "turns.json"
        path.write_text(
            json.dumps([[a.model, a.question.turns, a.turns] for a in answers])
        )
        (theirs,) = _run("generate", str(family.root), str(path))
    return round(ours / theirs, 4)


def _questions() -> list[Question]:
    embedded = load_questions(BENCH)
    return [
        Question(
            n,
            (q := embedded[n % len(embedded)]).category,
            tuple(f"({n}) {turn}" for turn in q.turns),
        )
        for n in range(QUESTIONS)
    ]


async def _answers(endpoint: Endpoint, folder: str) -> list[Answer]:
    part = (
        load_recipe("tiny")
        .judges[0]
        .model_copy(update={"base_url": endpoint.base_url, "timeout": 600.0})
    )
    room = remaining_context_of(endpoint.tokenizer, endpoint.context)
    talkers = {
        name: open_client(
            part.model_copy(update={"model": name}),
            folder,
            "candidate",
            "s",
            identity=name,
        )
        for name in checkpoint_names()
    }
    held = [
        converse(question, name, talker.for_row(str(question.id)), BENCH, room)
        for name, talker in talkers.items()
        for question in _questions()
    ]
    answers = await asyncio.gather(*held)
    await asyncio.gather(*(talker.close() for talker in talkers.values()))
    return answers


def _generate(folder: str, turns: str) -> list[float]:
    """vLLM's offline class on the same base and adapters: all first turns, then all second ones."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    from bezoar_ray.llm.engine import complete_engine_arguments

    store, held = Store(folder), json.loads(Path(turns).read_text())
    defaults = complete_engine_arguments(
        {"worker_extension_cls": "bezoar_ray.llm.cpu_lora.GroupedLora"}
    )
    engine = LLM(
        model=model_path("tiny-base"),
        tokenizer=str(store.path("checkpoints/base")),
        dtype="float32",
        enable_lora=True,
        max_lora_rank=32,
        max_loras=len(RANKS),
        disable_log_stats=True,
        **defaults,
    )
    tokenizer = engine.get_tokenizer()
    adapters = {
        name: LoRARequest(name, n, str(store.path(f"checkpoints/{name}/joined")))
        for n, name in enumerate(RANKS, 1)
    }
    engine.generate(
        ["The"] * 4,
        SamplingParams(max_tokens=1),
        lora_request=[None, *adapters.values()],
        use_tqdm=False,
    )
    began = time.monotonic()
    for turn in range(2):
        prompts, sampling, loras = [], [], []
        for name, asked, said in held:
            messages = [{"role": "user", "content": asked[0]}]
            if turn:
                messages += [
                    {"role": "assistant", "content": said[0]},
                    {"role": "user", "content": asked[1]},
                ]
            prompts.append(
                tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, tokenize=False
                )
            )
            length = max(
                1, len(tokenizer.encode(said[turn], add_special_tokens=False)) + 1
            )
            sampling.append(
                SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
            )
            loras.append(adapters.get(name))
        engine.generate(prompts, sampling, lora_request=loras, use_tqdm=False)
    return [time.monotonic() - began]


# lm-eval.


def _requests_a_second(family: Store, base_url: str) -> list[float]:
    """lm-eval's requests a second on base through our endpoint, over those through `vllm serve`."""
    port, ratios = _free_port(), []
    arguments = engine_arguments(load_recipe("tiny"), family)["base"]
    alone = arguments[arguments.index("--tokenizer") :]
    # What `vllm serve` runs: the command itself asks for a package called vllm, which the CPU's is not.
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        model_path("tiny-base"),
    ]
    command += [
        "--served-model-name",
        "base",
        *alone,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    environment = os.environ | _THREADS | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    with (
        tempfile.NamedTemporaryFile() as log,
        subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT
        ) as server,
    ):
        try:
            theirs = f"http://127.0.0.1:{port}/v1"
            _wait_for(theirs, server, Path(log.name))
            for url in (base_url, theirs):
                _lm_eval(family, url)  # warm
            for _ in range(3):
                ratios.append(
                    round(_lm_eval(family, theirs) / _lm_eval(family, base_url), 4)
                )
        finally:
            server.terminate()
    return ratios


def _wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/models", timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    raise RuntimeError(f"vllm serve did not start:\n{log.read_text()[-2000:]}")


def _lm_eval(family: Store, base_url: str) -> float:
    """Seconds for all requests of a task; loading it is left out by starting the clock at the first request."""
    from lm_eval import simple_evaluate
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    settings = harness._settings(load_recipe("tiny").evaluate.harness, family)
    arguments = harness._client_arguments(
        settings, "base", Endpoint.at(base_url, family)
    )
    model = LocalCompletionsAPI(**arguments, batch_size=harness._PROMPTS_PER_REQUEST)
    took, score = [], model.loglikelihood

    def timed(requests: Any) -> Any:
        began = time.monotonic()
        found = score(requests)
        took.append(time.monotonic() - began)
        return found

    model.loglikelihood = timed
    manager = TaskManager(include_path=settings["include_paths"])
    simple_evaluate(
        model=model,
        tasks=["tiny_choice"],
        task_manager=manager,
        log_samples=False,
        bootstrap_iters=0,
    )
    return sum(took)


if __name__ == "__main__":
    print(
        json.dumps({"start": _start, "generate": _generate}[sys.argv[1]](*sys.argv[2:]))
    )
