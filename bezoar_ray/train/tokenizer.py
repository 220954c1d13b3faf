"""The base model's tokenizer, with the recipe's chat template.

All code of this package loads it here. Its ids are checked against the model's own
files, as some conversions to `tokenizers` change them.
"""

import json
import math
import unicodedata
from typing import TYPE_CHECKING, Any

from bezoar_ray.errors import RecipeError
from bezoar_ray.llm.model_identity import model_path
from bezoar_ray.recipe import Recipe

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Normalizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# Texts that the conversion to `tokenizers` is known to get wrong: leading and repeated
# spaces, digits, characters that fall back to bytes, compatibility characters that a
# normalizer would fold, and text after the beginning-of-sequence token.
PROBES = (
    "Hello world",
    " leading space",
    "   three leading",
    "runs  of   many    spaces     here      ",
    "",
    " ",
    "  ",
    "tabs\t\tand\n\nlines\n",
    "    def f(x):\n        return  x",
    "2024 12,345.678 007",
    "naïve café ﬁne ①½",
    "日本語 🦙🏽 Ωμέγα \u200b\u00a0x",
)


ROUND_TRIP = (
    "The  price of 12 naïve cafés,\n\n\tin Ωμέγα and 日本語: 1,234.50 🙂!\nx = [1]\n"
)


def load_tokenizer(
    recipe: Recipe, local_files_only: bool = False
) -> "PreTrainedTokenizerBase":
    """Load the base model's tokenizer with the recipe's chat template.

    It is ready for training and for saving.

    Args:
        recipe: its `base` and `template`.
        local_files_only: download nothing; transformers raises various errors for a
            missing file.

    Raises:
        RecipeError: there is no end-of-sequence token, ids differ from those of the
            model's own files, or decoding does not restore a text.
    """
    from transformers import AutoTokenizer

    base = recipe.base
    path = model_path(base.model)
    hub: dict[str, object] = {
        "revision": base.revision,
        "local_files_only": local_files_only,
    }
    # OpenLLaMA's README asks for `use_fast=False`, which transformers 5 ignores. So the
    # ids are compared below.
    tokenizer = AutoTokenizer.from_pretrained(
        path, trust_remote_code=base.trust_remote_code, **hub
    )
    model_file = _cached_file(path, "tokenizer.model", hub)
    if model_file and _is_sentencepiece(model_file):
        tokenizer = match_sentencepiece(tokenizer, model_file)
    else:
        json_file = _cached_file(path, "tokenizer.json", hub)
        if json_file:
            tokenizer = match_json(tokenizer, json_file)
    check_round_trip(tokenizer, base.model)
    if tokenizer.eos_token is None:
        raise RecipeError(
            f"base.model {base.model!r}: its tokenizer has no eos_token, so no answer "
            "could end. Choose another base"
        )
    # eos comes last: as padding, it differs from the end of an answer by masks alone.
    tokenizer.pad_token = (
        tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token
    )
    # `passes.take` cuts the padding of a pass off at the right.
    tokenizer.padding_side = "right"
    tokenizer.chat_template = recipe.template
    return tokenizer


def check_round_trip(tokenizer: "PreTrainedTokenizerBase", model: str) -> None:
    """Check that decoding restores words and lines; a run of spaces may become one.

    Raises:
        RecipeError: it does not, so training rows would lose text without notice.
    """
    ids = tokenizer(ROUND_TRIP, add_special_tokens=False).input_ids
    decoded = tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    if _words_by_line(decoded) != _words_by_line(ROUND_TRIP):
        raise RecipeError(
            f"base.model {model!r}: its tokenizer does not give a text back. "
            f"{ROUND_TRIP!r} becomes {decoded!r}, so training rows would lose text. "
            "Choose another base, or one with a complete tokenizer.json"
        )


def _words_by_line(text: str) -> list[list[str]]:
    """Return the words of each line, with compatibility characters folded.

    Tokenizers commonly fold them.
    """
    folded = unicodedata.normalize("NFKC", text).strip()
    return [line.split() for line in folded.split("\n")]


def match_json(
    tokenizer: "PreTrainedTokenizerBase", json_file: str
) -> "PreTrainedTokenizerBase":
    """Return a tokenizer with the ids of tokenizer.json.

    It is the given one if that has these ids, otherwise one built from the file.
    transformers 5 rebuilds some classes by their names alone: a byte-level
    tokenizer.json with the class LlamaTokenizerFast (DeepSeek's bases) loses all spaces
    and line breaks.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    reference = Tokenizer.from_file(json_file)
    for text in (*PROBES, ROUND_TRIP):
        expected = reference.encode(text, add_special_tokens=False).ids
        if tokenizer(text, add_special_tokens=False).input_ids != expected:
            return PreTrainedTokenizerFast(
                tokenizer_object=reference, **_settings_of(tokenizer)
            )
    return tokenizer


def match_sentencepiece(
    tokenizer: "PreTrainedTokenizerBase", model_file: str
) -> "PreTrainedTokenizerBase":
    """Return a tokenizer with sentencepiece's ids.

    It is the given one if that has these ids, otherwise one rebuilt with the settings
    of the model file. transformers 5 builds every LlamaTokenizer with one fixed
    pre-tokenizer, which drops a leading space, adds no prefix after the
    beginning-of-sequence token, and ignores the model file's normalizer. (OpenLLaMA's
    README warns of the same trap in earlier versions.)

    Raises:
        RecipeError: the rebuilt tokenizer has other ids, too.
    """
    from sentencepiece import SentencePieceProcessor

    reference = SentencePieceProcessor(model_file=model_file)
    if _first_difference(tokenizer, reference) is None:
        return tokenizer
    for by_score in (False, True):
        rebuilt = _rebuild(tokenizer, model_file, by_score)
        difference = _first_difference(rebuilt, reference)
        if difference is None:
            return rebuilt
    raise RecipeError(
        "base.model: the tokenizer does not give sentencepiece's ids for "
        f"{difference!r} ({model_file}). Choose a repository of the model with a "
        "tokenizer.json"
    )


def _first_difference(
    tokenizer: "PreTrainedTokenizerBase", reference: "SentencePieceProcessor"
) -> str | None:
    """Return the first probe whose ids differ, by itself or after the BOS token."""
    bos = tokenizer.bos_token
    for text in PROBES:
        expected = reference.encode(text)
        if tokenizer(text, add_special_tokens=False).input_ids != expected:
            return text
        if not bos or not text:
            continue
        ids = tokenizer(bos + text, add_special_tokens=False).input_ids
        if ids != [tokenizer.bos_token_id, *expected]:
            return bos + text
    return None


def _rebuild(
    tokenizer: "PreTrainedTokenizerFast", model_file: str, by_score: bool
) -> "PreTrainedTokenizerFast":
    """Build a plain tokenizer with the model file's normalizer.

    It does not change when it is saved and loaded again.

    Args:
        tokenizer: its vocabulary and special tokens are kept.
        model_file: of sentencepiece.
        by_score: merge pieces in the order of their scores. transformers merges runs of
            white space first, which have scores of their own in Mistral's files.
    """
    from transformers import PreTrainedTokenizerFast

    backend = tokenizer.backend_tokenizer
    if by_score:
        backend = _sort_merges_by_score(tokenizer, model_file)
    backend.normalizer = _normalizer(_read_model(model_file).normalizer_spec)
    backend.pre_tokenizer = None
    return PreTrainedTokenizerFast(tokenizer_object=backend, **_settings_of(tokenizer))


def _sort_merges_by_score(
    tokenizer: "PreTrainedTokenizerFast", model_file: str
) -> "Tokenizer":
    from tokenizers import Tokenizer

    scores = {piece.piece: piece.score for piece in _read_model(model_file).pieces}

    def negative_score(pair: list[str]) -> float:
        return -scores.get("".join(pair), -math.inf)

    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = tree["model"].get("merges") or []
    tree["model"]["merges"] = sorted(merges, key=negative_score)
    return Tokenizer.from_str(json.dumps(tree))


def _settings_of(tokenizer: "PreTrainedTokenizerBase") -> dict[str, object]:
    """Return the settings that a tokenizer built in place of this one takes over."""
    settings = {}
    for name in (
        "bos_token",
        "eos_token",
        "unk_token",
        "pad_token",
        "model_max_length",
        "clean_up_tokenization_spaces",
    ):
        value = getattr(tokenizer, name, None)
        if value is not None:
            settings[name] = value
    return settings


def _normalizer(spec: "Message") -> "Normalizer":
    """Build the normalizer that a sentencepiece model describes."""
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Strip())
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    steps.append(normalizers.Replace(" ", "▁"))
    return normalizers.Sequence(steps)


def _read_model(model_file: str) -> "Message":
    """Parse a sentencepiece model file."""
    from sentencepiece import sentencepiece_model_pb2

    # The class is made at run time.
    model: Message = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    with open(model_file, "rb") as file:
        model.ParseFromString(file.read())
    return model


def _cached_file(path: str, name: str, hub: dict[str, object]) -> str | None:
    """Return a file of a model's folder or repository, or None if it has none."""
    from transformers.utils import cached_file

    return cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub)


def _is_sentencepiece(model_file: str) -> bool:
    """Whether a tokenizer.model is sentencepiece's; other formats share the name."""
    from google.protobuf.message import DecodeError

    try:
        # 1 is unigram, 2 is BPE.
        return _read_model(model_file).trainer_spec.model_type in (1, 2)
    except DecodeError:
        return False
