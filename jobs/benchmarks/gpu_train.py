"""Training on one GPU: `python jobs/benchmarks/gpu_train.py [--tiny]`, a JSON line for each case as soon as it ended.

QLoRA (NF4, rank 16 on all linear layers) of models with random weights in the shapes of OpenLLaMA 3B v2 and Llama 3 8B,
on rows whose lengths are those of instructions: 16 to 2,048 tokens, 256 in the median. Ours is the stages' own loop
(`bezoar_ray.train.loop`) in this process; plain TRL pads its rows, four in a pass, and recomputes activations.

Speeds leave out the first steps and count no padding: each token that enters the model is counted. `of_product` is the
share of a large bfloat16 product on the same GPU: 6 operations for each weight and token of the policy, forward and
backward, and 2 of the reference. Recomputation does not count. (`of_peak` in a stage's summary is the share of the
maker's peak.) A case is skipped, and named, where less of `--seconds` is left than the longest case so far took. The
exit code is 1 where a case failed. `--tiny` runs small shapes on a CPU, to see that everything works.
"""

import argparse
import gc
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from bezoar_ray.recipe import Recipe, load_recipe
from bezoar_ray.runtime.session import ray_session
from bezoar_ray.store import Store
from bezoar_ray.train import loop, model_loading, trainers
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.tokenized_dataset import TokenizedDataset
from bezoar_ray.train.tokenizer import load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2]))

SHAPES = {
    "3.4B": {
        "vocab_size": 32_000,
        "hidden_size": 3_200,
        "intermediate_size": 8_640,
        "num_hidden_layers": 26,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "8B": {
        "vocab_size": 128_256,
        "hidden_size": 4_096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PAD = 2
WARM = 3  # steps that are left out: kernels are chosen, shapes compiled


@dataclass(frozen=True)
class Case:
    """One line: what is trained, and how."""

    shape: str
    method: str
    way: str
    batch: int
    steps: int
    figure: str = ""
    """The name of a figure with a bar."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the recipe's section; of plain TRL, none."""

    @property
    def stage(self) -> str:
        """The stage that trains so."""
        return "sft" if self.method == "sft" else "align"

    @property
    def plain(self) -> bool:
        """Whether TRL's own trainer does it."""
        return self.way.startswith("trl")


PASSES_OF_1K = {
    "micro_tokens": 1_024,
    "compile": False,
    "gradient_checkpointing": False,
}
PASSES_OF_4K = {
    "micro_tokens": 4_096,
    "compile": False,
    "gradient_checkpointing": False,
}
PASSES_OF_16K = {
    "micro_tokens": 16_384,
    "compile": False,
    "gradient_checkpointing": True,
}
COMPILED_16K = {"micro_tokens": 16_384, "compile": True, "gradient_checkpointing": True}
AUTO = {
    "compile": True
}  # what the recipes have, where stages are long enough to compile
CASES = (  # the most telling ones first
    Case("3.4B", "sft", "trl, padded", 16, 8),
    Case("3.4B", "sft", "ours", 16, 30, "gpu.sft_3b", AUTO),
    Case(
        "3.4B",
        "sft",
        "ours, passes of 16k, recomputed",
        64,
        12,
        "gpu.sft_3b_long",
        COMPILED_16K,
    ),
    Case("3.4B", "dpo", "trl, padded", 8, 8),
    Case(
        "3.4B",
        "dpo",
        "ours",
        16,
        15,
        "gpu.dpo_3b",
        AUTO | {"precompute_reference": False},
    ),
    Case("8B", "sft", "ours", 32, 12, "gpu.sft_8b", AUTO),
    Case("3.4B", "sft", "ours, passes of 4k", 16, 15, "", PASSES_OF_4K),
    Case("3.4B", "sft", "ours, passes of 1k", 16, 8, "", PASSES_OF_1K),
    Case(
        "3.4B",
        "sft",
        "ours, passes of 16k, recomputed, not compiled",
        64,
        8,
        "",
        PASSES_OF_16K,
    ),
    Case("8B", "dpo", "ours", 16, 8, "", AUTO | {"precompute_reference": False}),
    Case("8B", "sft", "trl, padded", 16, 8),
)
TINY = (
    Case("tiny", "sft", "trl, padded", 4, 6),
    Case("tiny", "sft", "ours", 4, 6, "gpu.sft_tiny", {"micro_tokens": "auto"}),
    Case("tiny", "dpo", "trl, padded", 4, 6),
    Case(
        "tiny",
        "dpo",
        "ours",
        4,
        6,
        "gpu.dpo_tiny",
        {"micro_tokens": 512, "precompute_reference": False},
    ),
)


def main() -> None:
    """Measure every case, and compare with plain TRL at the end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="small shapes on a CPU")
    parser.add_argument(
        "--seconds", type=float, default=360.0, help="end about then (default: 360)"
    )
    options = parser.parse_args()
    ends, longest = time.monotonic() + options.seconds, 0.0
    peak = measured_peak() if torch.cuda.is_available() else None
    say(gpu=machine(), torch=torch.__version__, peak_tflops=peak and round(peak / 1e12))
    speeds: dict[tuple[str, str, bool], float] = {}
    failed = False
    with ray_session(), tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), peak, longest=256 if options.tiny else 2_048)
        for case in TINY if options.tiny else CASES:
            began = time.monotonic()
            if began + longest > ends:
                say(
                    shape=case.shape,
                    method=case.method,
                    way=case.way,
                    skipped="no time was left",
                )
                continue
            line = bench.measured(case)
            longest = max(longest, time.monotonic() - began)
            say(**line)
            if "error" in line:
                failed = True
            else:
                speeds.setdefault(
                    (case.shape, case.method, case.plain), line["tokens_per_s"]
                )
    for (shape, method, plain), speed in speeds.items():
        if not plain and (other := speeds.get((shape, method, True))):
            figure = "gpu.vs_trl" if method == "sft" else f"gpu.vs_trl_{method}"
            say(
                figure=figure, shape=shape, value=round(speed / other, 2)
            )  # the bar is 3.4 B's
    sys.exit(int(failed))


class Bench:
    """A folder with a model of each shape, and the peak of this machine."""

    def __init__(self, folder: Path, peak: float | None, longest: int):
        self._folder, self._peak, self._longest = folder, peak, longest
        self._weights: dict[str, int] = {}

    def measured(self, case: Case) -> dict[str, Any]:
        """The line of a case."""
        model = self._model(case.shape)
        free_memory()
        clock = Clock(1 if case.method == "sft" else 2)
        rows = random_rows(case, self._longest)
        try:
            if case.plain:
                details = plain_trl(model, case, rows, clock)
            else:
                details = ours(self._folder / "run", model, case, rows, clock)
        except Exception as error:  # a case that fails must not take the others' time
            details = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        line = {"figure": case.figure} if case.figure else {}
        line |= {
            "shape": case.shape,
            "method": case.method,
            "way": case.way,
            "batch": case.batch,
        }
        speed = clock.tokens_per_s()
        line |= {"tokens_per_s": round(speed), **details, "machine": machine()}
        if torch.cuda.is_available():
            line["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        if self._peak:
            operations = (
                6 if case.method == "sft" else 8
            )  # the reference has a forward pass
            line["of_product"] = round(
                operations * self._weights[case.shape] * speed / self._peak, 3
            )
        return line

    def _model(self, shape: str) -> Path:
        """The folder of a model with random weights and a tokenizer, made when it is first asked for."""
        folder = self._folder / shape
        if not folder.exists():
            self._weights[shape] = write_model(shape, folder, self._longest)
        return folder


def ours(
    run: Path, model: Path, case: Case, rows: list[dict[str, Any]], clock: "Clock"
) -> dict[str, Any]:
    """Train by the stage's own loop, in this process, with a clock beside its callbacks."""
    shutil.rmtree(run, ignore_errors=True)
    store = Store(run)
    recipe = recipe_for(model, case)
    job = Job(
        str(run),
        recipe,
        case.stage,
        "benchmark",
        (prepared(store, case, rows),),
    )
    tokenizer = load_tokenizer(recipe)
    if case.method == "sft":
        adapt: Callable[..., Any] = partial(
            model_loading.with_new_adapter, lora=recipe.sft.lora, seed=0
        )
        build = trainers.supervised(tokenizer, recipe.sft)
    else:
        adapt = partial(
            model_loading.with_adapter,
            folder=hh_sft_adapter(store, job, model),
            trainable=True,
        )
        build = trainers.preference(tokenizer, recipe.align)

    def timed(*args: Any) -> Any:
        trainer = build(*args)
        trainer.add_callback(clock)
        return trainer

    train_state = trained_here(job, lambda: loop.train(job, adapt, timed))
    return {"passes": train_state.passes, "time_shares": train_state.time_shares}


def trained_here(job: Job, body: Callable[[], Any]) -> Any:
    """Ray Train's local mode: the loop finds its context, without a worker's start."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    results: list[Any] = []
    here = ScalingConfig(num_workers=0)
    config = RunConfig(name=job.name, storage_path=str(job.store.path(job.folder)))
    TorchTrainer(
        lambda: results.append(body()), scaling_config=here, run_config=config
    ).fit()
    return results[0]


def recipe_for(model: Path, case: Case) -> Recipe:
    """The stage's recipe: QLoRA of rank 16 on all linear layers, as many rows in a step as the case has."""
    lora = {"r": 16, "alpha": 16, "dropout": 0.05, "targets": TARGETS}
    section = {
        "learning_rate": 1e-5,
        "batch": case.batch,
        "epochs": 1,
        "gpus_per_worker": float(on_gpu()),
    }
    section |= {
        "checkpoint_every": 10_000,
        "workers": 1,
        "max_length": 2_048,
    } | case.settings
    name = case.stage
    sets = {
        "name": "benchmark",
        "base.model": str(model),
        "base.dtype": "bfloat16",
        "sft.lora": lora,
        "hh_sft.lora": lora,
        **{f"{name}.{key}": value for key, value in section.items()},
        f"{name}.micro_batch": None,
    }
    return load_recipe(
        "tiny", [f"{path}={json.dumps(value)}" for path, value in sets.items()]
    )


def prepared(store: Store, case: Case, rows: list[dict[str, Any]]) -> TokenizedDataset:
    """The rows as the stage finds them after tokenising."""
    file = f"train/data/{case.method}-rows-0123456789abcdef.arrow"
    with store.writing(file) as path:
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    sequences = 1 if case.method == "sft" else 2
    lengths = [row_tokens(row) for row in rows]
    longest = max(lengths) // sequences  # both sides of a pair are equally long
    return TokenizedDataset(
        "rows", file, len(rows), sum(lengths), longest, longest, sequences, {}
    )


def hh_sft_adapter(store: Store, job: Job, model: Path) -> str:
    """What dpo starts from: merged sft, and hh-sft's adapter on it."""
    sft, adapter = (
        store.path("checkpoints/sft/merged"),
        store.path("checkpoints/hh-sft/adapter"),
    )
    shutil.copytree(model, sft, copy_function=os.link)
    made = model_loading.with_new_adapter(
        model_loading.for_training(job), job.recipe.hh_sft.lora, 0
    )
    made.save_pretrained(str(adapter))
    del made
    free_memory()
    return str(adapter)


def plain_trl(
    model: Path, case: Case, rows: list[dict[str, Any]], clock: "Clock"
) -> dict[str, Any]:
    """The same by TRL's own trainer: rows padded, four (pairs) in a pass, activations recomputed."""
    settings = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": case.batch // 4,
        "learning_rate": 1e-5,
        "max_length": None,
        "bf16": True,
        "use_cpu": not on_gpu(),
        "gradient_checkpointing": on_gpu(),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "num_train_epochs": 1,
    }
    four_bit = model_loading.nf4("bfloat16")
    base = load_recipe("tiny", [f"base.model={model}"]).base
    loaded = model_loading.load(
        base, quantization_config=four_bit, device_map={"": 0 if on_gpu() else "cpu"}
    )
    model_loading._keep_backward(loaded)
    lora = LoraConfig(
        r=16,
        lora_alpha=16,
        lora_dropout=0.05,
        target_modules=TARGETS,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(loaded, lora)
    data, tokenizer = (
        Dataset.from_list(rows),
        PreTrainedTokenizerFast.from_pretrained(model),
    )
    if case.method == "sft":
        config = SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, **settings)
        trainer = SFTTrainer(
            adapted,
            config,
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[clock],
        )
    else:
        config = DPOConfig(precompute_ref_log_probs=False, **settings)
        trainer = OnTokens(
            adapted,
            args=config,
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[clock],
        )
    trainer.train()
    return {}


class OnTokens(DPOTrainer):
    """On rows that are tokens already."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class Clock(TrainerCallback):
    """When each optimiser step ended, and how many tokens had been computed by then."""

    def __init__(self, forwards: int) -> None:
        """`forwards` is how often a row goes through the model in a step: a live reference makes it two."""
        self._forwards = forwards
        self._count: Any = 0
        self._steps: list[tuple[float, int]] = []

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Have the embeddings count what enters them; no row holds the padding token."""
        embeddings = model.get_input_embeddings()

        def count(_: Any, inputs: tuple[Any, ...]) -> None:
            self._count = self._count + (inputs[0] != PAD).sum()

        embeddings.register_forward_pre_hook(count)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if on_gpu():
            torch.cuda.synchronize()
        self._steps.append((time.monotonic(), int(self._count)))

    def tokens_per_s(self) -> float:
        """Of the steps after the warm ones; 0 where there are none."""
        if len(self._steps) <= WARM:
            return 0.0
        (began, before), (ended, after) = self._steps[WARM - 1], self._steps[-1]
        return (after - before) / self._forwards / (ended - began)


def random_rows(case: Case, longest: int) -> list[dict[str, Any]]:
    """Random tokens, of a length whose median is an eighth of the longest, and that differs as instructions' do."""
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    for number in range(case.batch * case.steps):
        length = min(longest, max(16, int(longest / 8 * draw.lognormvariate(0, 0.8))))
        ids, half = [draw.randrange(3, 500) for _ in range(length)], length // 2
        if case.method == "sft":
            rows.append(
                {
                    "id": f"{number:06}",
                    "input_ids": ids,
                    "labels": [-100] * half + ids[half:],
                }
            )
        else:
            sides = {"chosen_ids": ids[half:], "rejected_ids": ids[half:][::-1]}
            rows.append({"id": f"{number:06}", "prompt_ids": ids[:half], **sides})
    return rows


def row_tokens(row: dict[str, Any]) -> int:
    """Tokens of a row that go through the model, both sides of a pair."""
    if "input_ids" in row:
        return len(row["input_ids"])
    return (
        2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
    )


def write_model(shape: str, folder: Path, longest: int) -> int:
    """A model with random weights, and a tokenizer of bytes; returns the weights of its products."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if on_gpu() else "cpu"):
        model = LlamaForCausalLM(
            LlamaConfig(
                max_position_embeddings=longest, pad_token_id=PAD, **SHAPES[shape]
            )
        )
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    letters = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(
        kinds.BPE({letter: n for n, letter in enumerate(letters)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **tokens).save_pretrained(folder)
    embedded = model.get_input_embeddings().weight.numel()
    return sum(weight.numel() for weight in model.parameters()) - embedded


def measured_peak() -> float:
    """Operations a second of a large bfloat16 product."""
    a = torch.randn(8_192, 8_192, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    began = time.monotonic()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    return 20 * 2 * 8_192**3 / (time.monotonic() - began)


def free_memory() -> None:
    """Of the case before, whose trainer and model refer to each other."""
    gc.collect()
    if on_gpu():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def on_gpu() -> bool:
    """Whether there is one."""
    return torch.cuda.is_available()


def machine() -> str:
    """The GPU's name."""
    return torch.cuda.get_device_name() if on_gpu() else "CPU"


def say(**line: Any) -> None:
    """Print a line at once."""
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
