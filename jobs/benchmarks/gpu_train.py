"""Training on one GPU: `python jobs/benchmarks/gpu_train.py [--tiny]`, a JSON line for each model, method and way.

QLoRA (NF4, rank 16) of models with random weights in the shapes of OpenLLaMA 3B v2 and Llama 3 8B, on rows whose
lengths are those of instructions. Plain TRL pads its rows; ours packs them. It needs torch, transformers, peft, trl,
bitsandbytes and datasets alone. `of_peak`: floating-point operations of forward, recomputation and backward pass
(6 for each weight and token: the weights themselves get no gradient) over those of a large bfloat16 product on the
same GPU, both measured here. `--tiny` runs a small shape on a CPU, to see that everything works.
"""

import argparse
import gc
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

sys.path.insert(0, str(Path(__file__).parents[2]))
from bezoar_ray.train.packing import collator

SHAPES = {  # vocabulary, width, width within, layers, heads, heads of keys and values
    "openllama-3b": (32_000, 3_200, 8_640, 26, 32, 32),
    "llama-3-8b": (128_256, 4_096, 14_336, 32, 32, 8),
    "tiny": (512, 64, 128, 2, 4, 4),
}
NAMES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
)  # fmt: skip
LONGEST, MICRO, BATCH = 2_048, 4, 16
WARM, STEPS = 2, 6
PAD = 2


def main() -> None:
    """Measure every shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small shape on a CPU")
    tiny = parser.parse_args().tiny
    peak = None if tiny else _peak()
    for name in ["tiny"] if tiny else ["openllama-3b", "llama-3-8b"]:
        with tempfile.TemporaryDirectory() as folder:
            weights = _write(SHAPES[name], folder)
            for line in _measured(folder, weights, peak, LONGEST // 8 if tiny else LONGEST):
                print(json.dumps({"shape": name, **line, "machine": _machine()}), flush=True)


def _measured(folder: str, weights: int, peak: float | None, longest: int) -> Iterator[dict[str, Any]]:
    rows = list(_rows((WARM + STEPS) * BATCH, longest))
    labelled = [{"input_ids": row, "labels": _labels(row)} for row in rows]
    for way, collate in (("trl, padded", None), ("ours, packed", collator(PAD))):
        yield {"method": "sft", "way": way} | _timed(folder, weights, peak, labelled, BATCH, longest, collate)
    pairs = [{"prompt_ids": row[: len(row) // 2], "chosen_ids": row[len(row) // 2 :],
              "rejected_ids": row[len(row) // 2 :][::-1]} for row in rows[: len(rows) // 2]]  # fmt: skip
    for way, ahead in (("live reference", False), ("reference ahead", True)):
        yield {"method": "dpo", "way": way} | _timed(folder, weights, peak, pairs, BATCH // 2, longest, ahead=ahead)


def _timed(
    folder: str, weights: int, peak: float | None, data: list[dict[str, Any]], batch: int, longest: int,
    collate: Any = None, ahead: bool | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Tokens a second after the first steps, padding left out, and the most memory; DPO where `ahead` is given."""
    gpu = torch.cuda.is_available()
    if gpu:
        gc.collect()  # of the way before, whose trainer and model refer to each other
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    micro = next(size for size in range(min(MICRO, batch), 0, -1) if batch % size == 0)
    settings = {
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": micro, "learning_rate": 1e-5,
        "gradient_accumulation_steps": batch // micro, "max_steps": WARM + STEPS, "max_length": None, "bf16": True,
        "use_cpu": not gpu, "gradient_checkpointing": gpu, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "logging_strategy": "no",
    }  # fmt: skip
    clock = Clock()
    if ahead is None:
        config = SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, **settings)
        kind: Any = SFTTrainer
    else:
        config, kind = DPOConfig(precompute_ref_log_probs=ahead, **settings), Prepared
    began = time.monotonic()
    trainer = kind(
        _model(folder, gpu), args=config, train_dataset=Dataset.from_list(data), data_collator=collate,
        callbacks=[clock], processing_class=_tokenizer(longest),
    )  # fmt: skip
    trainer.train()
    seconds = clock.times[-1] - clock.times[WARM]
    tokens = sum(map(_tokens, data)) / len(data) * batch * STEPS
    speed = tokens / seconds
    memory = {"memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1)} if gpu else {}
    of_peak = {"of_peak": round(6 * weights * speed / peak, 3)} if peak and ahead is None else {}
    whole = {"seconds_in_all": round(time.monotonic() - began, 1)} if ahead is not None else {}
    return {"tokens_per_s": round(speed), **memory, **of_peak, **whole}


class Clock(TrainerCallback):
    """When each optimiser step ended, the start of training first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def _look(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.monotonic())

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._look()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._look()


class Prepared(DPOTrainer):
    """On rows that are tokens already."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def _write(shape: tuple[int, ...], folder: str) -> int:
    """A model with random weights; returns how many of them are in its linear layers."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(
            LlamaConfig(max_position_embeddings=LONGEST, pad_token_id=PAD, **dict(zip(NAMES, shape, strict=True)))
        )
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    embedded = model.get_input_embeddings().weight.numel()
    return sum(p.numel() for p in model.parameters()) - embedded


def _model(folder: str, gpu: bool) -> Any:
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=four_bit, dtype=torch.bfloat16, attn_implementation="sdpa",
        device_map={"": 0 if gpu else "cpu"},
    )  # fmt: skip
    for layer in model.modules():  # or a forward pass without gradients would take a CPU's backward pass away
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=16, lora_alpha=16, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
    return get_peft_model(model, lora)


def _tokenizer(longest: int) -> Any:
    """None of its tokens are used: the rows are numbers already."""
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<pad>": PAD}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=longest
    )


def _rows(count: int, longest: int) -> Iterator[list[int]]:
    """Random tokens, of a length whose median is an eighth of the longest, and that differs as instructions' do."""
    rng = random.Random(0)
    for _ in range(count):
        length = min(longest, max(16, int(longest / 8 * rng.lognormvariate(0, 0.8))))
        yield [rng.randrange(3, 500) for _ in range(length)]


def _labels(row: list[int]) -> list[int]:
    """The second half is the answer."""
    return [-100] * (len(row) // 2) + row[len(row) // 2 :]


def _tokens(item: dict[str, Any]) -> int:
    if "input_ids" in item:
        return len(item["input_ids"])
    return 2 * len(item["prompt_ids"]) + len(item["chosen_ids"]) + len(item["rejected_ids"])


def _peak() -> float:
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


def _machine() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


if __name__ == "__main__":
    main()
