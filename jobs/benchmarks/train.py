"""`train.*`: our stages on the tiny base and rows of the embedded world, each worker on one core.

Speeds are tokens a second from the first optimiser step's beginning to the last one's end: starts are left out of both
sides. The reference's figures are times of the whole loop, from the loaded model on. The world's rows are nearly of one
length; `packing` puts up to ten into one, so that lengths differ as those of instructions do: eight rows that are drawn
at random take 2.2 times their tokens if they are padded, and 2.7 times in a sample of dolly.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from bezoar_ray import sources
from bezoar_ray.data.schema import Sample, sample_table
from bezoar_ray.runtime.session import ray_session
from bezoar_ray.stages import StageContext
from bezoar_ray.train import loop, model_loading, training_stages
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.training_stages import ALIGN, SFT
from jobs.benchmarks.context import context

ROWS = 240
BETAS = (0.05, 0.1, 0.3, 0.5)
LORA = {
    "targets": [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ],
    "dropout": 0.0,
}
PAIRS = {"limit": ROWS}
PART = {
    "batch": 16,
    "micro_batch": 8,
    "max_length": 512,
    "workers": 1,
    "learning_rate": 1e-4,
}


WHOLE = {
    "batch": 64,
    "packing": False,
}  # as many rows in a step as openbezoar-3b has with eight workers


def figures() -> Iterator[tuple[str, list[float]]]:
    """Each three times, both sides in turn."""
    with ray_session():
        yield (
            "train.sft_vs_trl",
            [round(_speed(packing=False) / _trl(), 4) for _ in range(3)],
        )
        for name, mixed in (("train.packing", True), ("train.packing_even", False)):
            yield (
                name,
                [
                    round(_speed(mixed, packing=True) / _speed(mixed, packing=False), 4)
                    for _ in range(3)
                ],
            )
        yield (
            "train.two_workers",
            [round(_speed(workers=2, **WHOLE) / _speed(**WHOLE), 4) for _ in range(3)],
        )
        yield "train.two_alone", [round(_trl(2) / _trl(), 4) for _ in range(3)]
        with tempfile.TemporaryDirectory() as folder:
            run = _context(folder)
            _run_stage(run, "sft")
            _run_stage(run, "hh-sft")
            for name, betas in (
                ("train.dpo_precompute", BETAS[:1]),
                ("train.dpo_sweep", BETAS),
            ):
                yield (
                    name,
                    [
                        round(
                            _aligned(run, betas, False) / _aligned(run, betas, True), 4
                        )
                        for _ in range(3)
                    ],
                )


def _context(folder: str, mixed: bool = False, **part: Any) -> StageContext:
    """A run directory with accepted rows: the world's own instructions and answers, or `mixed` lengths of them."""
    run = context(
        folder,
        sft=PART | {"lora": LORA, "epochs": 3, **part},
        hh_sft=PART | PAIRS | {"lora": LORA},
        align=PART | PAIRS,
    )
    seeds = sources.read(run.recipe.seeds.dolly, "dolly").rows
    rng, rows = random.Random(0), []
    for n in range(ROWS):
        some = rng.sample(
            seeds, round(min(10, max(1, rng.lognormvariate(0, 1.2)))) if mixed else 1
        )
        asked, told = (
            "\n".join(texts)
            for texts in zip(
                *((seed.task, seed.response) for seed in some), strict=True
            )
        )
        rows.append(Sample(f"{n:05}", "lamini", "x", instruction=asked, response=told))
    run.store.replace_table("data/lamini/accepted/part-0.parquet", sample_table(rows))
    return run


def _speed(mixed: bool = False, **part: Any) -> float:
    """Tokens a second of our sft stage, padding left out."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = _run_stage(_context(folder, mixed, **part), "sft")
        return metrics["sft"]["tokens_per_s"]


def _run_stage(run: StageContext, stage: str) -> dict[str, Any]:
    """Carry out a training stage on Ray's workers, and return its metrics."""
    return training_stages.run(replace(run, stage=stage)).summary["train"]


def _trl(processes: int = 1) -> float:
    """Tokens a second of plain TRL on the same rows, in a process of its own with as many threads as our worker; of
    several that know nothing of each other, their sum: what the machine has for two."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(processes) as threads,
    ):
        run = _context(folder, packing=False)
        (data,) = SFT.prepare(run)
        asked = "_plain", str(run.store.path(data.file)), str(data.tokens)
        return sum(threads.map(lambda _: _alone(*asked), range(processes)))


def _plain(file: str, tokens: str) -> float:
    """With the adapter in float32, as ours is: TRL rounds that of a 4-bit model to bfloat16."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        BitsAndBytesConfig,
        TrainerCallback,
    )
    from trl import SFTConfig, SFTTrainer

    from bezoar_ray.llm.model_identity import model_path
    from bezoar_ray.runtime.dtype import compute_dtype

    dtype = compute_dtype("bfloat16")
    base, times = model_path("tiny-base"), []
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=four_bit, dtype=dtype, attn_implementation="eager"
    )
    lora = LoraConfig(
        r=16,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=LORA["targets"],
        task_type="CAUSAL_LM",
    )
    epochs = 3
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_length=512,
        num_train_epochs=epochs,
        learning_rate=1e-4,
        bf16=dtype == "bfloat16",
        use_cpu=True,
        gradient_checkpointing=False,
        lr_scheduler_type="constant_with_warmup",
        max_grad_norm=0.3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic())

    rows = Dataset.from_file(file).select_columns(["input_ids", "labels"])
    trainer = SFTTrainer(
        get_peft_model(model, lora),
        config,
        train_dataset=rows,
        callbacks=[Clock()],
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    for weight in trainer.model.parameters():
        weight.data = weight.data.float() if weight.requires_grad else weight.data
    trainer.train()
    return int(tokens) * epochs / (times[-1] - times[0])


def _aligned(run: StageContext, betas: tuple[float, ...], ahead: bool) -> float:
    """Seconds of the dpo loop with each beta, the reference asked ahead of it or live; nothing is kept from before."""
    run.store.remove("train/data")
    run.store.remove("train/dpo")
    ALIGN.prepare(run)
    return _alone("_align", str(run.store.root), str(int(ahead)), *map(str, betas))


def _align(folder: str, ahead: str, *betas: str) -> float:
    import bitsandbytes  # noqa: F401  # their imports take as long as a beta's training, and belong to neither side
    from trl import DPOTrainer  # noqa: F401

    seconds = 0.0
    for beta in betas:
        align = (
            PART
            | PAIRS
            | {"beta": float(beta), "precompute_reference": bool(int(ahead))}
        )
        run = context(folder, align=align)
        (data,) = ALIGN.prepare(run)
        seconds += _looped(run, data)
    return seconds


def _looped(run: StageContext, data: Any) -> float:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from bezoar_ray.train import trainers
    from bezoar_ray.train.tokenizer import load_tokenizer

    job = Job(
        str(run.store.root),
        run.recipe,
        "align",
        f"beta-{run.recipe.align.beta}",
        (data,),
    )
    seconds = []

    def body() -> None:
        tokenizer = load_tokenizer(run.recipe)
        adapter = str(run.store.path("checkpoints/hh-sft/adapter"))
        build = trainers.preference(tokenizer, run.recipe.align)
        began: list[float] = []

        def adapted(model: Any, **more: Any) -> Any:
            began.append(time.monotonic())
            return model_loading.with_adapter(model, adapter, trainable=True, **more)

        loop.train(job, adapted, build)
        seconds.append(time.monotonic() - began[0])

    here = ScalingConfig(num_workers=0)
    TorchTrainer(
        body,
        scaling_config=here,
        run_config=RunConfig(
            name=job.name, storage_path=str(run.store.path("train/dpo"))
        ),
    ).fit()
    return seconds[0]


def _alone(function: str, *arguments: str) -> float:
    """A function of this file in a process of its own, on one core as a worker is."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs.benchmarks.train", function, *arguments],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(globals()[sys.argv[1]](*sys.argv[2:]))
