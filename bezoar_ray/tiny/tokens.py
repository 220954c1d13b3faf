"""The tokenizer of the embedded world: byte-level BPE.

It is trained on the text of the world and on the schemes' real prompts.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bezoar_ray.llm.chat import Messages

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
VOCABULARY = 2048
CONTEXT = 2048
"""Tokens of the longest sequence."""
TEACHER_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- 'Assistant:\n' + message['content'] + eos_token -}}"
    "{%- else -%}"
    "{{- message['role'].capitalize() + ':\n' + message['content'] + '\n\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- 'Assistant:\n' -}}"
    "{%- endif -%}"
)
"""The teacher's chat template. `prompt_text` writes the same prompts."""


def train(texts: Iterable[str]) -> Any:
    """Train a `PreTrainedTokenizerFast` of `VOCABULARY` tokens.

    It adds no bos and no eos token: chat templates do.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    # Otherwise texts would come back with a space before them.
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        # So that any byte can be encoded, also one that no text of the training has.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def prompt_text(messages: Messages) -> str:
    """Return messages as the teacher reads them, without the bos token."""
    text = ""
    for message in messages:
        text += f"{message['role'].capitalize()}:\n{message['content']}\n\n"
    return f"{text}Assistant:\n"


def documents(tokenizer: Any, texts: Iterable[str]) -> Iterator[list[int]]:
    """Yield each text as token ids between bos and eos."""
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        yield [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]


def save(tokenizer: Any, folder: Path, template: str | None = None) -> None:
    """Write the tokenizer beside a model.

    Args:
        tokenizer: Shared by both models; it is left without a chat template.
        folder: The folder of the model.
        template: The chat template of the model; None where it has none.
    """
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = None
