"""The one way to the tokenizer: with the recipe's chat template, and in agreement with sentencepiece."""

from typing import Any

from bezoar_ray.errors import RecipeError
from bezoar_ray.llm.models import model_path
from bezoar_ray.recipe import Recipe

# What the conversion to `tokenizers` is known to get wrong: leading and repeated spaces, digits, characters that fall
# back to bytes, compatibility characters that a normaliser would fold, text after the beginning-of-sequence token.
PROBES = (
    "Hello world", " leading space", "   three leading", "runs  of   many    spaces     here      ", "", " ", "  ",
    "tabs\t\tand\n\nlines\n", "    def f(x):\n        return  x", "2024 12,345.678 007",
    "naïve café ﬁne ①½", "日本語 🦙🏽 Ωμέγα \u200b\u00a0x",
)  # fmt: skip


def load_tokenizer(recipe: Recipe) -> Any:
    """The base model's tokenizer with the recipe's chat template, ready for training and for saving.

    Raises:
        RecipeError: no end-of-sequence token, or ids that differ from sentencepiece's own.
    """
    from transformers import AutoTokenizer

    base, path = recipe.base, model_path(recipe.base.model)
    hub = {"revision": base.revision, "trust_remote_code": base.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(path, **hub)
    if model_file := _sentencepiece_file(path, base.revision):
        tokenizer = agreeing(tokenizer, model_file)
    if tokenizer.eos_token is None:
        raise RecipeError(f"base.model {base.model!r}: its tokenizer has no eos_token, so no answer could ever end")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    tokenizer.chat_template = recipe.template
    return tokenizer


def agreeing(tokenizer: Any, model_file: str) -> Any:
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
    rebuilt = _rebuilt(tokenizer, model_file)
    if found := _differs(rebuilt, judge):
        raise RecipeError(f"base.model: the tokenizer does not give sentencepiece's ids for {found!r} ({model_file})")
    return rebuilt


def _differs(tokenizer: Any, judge: Any) -> str | None:
    """The first probe whose ids differ, alone or after the beginning-of-sequence token."""
    bos = tokenizer.bos_token or ""
    for text in PROBES:
        ids = judge.encode(text)
        if tokenizer(text, add_special_tokens=False).input_ids != ids:
            return text
        if bos and text and tokenizer(bos + text, add_special_tokens=False).input_ids != [tokenizer.bos_token_id, *ids]:
            return bos + text
    return None


def _rebuilt(tokenizer: Any, model_file: str) -> Any:
    """A plain tokenizer whose normaliser does what the model file says; saved and loaded again it stays the same."""
    from transformers import PreTrainedTokenizerFast

    backend = tokenizer.backend_tokenizer
    backend.normalizer, backend.pre_tokenizer = _normalizer(_proto(model_file).normalizer_spec), None
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "model_max_length", "clean_up_tokenization_spaces")
    kept = {name: getattr(tokenizer, name) for name in names if getattr(tokenizer, name, None) is not None}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **kept)


def _normalizer(spec: Any) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])


def _proto(model_file: str) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    with open(model_file, "rb") as file:
        proto.ParseFromString(file.read())
    return proto


def _sentencepiece_file(path: str, revision: str | None) -> str | None:
    """The model file of a sentencepiece tokenizer; other formats share its name, and then it is not one."""
    from transformers.utils import cached_file

    found = cached_file(path, "tokenizer.model", revision=revision, _raise_exceptions_for_missing_entries=False)
    return found if found and _is_sentencepiece(found) else None


def _is_sentencepiece(path: str) -> bool:
    from google.protobuf.message import DecodeError

    try:
        return _proto(path).trainer_spec.model_type in (1, 2)
    except DecodeError:
        return False
