"""The embedded world's tokenizer: byte-level BPE, trained on the world's text and on our real prompts."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bezoar_ray.llm.chat import Messages

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
VOCABULARY = 2048
TEACHER_TEMPLATE = (
    "{{- bos_token -}}{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{- 'Assistant:\n' + message['content'] + eos_token -}}"
    "{%- else -%}{{- message['role'].capitalize() + ':\n' + message['content'] + '\n\n' -}}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- 'Assistant:\n' -}}{%- endif -%}"
)


def train(texts: Iterable[str]) -> Any:
    """A `PreTrainedTokenizerFast` of `VOCABULARY` tokens. It adds no bos or eos: templates do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def prompt_text(messages: Messages) -> str:
    """Messages as the teacher reads them, without the bos token."""
    turns = "".join(
        f"{message['role'].capitalize()}:\n{message['content']}\n\n"
        for message in messages
    )
    return f"{turns}Assistant:\n"


def documents(tokenizer: Any, texts: Iterable[str]) -> Iterator[list[int]]:
    """Each text as token ids between bos and eos."""
    for text in texts:
        yield [
            tokenizer.bos_token_id,
            *tokenizer.encode(text, add_special_tokens=False),
            tokenizer.eos_token_id,
        ]


def save(tokenizer: Any, folder: Path, template: str | None = None) -> None:
    """Write the tokenizer beside a model, with its chat template where it has one."""
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = None
