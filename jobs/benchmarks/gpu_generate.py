"""Generation on one GPU: `python jobs/benchmarks/gpu_generate.py [--tiny]`, `gpu.generate_vs_vllm` as a JSON line.

Our graph (Ray Data, client, ledger) against `vllm.LLM.generate`, one after the other on the same card: a model in the
shape of Qwen3 1.7B with dummy weights, 1,200 prompts of 300 tokens, answers of 128 to 384 tokens, 1,500 calls in
flight. Both sides have the same measure, as in `generate.py`. A second line says how busy the actor's main thread is,
which makes the calls, and in which functions it is found, every few milliseconds; where it waits, it is in `run_loop`.
`--tiny` runs a small shape on a CPU.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from bezoar_ray.runtime.session import ray_session
from jobs.benchmarks import generate
from jobs.benchmarks.generate import Load

sys.path.insert(0, str(Path(__file__).parents[2]))

SHAPE = {
    "vocab_size": 151_936,
    "hidden_size": 2_048,
    "intermediate_size": 6_144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
TINY = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": True,
}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
LOOK_SECONDS = 0.005
SHOWN = 8


def main() -> None:
    """Measure ours, then vLLM's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="a small shape on a CPU")
    tiny = parser.parse_args().tiny
    with tempfile.TemporaryDirectory() as folder:
        load = load_of(
            write_model(Path(folder, "model"), TINY if tiny else SHAPE), tiny
        )
        profile = Path(folder, "profile.json")
        generate._ask = watched(generate._ask, str(profile))
        with ray_session():
            calls = generate.ours(load)
        rate, shares = generate.whole(calls), json.loads(profile.read_text())
        say(
            figure="gpu.generate",
            tokens_per_s=round(rate),
            calls=len(calls),
            machine=machine(),
        )
        say(actor_main_thread=shares)
        other = generate.theirs(load)
        say(
            figure="gpu.generate_vs_vllm",
            value=round(rate / other, 3),
            vllm_tokens_per_s=round(other),
        )


def load_of(model: Path, tiny: bool) -> Load:
    """The prompts and what both engines are told."""
    draw = random.Random(0)
    count, words, least, most = (40, 30, 16, 32) if tiny else (1_200, 300, 128, 384)
    prompts = tuple(
        " ".join(f"word{draw.randrange(1_000)}" for _ in range(words))
        for _ in range(count)
    )
    engine: dict[str, Any] = {
        "load_format": "dummy",
        "max_model_len": 512 if tiny else 4_096,
    }
    if not tiny:
        engine["gpu_memory_utilization"] = 0.85
    return Load(
        model=str(model),
        prompts=prompts,
        longest=tuple(draw.randrange(least, most + 1) for _ in range(count)),
        dtype="float32" if tiny else "bfloat16",
        engine=engine,
        in_flight=1_500,
        num_gpus=0.0 if tiny else 1.0,
    )


def write_model(folder: Path, shape: dict[str, Any]) -> Path:
    """A configuration and a tokenizer of words; dummy weights need no file."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config

    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"word{n}" for n in range(min(1_000, shape["vocab_size"] - 3))),
    ]
    backend = Tokenizer(
        models.WordLevel(
            {token: n for n, token in enumerate(tokens)}, unk_token="<unk>"
        )
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(
        max_position_embeddings=4_096,
        eos_token_id=2,
        bos_token_id=1,
        dtype="bfloat16",
        **shape,
    )
    config.architectures = ["Qwen3ForCausalLM"]
    config.save_pretrained(folder)
    return folder


def watched(ask: Any, profile: str) -> Any:
    """The same question, in a process whose main thread is looked at from the first one on."""
    return partial(_watched, ask, profile)


async def _watched(
    ask: Any, profile: str, row: Any, chat: Any, **sampling: float
) -> AsyncIterator[Any]:
    _Profile.begin(profile)
    async for answer in ask(row, chat, **sampling):
        yield answer
    _Profile.keep()


class _Profile:
    """Looks at the thread that runs the event loop, and counts the functions that it finds it in."""

    _counts: Counter[str] = Counter()
    _path = ""
    _kept = _busy = 0.0

    @classmethod
    def begin(cls, path: str) -> None:
        """Begin, where it has not begun."""
        if not cls._path:
            cls._path = path
            threading.Thread(
                target=cls._look, args=(threading.get_ident(),), daemon=True
            ).start()

    @classmethod
    def keep(cls) -> None:
        """Write down the shares so far, now and then."""
        if time.monotonic() - cls._kept < 1.0:
            return
        cls._kept = time.monotonic()
        total = sum(cls._counts.values()) or 1
        shares = {
            place: round(count / total, 3)
            for place, count in cls._counts.most_common(SHOWN)
        }
        Path(cls._path).write_text(
            json.dumps({"busy": round(cls._busy, 3), "found_in": shares})
        )

    @classmethod
    def _look(cls, thread: int) -> None:
        clock = time.pthread_getcpuclockid(thread)
        began, worked = time.monotonic(), time.clock_gettime(clock)
        while True:
            time.sleep(LOOK_SECONDS)
            cls._busy = (time.clock_gettime(clock) - worked) / (
                time.monotonic() - began
            )
            frame = sys._current_frames().get(thread)
            if frame is not None:
                module = frame.f_globals.get("__name__", "")
                cls._counts[f"{module}.{frame.f_code.co_name}"] += 1


def machine() -> str:
    """The GPU's name."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def say(**line: Any) -> None:
    """Print a line at once."""
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
