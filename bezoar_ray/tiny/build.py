"""Make the embedded world in a folder: rows, items, questions, tokenizer and both models.

Run by torchrun, in processes of one thread each:
`torchrun --standalone --nproc-per-node=2 -m bezoar_ray.tiny.build FOLDER FINAL`
"""

import json
import sys
from collections.abc import Iterator
from importlib import resources
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from bezoar_ray.tiny import exam, lessons, pretrain, prose, questions, seeds, tokens

_BASE: dict[str, Any] = {"steps": 400, "batch": 12, "peak": 3e-3}
_BASE_BLOCK = 256  # tokens
_TEACHER: dict[str, Any] = {"steps": 440, "batch": 6, "peak": 2e-3}
_TEACHER_BLOCK = 512  # tokens


def base_texts() -> Iterator[str]:
    """Yield base's plain text, without end."""
    rng = Random("base")
    while True:
        yield prose.document(rng)


def teacher_texts() -> Iterator[tuple[str, str]]:
    """Yield the teacher's prompts and answers, without end."""
    rng = Random("teacher")
    while True:
        messages, answer = lessons.lesson(rng)
        yield tokens.prompt_text(messages), answer


def tokenizer_texts() -> Iterator[str]:
    """Yield the texts that the tokenizer is trained on.

    They are prose, the schemes' prompts, conversations, and the recipe's chat template.
    """
    base = base_texts()
    teacher = teacher_texts()
    template = resources.files("bezoar_ray").joinpath("recipes/alpaca.jinja")
    template_text = template.read_text()
    for row in seeds.hh_rlhf():
        yield row["chosen"]
        yield exam.prompt("")
        yield from islice(base, 12)
        for prompt, answer in islice(teacher, 4):
            yield prompt + answer
    yield template_text


def teacher_blocks(tokenizer: Any) -> Iterator[pretrain.Block]:
    """Yield all blocks that the teacher is trained on."""
    count = _TEACHER["steps"] * _TEACHER["batch"]
    blocks = pretrain.blocks(_teacher_examples(tokenizer), _TEACHER_BLOCK)
    return islice(blocks, count)


def _teacher_examples(tokenizer: Any) -> Iterator[pretrain.Block]:
    """Yield each lesson as token ids and labels; the prompt is not trained on."""
    for prompt, answer in teacher_texts():
        # bos and eos are put around the whole lesson below.
        prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
        answer_ids = tokenizer.encode(answer, add_special_tokens=False)
        start = [tokenizer.bos_token_id, *prompt_ids]
        labels = [*answer_ids, tokenizer.eos_token_id]
        yield start + labels, [pretrain.IGNORED] * len(start) + labels


def train_models(folder: Path, say: pretrain.Say) -> None:
    """Train base, and the teacher from it. The group's first process saves both."""
    tokenizer = tokens.train(tokenizer_texts())
    say("tokenizer done")
    model = pretrain.new_model(len(tokenizer))
    documents = tokens.documents(tokenizer, base_texts())
    pretrain.fit(
        model,
        pretrain.stream(documents, _BASE_BLOCK),
        **_BASE,
        say=lambda text: say(f"tiny-base     {text}"),
    )
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


def write_texts(folder: Path, final: Path) -> None:
    """Write seeds, held-out items and MT-Bench questions.

    Args:
        folder: Where they are written.
        final: Where the folder is moved to.
    """
    _write_rows(folder / "dolly.jsonl", seeds.dolly())
    _write_rows(folder / "flan.jsonl", seeds.flan())
    _write_rows(folder / "hh_rlhf.jsonl", seeds.hh_rlhf())
    exam.write(folder / "harness", final / "harness")
    _write_rows(folder / "question.jsonl", questions.questions())
    _write_rows(folder / "reference_answer.jsonl", questions.references())


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines))


def main(folder: Path, final: Path) -> None:
    """Make everything in `folder`, which is moved to `final` afterwards."""
    import torch
    import torch.distributed as dist

    torch.use_deterministic_algorithms(True)
    # It only guards against bugs, and takes a tenth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    dist.init_process_group("gloo")
    is_first = dist.get_rank() == 0

    def say(text: str) -> None:
        if is_first:
            print(text, flush=True)

    if is_first:
        write_texts(folder, final)
    train_models(folder, say)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
