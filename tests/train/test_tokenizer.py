"""The tokenizer gives the ids that the base model was trained on, OpenLLaMA's trap included."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import Recipe
from bezoar_ray.train.encoding import IGNORED, encode
from bezoar_ray.train.tokenizer import (
    PROBES,
    ROUND_TRIP,
    load_tokenizer,
    match_sentencepiece,
)

TEXT = """The llama said: 12 + 30 = 42.  It   kept    runs of spaces, 1999 and 2024.
def double(x):
    return 2 * x
A café in Zürich; naïve questions, plain answers. The llama sleeps in the barn and eats hay in the morning.
"""


@pytest.fixture(scope="session")
def openllama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as OpenLLaMA v2 publishes it: tokenizer.model and its configuration, no tokenizer.json."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("openllama")
    (folder / "text.txt").write_text(TEXT * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def texts() -> list[str]:
    draw = random.Random(0)
    pieces = [
        " ",
        "  ",
        "   ",
        "llama",
        "the",
        "\n",
        "12",
        "3",
        "é",
        "🦙",
        "\t",
        "a",
        "</",
        "▁",
        "日",
        ".",
    ]
    return [
        *PROBES,
        *("".join(draw.choices(pieces, k=draw.randint(1, 12))) for _ in range(500)),
    ]


def test_ids_are_sentencepieces_own(openllama: Path, recipe: Recipe) -> None:
    from sentencepiece import SentencePieceProcessor

    judge = SentencePieceProcessor(model_file=str(openllama / "tokenizer.model"))
    base = recipe.base.model_copy(update={"model": str(openllama)})
    ours = load_tokenizer(recipe.model_copy(update={"base": base}))
    talk = [
        {"role": "user", "content": "12 + 30?"},
        {"role": "assistant", "content": "  42 🦙"},
    ]
    row, text = encode(ours, talk), ours.apply_chat_template(talk, tokenize=False)
    ids = judge.encode(text.removeprefix("<s>").removesuffix("</s>"))
    assert row["input_ids"] == [ours.bos_token_id, *ids, ours.eos_token_id]
    assert (
        judge.decode([i for i in row["labels"] if i != IGNORED][:-1]).strip() == "42 🦙"
    )
    wrong = [
        t
        for t in texts()
        if ours(t, add_special_tokens=False).input_ids != judge.encode(t)
    ]
    assert not wrong


def test_transformers_alone_disagrees(openllama: Path) -> None:
    """The trap is real: once transformers fixes it, `match_sentencepiece` can be removed."""
    from sentencepiece import SentencePieceProcessor
    from transformers import AutoTokenizer

    judge = SentencePieceProcessor(model_file=str(openllama / "tokenizer.model"))
    plain = AutoTokenizer.from_pretrained(str(openllama))
    assert plain("   three", add_special_tokens=False).input_ids != judge.encode(
        "   three"
    )


def test_saved_with_a_checkpoint_it_stays_the_same(
    openllama: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    ours = match_sentencepiece(
        AutoTokenizer.from_pretrained(str(openllama)),
        str(openllama / "tokenizer.model"),
    )
    ours.save_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    again = AutoTokenizer.from_pretrained(str(tmp_path))
    for text in texts():
        ids = ours("<s>" + text, add_special_tokens=False).input_ids
        assert again("<s>" + text, add_special_tokens=False).input_ids == ids
        assert again.decode(ids, skip_special_tokens=True) == text.replace("▁", " ")


# A byte-level tokenizer.json under the class of another tokenizer, as DeepSeek publishes its bases.

SPECIAL = ["<|begin|>", "<|end|>"]


def byte_level(folder: Path, kind: str, pieces: str = "bytes") -> Path:
    """A folder with a tokenizer.json, and a configuration that names a class."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if pieces == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet
        )
    else:  # words without what stands between them
        backend = Tokenizer(models.WordLevel(unk_token="<|begin|>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=SPECIAL)
    backend.train_from_iterator([TEXT, ROUND_TRIP] * 5, trainer)
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": kind,
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def tokenizer_of(recipe: Recipe, folder: Path) -> Any:
    return load_tokenizer(
        recipe.model_copy(
            update={"base": recipe.base.model_copy(update={"model": str(folder)})}
        )
    )


@pytest.mark.parametrize(
    "kind",
    [
        "LlamaTokenizerFast",
        "LlamaTokenizer",
        "PreTrainedTokenizerFast",
        "GPT2TokenizerFast",
    ],
)
def test_ids_are_those_of_tokenizer_json_whatever_class_is_named(
    recipe: Recipe, tmp_path: Path, kind: str
) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    folder = byte_level(tmp_path / "base", kind)
    judge = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours = tokenizer_of(recipe, folder)
    ours.save_pretrained(tmp_path / "saved")
    for tokenizer in (ours, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        for text in texts():
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert ids == judge.encode(text, add_special_tokens=False).ids
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert (tokenizer.bos_token, tokenizer.eos_token) == tuple(SPECIAL)


def test_transformers_alone_loses_spaces_and_lines(tmp_path: Path) -> None:
    """The trap is real: once transformers fixes it, `match_json` can be removed."""
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(
        byte_level(tmp_path / "base", "LlamaTokenizerFast")
    )
    assert " " not in plain.decode(
        plain("two words\n", add_special_tokens=False).input_ids
    )


def test_a_tokenizer_that_gives_no_text_back_is_refused(
    recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(
        RecipeError,
        match=r"its tokenizer does not give a text back.*becomes 'The price",
    ):
        tokenizer_of(
            recipe,
            byte_level(tmp_path / "base", "PreTrainedTokenizerFast", pieces="words"),
        )


@pytest.mark.parametrize(
    "name", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"]
)
def test_mistrals_own_files_give_sentencepieces_ids(
    recipe: Recipe, tmp_path: Path, name: str
) -> None:
    """Their runs of white space have scores of their own. The files come with vLLM's package mistral_common."""
    import shutil
    from importlib import resources

    from sentencepiece import SentencePieceProcessor

    shutil.copy(
        str(resources.files("mistral_common") / "data" / name),
        tmp_path / "tokenizer.model",
    )
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    judge = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = tokenizer_of(recipe, tmp_path)
    assert [
        text
        for text in texts()
        if ours(text, add_special_tokens=False).input_ids != judge.encode(text)
    ] == []
