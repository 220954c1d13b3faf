"""The one way to the tokenizer: with the recipe's chat template, and in agreement with the files of the model."""

import json
import math
import unicodedata
from typing import TYPE_CHECKING, Any

from bezoar_ray.errors import RecipeError
from bezoar_ray.llm.model_identity import model_path
from bezoar_ray.recipe import Recipe

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Normalizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# What the conversion to `tokenizers` is known to get wrong: leading and repeated spaces, digits, characters that fall
# back to bytes, compatibility characters that a normaliser would fold, text after the beginning-of-sequence token.
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
    """The base model's tokenizer with the recipe's chat template, ready for training and for saving.

    With `local_files_only` nothing comes from the hub; transformers has many kinds of errors for a missing file.

    Raises:
        RecipeError: no end-of-sequence token, ids that differ from those of the model's own files, or a text that does
            not come back from its ids.
    """
    from transformers import AutoTokenizer

    base, path = recipe.base, model_path(recipe.base.model)
    hub: dict[str, object] = {
        "revision": base.revision,
        "local_files_only": local_files_only,
    }
    tokenizer = AutoTokenizer.from_pretrained(
        path, trust_remote_code=base.trust_remote_code, **hub
    )
    if model_file := _sentencepiece_file(path, hub):
        tokenizer = agreeing(tokenizer, model_file)
    elif json_file := _file(path, "tokenizer.json", hub):
        tokenizer = as_in_json(tokenizer, json_file)
    check_round_trip(tokenizer, base.model)
    if tokenizer.eos_token is None:
        raise RecipeError(
            f"base.model {base.model!r}: its tokenizer has no eos_token, so no answer could ever end"
        )
    tokenizer.pad_token = (
        tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token
    )
    tokenizer.padding_side = "right"
    tokenizer.chat_template = recipe.template
    return tokenizer


def check_round_trip(tokenizer: "PreTrainedTokenizerBase", model: str) -> None:
    """See that words and lines come back from their ids; a run of spaces may come back as one.

    Raises:
        RecipeError: they do not, so rows would lose them without notice.
    """
    ids = tokenizer(ROUND_TRIP, add_special_tokens=False).input_ids
    back = tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    if _lines(back) != _lines(ROUND_TRIP):
        raise RecipeError(
            f"base.model {model!r}: its tokenizer does not give a text back. {ROUND_TRIP!r} becomes {back!r}, so rows "
            "would be trained on without what is lost. Choose another base, or one whose tokenizer.json is whole"
        )


def _lines(text: str) -> list[list[str]]:
    """The words of each line, as compatibility characters are commonly folded."""
    return [
        line.split() for line in unicodedata.normalize("NFKC", text).strip().split("\n")
    ]


def as_in_json(
    tokenizer: "PreTrainedTokenizerBase", json_file: str
) -> "PreTrainedTokenizerBase":
    """The tokenizer itself where it gives the ids of tokenizer.json, else one made of that file.

    transformers 5 rebuilds some classes by their names alone: a byte-level tokenizer.json whose class is
    LlamaTokenizerFast (DeepSeek's bases) loses all spaces and line breaks.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    judge = Tokenizer.from_file(json_file)

    def differs(text: str) -> bool:
        ids = judge.encode(text, add_special_tokens=False).ids
        return tokenizer(text, add_special_tokens=False).input_ids != ids

    if not any(map(differs, (*PROBES, ROUND_TRIP))):
        return tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=judge, **_kept(tokenizer))


def agreeing(
    tokenizer: "PreTrainedTokenizerBase", model_file: str
) -> "PreTrainedTokenizerBase":
    """The tokenizer itself where it gives sentencepiece's ids, else one rebuilt from sentencepiece's own settings.

    transformers 5 builds every LlamaTokenizer with one fixed pre-tokenizer, which swallows a leading space, adds no
    prefix after the beginning-of-sequence token, and ignores the model file's normaliser (OpenLLaMA's README warns of
    the same trap for earlier versions).

    Raises:
        RecipeError: not even the rebuilt one agrees.
    """
    from sentencepiece import SentencePieceProcessor

    judge = SentencePieceProcessor(model_file=model_file)
    if not _differs(tokenizer, judge):
        return tokenizer
    found = None
    for by_score in (False, True):
        rebuilt = _rebuilt(tokenizer, model_file, by_score)
        found = _differs(rebuilt, judge)
        if not found:
            return rebuilt
    raise RecipeError(
        f"base.model: the tokenizer does not give sentencepiece's ids for {found!r} ({model_file}). Take a repository "
        "of the model that holds a tokenizer.json"
    )


def _differs(
    tokenizer: "PreTrainedTokenizerBase", judge: "PreTrainedTokenizerBase"
) -> str | None:
    """The first probe whose ids differ, alone or after the beginning-of-sequence token."""
    bos = tokenizer.bos_token or ""
    for text in PROBES:
        ids = judge.encode(text)
        if tokenizer(text, add_special_tokens=False).input_ids != ids:
            return text
        if (
            bos
            and text
            and tokenizer(bos + text, add_special_tokens=False).input_ids
            != [tokenizer.bos_token_id, *ids]
        ):
            return bos + text
    return None


def _rebuilt(
    tokenizer: "PreTrainedTokenizerFast", model_file: str, by_score: bool
) -> "PreTrainedTokenizerFast":
    """A plain tokenizer whose normaliser does what the model file says; saved and loaded again it stays the same.

    With `by_score`, pieces are merged in the order of their scores: transformers merges runs of white space first,
    whose pieces have scores of their own in Mistral's files.
    """
    from transformers import PreTrainedTokenizerFast

    backend = (
        _merged_by_score(tokenizer, model_file)
        if by_score
        else tokenizer.backend_tokenizer
    )
    backend.normalizer, backend.pre_tokenizer = (
        _normalizer(_proto(model_file).normalizer_spec),
        None,
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **_kept(tokenizer))


def _merged_by_score(
    tokenizer: "PreTrainedTokenizerFast", model_file: str
) -> "Tokenizer":
    from tokenizers import Tokenizer

    scores = {piece.piece: piece.score for piece in _proto(model_file).pieces}
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = tree["model"].get("merges") or []
    tree["model"]["merges"] = sorted(
        merges, key=lambda pair: -scores.get("".join(pair), -math.inf)
    )
    return Tokenizer.from_str(json.dumps(tree))


def _kept(tokenizer: "PreTrainedTokenizerBase") -> dict[str, object]:
    """What one tokenizer tells another that is made in its place."""
    names = (
        "bos_token",
        "eos_token",
        "unk_token",
        "pad_token",
        "model_max_length",
        "clean_up_tokenization_spaces",
    )
    return {
        name: getattr(tokenizer, name)
        for name in names
        if getattr(tokenizer, name, None) is not None
    }


def _normalizer(spec: "Message") -> "Normalizer":
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])


def _proto(model_file: str) -> "Message":
    from sentencepiece import sentencepiece_model_pb2

    proto: Message = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at run time
    with open(model_file, "rb") as file:
        proto.ParseFromString(file.read())
    return proto


def _sentencepiece_file(path: str, hub: dict[str, object]) -> str | None:
    """The model file of a sentencepiece tokenizer; other formats share its name, and then it is not one."""
    found = _file(path, "tokenizer.model", hub)
    return found if found and _is_sentencepiece(found) else None


def _file(path: str, name: str, hub: dict[str, object]) -> str | None:
    """A file of a model's folder or repository, where it has one."""
    from transformers.utils import cached_file

    return cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub)


def _is_sentencepiece(path: str) -> bool:
    from google.protobuf.message import DecodeError

    try:
        return _proto(path).trainer_spec.model_type in (1, 2)
    except DecodeError:
        return False
