"""Packaged recipes built for real into Ray's graphs, Serve's app and Ray Train's trainer, on logical GPUs.

`python -m tests.recorded RECIPE ...` starts a Ray with logical GPUs enough. It prints a JSON line for each recipe: what
engines and trainer were given. Only these two are replaced; seeds are the tiny world's, sizes are small, and a
scripted server stands at all endpoints. A recorded engine takes the part of
vLLM in the actors of generate and filter and in the replicas of Serve; a recorded trainer that of Ray's TorchTrainer.
"""

import contextlib
import json
import os
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bezoar_ray.llm.chat import Messages, Reply, Sampling
from bezoar_ray.recipe import ModelSection, Recipe, load_recipe
from tests.endpoint import serving
from tests.scripted import says

FOLDER = "BEZOAR_RECORDS"  # variable: where processes write what they were given
GPUS, CPUS = 8, 64
SMALL = [
    "seeds={dolly: [{source: tiny}], flan: [{source: tiny}], hh_rlhf: [{source: tiny, limit: 40}]}",
    "generate.lamini={calls: 2, per_call: 3}",
    "generate.evol_instruct={seeds: 6, epochs: 1}",
    "generate.orca={rows: 20}",
    "filter.decontaminate=false",
]


def record(kind: str, **given: Any) -> None:
    """Keep what a process was given, with the GPUs that Ray has shown it."""
    import ray

    line = {"kind": kind, "gpus": sorted(map(int, ray.get_gpu_ids())), **given}
    Path(os.environ[FOLDER], f"{kind}-{uuid.uuid4().hex}.json").write_text(
        json.dumps(line)
    )


class RecordedEngine:
    """In vLLM's place in an actor: notes what it would start with, and answers by a script."""

    def __init__(self, part: ModelSection):
        from bezoar_ray.llm import engine

        arguments = engine.complete_engine_arguments(
            engine.load_format_arguments(part) | part.engine, part.num_gpus
        )
        record("engine", model=part.model, engine=arguments)
        self.identity = "recorded"

    async def complete(self, messages: Messages, sampling: Sampling) -> Reply:
        return Reply(says(messages), "stop", 10, 5)

    async def close(self) -> None:
        pass


@contextlib.asynccontextmanager
async def recorded_app(arguments: list[str]) -> AsyncIterator[Any]:
    """In vLLM's place in a replica."""
    from fastapi import FastAPI

    record("replica", arguments=arguments)
    yield FastAPI()


def replace_engines() -> None:
    """In every process of Ray's, as it starts."""
    from bezoar_ray.llm import engine
    from bezoar_ray.serve import arguments, replica

    engine.VllmEngine = RecordedEngine
    replica._openai_app = recorded_app
    engine.is_cpu_build = arguments.is_cpu_build = lambda: (
        False
    )  # as where vLLM's CUDA build is installed


class RecordedTrainer:
    """In the place of Ray's TorchTrainer."""

    seen: list[dict[str, Any]] = []

    def __init__(
        self,
        loop: Any,
        *,
        train_loop_config: Any,
        torch_config: Any,
        scaling_config: Any,
        run_config: Any,
    ):
        self.seen.append(
            {
                "stage": train_loop_config["job"].stage,
                "backend": torch_config.backend,
                "use_gpu": scaling_config.use_gpu,
                "bundles": [
                    dict(bundle)
                    for bundle in scaling_config.as_placement_group_factory().bundles
                ],
                "accelerator_type": scaling_config.accelerator_type,
                "labels": scaling_config.label_selector,
            }
        )

    def fit(self) -> None:
        pass


def generated_and_filtered(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Both stages as one Ray Data graph; the judges' endpoints are a scripted server."""
    from bezoar_ray.runs.generate_and_filter import run
    from bezoar_ray.runtime.progress import Progress
    from bezoar_ray.stages import StageContext
    from bezoar_ray.store import Store

    with serving(says) as server:
        here = {"base_url": server.url, "api_key_env": None}
        judges = tuple(judge.model_copy(update=here) for judge in recipe.judges)
        teachers = tuple(
            part.model_copy(update=here) if part.base_url else part
            for part in recipe.teachers
        )
        local = recipe.model_copy(update={"judges": judges, "teachers": teachers})
        outcomes = dict(run(StageContext(local, Store(folder), "s", Progress())))
        asked = Counter(server.models)
    rows = sum(
        counts["generated"] for counts in outcomes["generate"].summary["data"].values()
    )
    return {"rows": rows, "asked": asked}


def served(recipe: Recipe, folder: Path) -> None:
    """The endpoint of base and one checkpoint, up and down again."""
    from bezoar_ray.serve.app import running
    from tests.serve.test_arguments import run_directory

    store = run_directory(folder, sft=16)
    for name in ("base", "sft"):
        store.replace_json(
            f"checkpoints/{name}/lineage.json", {"name": name, "fingerprint": name}
        )
    with running(recipe, store):
        pass


def trained(recipe: Recipe, folder: Path) -> list[dict[str, Any]]:
    """What Ray Train would be given for each stage."""
    import ray.train.torch

    from bezoar_ray.train import launcher

    RecordedTrainer.seen.clear()
    ray.train.torch.TorchTrainer = RecordedTrainer
    for stage in recipe.trained:
        job = launcher.Job(str(folder), recipe, stage, "recorded", ())
        launcher.build_trainer(job, lambda job: {})
    return list(RecordedTrainer.seen)


def main() -> None:
    """Build each recipe, and print what was recorded."""
    import ray

    with tempfile.TemporaryDirectory() as records:
        os.environ[FOLDER] = records
        ray.init(
            address="local",
            num_cpus=CPUS,
            num_gpus=GPUS,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=2**29,
            runtime_env={"worker_process_setup_hook": "tests.recorded.replace_engines"},
        )
        for name in sys.argv[1:]:
            recipe = load_recipe(name, SMALL)
            with tempfile.TemporaryDirectory() as folder:
                found = generated_and_filtered(recipe, Path(folder, "run"))
                served(recipe, Path(folder, "served"))
                found["trainers"] = trained(recipe, Path(folder, "trained"))
            found["records"] = [
                json.loads(path.read_text()) for path in Path(records).iterdir()
            ]
            for path in Path(records).iterdir():
                path.unlink()
            print(json.dumps({"recipe": name} | found), flush=True)
        ray.shutdown()


if __name__ == "__main__":
    main()
