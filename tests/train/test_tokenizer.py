"""The tokenizer gives the ids that the base model was trained on, OpenLLaMA's trap included."""

import json
import random
from pathlib import Path

import pytest

from bezoar_ray.recipe import Recipe
from bezoar_ray.train.data import IGNORED, encode
from bezoar_ray.train.tokenizer import PROBES, agreeing, load_tokenizer

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
        input=str(folder / "text.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=420, model_type="bpe",
        byte_fallback=True, split_digits=True, add_dummy_prefix=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    config = {
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>",
        "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 2048, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def texts() -> list[str]:
    draw = random.Random(0)
    pieces = [" ", "  ", "   ", "llama", "the", "\n", "12", "3", "é", "🦙", "\t", "a", "</", "▁", "日", "."]
    return [*PROBES, *("".join(draw.choices(pieces, k=draw.randint(1, 12))) for _ in range(500))]


def test_ids_are_sentencepieces_own(openllama: Path, recipe: Recipe) -> None:
    from sentencepiece import SentencePieceProcessor

    judge = SentencePieceProcessor(model_file=str(openllama / "tokenizer.model"))
    base = recipe.base.model_copy(update={"model": str(openllama)})
    ours = load_tokenizer(recipe.model_copy(update={"base": base}))
    talk = [{"role": "user", "content": "12 + 30?"}, {"role": "assistant", "content": "  42 🦙"}]
    row, text = encode(ours, talk), ours.apply_chat_template(talk, tokenize=False)
    ids = judge.encode(text.removeprefix("<s>").removesuffix("</s>"))
    assert row["input_ids"] == [ours.bos_token_id, *ids, ours.eos_token_id]
    assert judge.decode([i for i in row["labels"] if i != IGNORED][:-1]).strip() == "42 🦙"
    wrong = [t for t in texts() if ours(t, add_special_tokens=False).input_ids != judge.encode(t)]
    assert not wrong


def test_transformers_alone_disagrees(openllama: Path) -> None:
    """The trap is real: should transformers mend it, `agreeing` has nothing left to do and may go."""
    from sentencepiece import SentencePieceProcessor
    from transformers import AutoTokenizer

    judge = SentencePieceProcessor(model_file=str(openllama / "tokenizer.model"))
    plain = AutoTokenizer.from_pretrained(str(openllama))
    assert plain("   three", add_special_tokens=False).input_ids != judge.encode("   three")


def test_saved_with_a_checkpoint_it_stays_the_same(openllama: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours = agreeing(AutoTokenizer.from_pretrained(str(openllama)), str(openllama / "tokenizer.model"))
    ours.save_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    again = AutoTokenizer.from_pretrained(str(tmp_path))
    for text in texts():
        ids = ours("<s>" + text, add_special_tokens=False).input_ids
        assert again("<s>" + text, add_special_tokens=False).input_ids == ids
        assert again.decode(ids, skip_special_tokens=True) == text.replace("▁", " ")
