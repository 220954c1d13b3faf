"""Makes the embedded world in a folder: texts, tokenizer, tiny-base, tiny-teacher. Run by torchrun, in processes of one
thread each: `torchrun --standalone --nproc-per-node=2 -m bezoar_ray.tiny.build FOLDER FINAL`."""

import json
import random
import sys
from collections.abc import Iterator
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from bezoar_ray.tiny import exam, lessons, pretrain, prose, questions, seeds, tokens

_BASE = {"steps": 400, "batch": 12, "peak": 3e-3}
_TEACHER = {"steps": 440, "batch": 6, "peak": 2e-3}
_BLOCK = {"base": 256, "teacher": 512}


def base_texts() -> Iterator[str]:
    """Base's plain text, without end."""
    rng = random.Random("base")
    while True:
        yield prose.document(rng)


def teacher_texts() -> Iterator[tuple[str, str]]:
    """The teacher's prompts and answers, without end."""
    rng = random.Random("teacher")
    while True:
        messages, answer = lessons.lesson(rng)
        yield tokens.prompt_text(messages), answer


def tokenizer_texts() -> Iterator[str]:
    """What the tokenizer is trained on: prose, the real prompts, and the blocks of the recipe's chat template."""
    base, teacher = base_texts(), teacher_texts()
    blocks = resources.files("bezoar_ray").joinpath("recipes/alpaca.jinja").read_text()
    for row in seeds.hh_rlhf():
        yield row["chosen"]
        yield exam.prompt("")
        for _ in range(12):
            yield next(base)
        for _ in range(4):
            yield "".join(next(teacher))
    yield blocks


def teacher_blocks(tokenizer: Any) -> Iterator[tuple[list[int], list[int]]]:
    """All that the teacher reads, as blocks of token ids and labels."""
    count = _TEACHER["steps"] * _TEACHER["batch"]
    return islice(pretrain.blocks(_examples(tokenizer), _BLOCK["teacher"]), count)


def _examples(tokenizer: Any) -> Iterator[tuple[list[int], list[int]]]:
    for prompt, answer in teacher_texts():
        asked = [
            tokenizer.bos_token_id,
            *tokenizer.encode(prompt, add_special_tokens=False),
        ]
        told = [
            *tokenizer.encode(answer, add_special_tokens=False),
            tokenizer.eos_token_id,
        ]
        yield asked + told, [pretrain.IGNORED] * len(asked) + told


def models(folder: Path, say: pretrain.Say) -> None:
    """Train both models; the group's first process saves them and the tokenizer."""
    tokenizer = tokens.train(tokenizer_texts())
    say("tokenizer done")
    model = pretrain.new_model(len(tokenizer))
    plain = pretrain.stream(tokens.documents(tokenizer, base_texts()), _BLOCK["base"])
    pretrain.fit(model, plain, **_BASE, say=lambda text: say(f"tiny-base     {text}"))
    _save(model, tokenizer, folder / "tiny-base", None)
    pretrain.fit(
        model,
        teacher_blocks(tokenizer),
        **_TEACHER,
        say=lambda text: say(f"tiny-teacher  {text}"),
    )
    _save(model, tokenizer, folder / "tiny-teacher", tokens.TEACHER_TEMPLATE)


def _save(model: Any, tokenizer: Any, folder: Path, template: str | None) -> None:
    import torch.distributed as dist

    if dist.get_rank() == 0:
        model.save_pretrained(folder)
        tokens.save(tokenizer, folder, template)


def texts(folder: Path, final: Path) -> None:
    """Write seeds, held-out items and MT-Bench's questions."""
    for name, rows in (
        ("dolly", seeds.dolly()),
        ("flan", seeds.flan()),
        ("hh_rlhf", seeds.hh_rlhf()),
    ):
        _write(folder / f"{name}.jsonl", rows)
    exam.write(folder / "harness", final / "harness")
    _write(folder / "question.jsonl", questions.questions())
    _write(folder / "reference_answer.jsonl", questions.references())


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def main(folder: Path, final: Path) -> None:
    """Make everything in `folder`, which will be moved to `final`."""
    import torch
    import torch.distributed as dist

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # a guard against bugs only, and a tenth of the time
    )
    dist.init_process_group("gloo")
    first = dist.get_rank() == 0
    if first:
        texts(folder, final)
    models(folder, lambda text: print(text, flush=True) if first else None)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
