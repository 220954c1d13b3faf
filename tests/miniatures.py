"""Random-weight miniatures of the big recipes' models: the real architectures and tokenizers, a few layers small."""

from pathlib import Path

from bezoar_ray.generate import prompts

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_VOCABULARY = 400  # few tokens, so that a random model ends its answer by chance within `max_tokens`
_TEXT = [
    *(
        message["content"]
        for message in prompts.new_instructions_prompt(["Name a river."], ["lakes"], 5)
    ),
    *(
        prompts.evolution_prompt(operation, "Name a river.")[0]["content"]
        for operation in (*prompts.IN_DEPTH, "breadth")
    ),
    *prompts.ORCA_SYSTEM.values(),
]


def falcon(folder: Path) -> Path:
    """Falcon's newer decoder, as Falcon 40B and h2oGPT have it, with h2oGPT's special tokens."""
    from transformers import FalconConfig, FalconForCausalLM

    size = _byte_level(
        folder, ["<|endoftext|>", "<|prompt|>", "<|answer|>"], end="<|endoftext|>"
    )
    config = FalconConfig(
        vocab_size=size,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        new_decoder_architecture=True,
        alibi=False,
        bias=False,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
    )
    FalconForCausalLM(config).save_pretrained(folder)
    return folder


def llama(folder: Path) -> Path:
    """Llama with a sentencepiece tokenizer of OpenLLaMA v2's settings."""
    import sentencepiece
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True)
    (folder / "text").write_text("\n".join(_TEXT))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=_VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        pad_id=-1,
        minloglevel=2,
    )
    tokens = '"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": true'
    (folder / "tokenizer_config.json").write_text(
        f'{{"tokenizer_class": "LlamaTokenizer", {tokens}}}'
    )
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def qwen3(folder: Path) -> Path:
    """Qwen3: normalised queries and keys, tied embeddings, a head size of its own."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    size = _byte_level(
        folder,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        end="<|im_end|>",
        template=_CHATML,
    )
    config = Qwen3Config(
        vocab_size=size,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=2,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def gpt_neox(folder: Path) -> Path:
    """GPT-NeoX, as Pythia has it: one layer for queries, keys and values, a rotation of a quarter of each head."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    size = _byte_level(folder, ["<|endoftext|>", "<|padding|>"], end="<|endoftext|>")
    config = GPTNeoXConfig(
        vocab_size=size,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    return folder


def _byte_level(
    folder: Path, special: list[str], end: str, template: str | None = None
) -> int:
    """Save a byte-level BPE tokenizer, with the model's own chat template if it has one; returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=special, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token=special[0]
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return len(fast)
