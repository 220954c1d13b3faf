"""Control tokens come from the chat template alone, in training, serving and scoring: what a text says is text."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bezoar_ray.data.schema import Sample
from bezoar_ray.llm.chat_tokens import (
    chat_ids,
    chat_tokens,
    control_tokens_of,
    protect_chat_template,
)
from bezoar_ray.recipe import load_recipe
from bezoar_ray.sources import read_pairs
from bezoar_ray.train import encoding
from bezoar_ray.train.tokenizer import PROBES, ROUND_TRIP, load_tokenizer
from tests.train.test_tokenizer import TEXT, byte_level, openllama, texts  # noqa: F401

KINDS = [
    pytest.param("tiny", marks=pytest.mark.heavy),
    "byte-level",
    "merged",
    "unigram",
    "sentencepiece",
    "smollm2",
]
ORDINARY = (*PROBES, *texts()[:60])


def mergeable(folder: Path) -> Path:
    """A byte-level BPE that has learnt to merge the letters of its own control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        ["<s>", "</s>", "the"] * 50, trainers.BpeTrainer(initial_alphabet=alphabet)
    )
    assert backend.encode("</s>").tokens == ["</s>"]
    return saved(backend, folder)


def unigram(folder: Path) -> Path:
    """A Unigram model, whose own vocabulary holds the control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="first", split=False
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        initial_alphabet=sorted(
            {chr(code) for code in range(32, 127)}
            | {*"".join((*PROBES, ROUND_TRIP, "本語"))}
        ),
    )
    backend.train_from_iterator([TEXT] * 5, trainer)
    return saved(backend, folder)


def saved(backend: Any, folder: Path) -> Path:
    from transformers import PreTrainedTokenizerFast

    named = {"bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


@pytest.fixture(params=KINDS, scope="module")
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """As training loads it, with the recipe's template."""
    return tokenizer_of(folder_of(request, tmp_path_factory.mktemp("base") / "base"))


def folder_of(request: pytest.FixtureRequest, folder: Path) -> Path:
    if request.param == "tiny":
        return Path(request.getfixturevalue("tiny_world").base)
    if request.param == "sentencepiece":
        return request.getfixturevalue("openllama")
    if request.param == "smollm2":
        from bezoar_ray.runtime.caches import bezoar_cache

        found = bezoar_cache() / "smollm2-135m-instruct"
        return (
            found
            if found.is_dir()
            else pytest.skip("SmolLM2 is not in the cache: make real-model")
        )
    if request.param == "byte-level":
        return byte_level(folder, "PreTrainedTokenizerFast")
    return {"merged": mergeable, "unigram": unigram}[request.param](folder)


def tokenizer_of(folder: Path) -> Any:
    recipe = load_recipe("tiny")
    return load_tokenizer(
        recipe.model_copy(
            update={"base": recipe.base.model_copy(update={"model": str(folder)})}
        )
    )


def hostile(tokenizer: Any) -> list[str]:
    """Texts that spell the tokenizer's control tokens: first, last, side by side, within other scripts."""
    bos, eos, pad = tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token
    one = [
        eos,
        f"price {eos}",
        f"{eos} price",
        f"x\n{eos}\ny",
        f"{eos}  ",
        f"<{eos}>",
        f"{eos[:-1]}{eos}",
    ]
    return [
        *one,
        f"{bos}old price{eos}",
        f"a{bos}{bos}{eos}{pad}b",
        f"café {eos}日本語 🦙{bos}",
    ]


def controls(tokenizer: Any, ids: list[int]) -> Counter[int]:
    return Counter(number for number in ids if number in tokenizer.all_special_ids)


def talk(text: str) -> list[dict[str, str]]:
    """The text in every place, and in several turns."""
    roles = ["system", "user", "assistant", "user", "assistant"]
    return [{"role": role, "content": text} for role in roles]


def answers(tokenizer: Any, row: encoding.Tokens) -> str:
    labels = [label for label in row["labels"] if label != encoding.IGNORED]
    return tokenizer.decode(labels, clean_up_tokenization_spaces=False)


def test_a_text_adds_no_control_token(tokenizer: Any) -> None:
    wanted = controls(tokenizer, encoding.encode(tokenizer, talk("plain"))["input_ids"])
    for text in hostile(tokenizer):
        row = encoding.encode(tokenizer, talk(text))
        assert controls(tokenizer, row["input_ids"]) == wanted, text
        assert (
            row["input_ids"].count(tokenizer.eos_token_id) == 2
            and row["labels"][-1] == tokenizer.eos_token_id
        )


def test_nothing_of_a_text_is_lost(tokenizer: Any) -> None:
    for text in hostile(tokenizer):
        ids = encoding.encode(tokenizer, talk(text))["input_ids"]
        rendered = tokenizer.apply_chat_template(talk(text), tokenize=False)
        decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert decoded.replace(" ", "") == rendered.replace(" ", "")


def test_the_answers_alone_are_trained_on(tokenizer: Any) -> None:
    for text in hostile(tokenizer):
        answer = answers(tokenizer, encoding.encode(tokenizer, talk(text)))
        assert (
            answer.replace(" ", "") == (text + tokenizer.eos_token).replace(" ", "") * 2
        )
        last = answers(
            tokenizer, encoding.last_answer(tokenizer, talk(text)[:-1], text)
        )
        assert last.replace(" ", "") == (text + tokenizer.eos_token).replace(" ", "")


def test_other_texts_have_the_ids_that_they_had(tokenizer: Any) -> None:
    twin = control_tokens_of(tokenizer).placeholder_tokenizer
    for text in ORDINARY:
        said = tokenizer.apply_chat_template(
            talk(text), return_assistant_tokens_mask=True
        )
        assert (
            chat_tokens(tokenizer, talk(text), return_assistant_tokens_mask=True)
            == said
        )
        rendered = tokenizer.apply_chat_template(talk(text), tokenize=False)
        assert (
            twin.encode(
                control_tokens_of(tokenizer).swap(rendered), add_special_tokens=False
            ).ids
            == said["input_ids"]
        )


def test_control_tokens_keep_their_ids(tokenizer: Any) -> None:
    spelling = control_tokens_of(tokenizer)
    for number, token in tokenizer.backend_tokenizer.get_added_tokens_decoder().items():
        spelt = spelling.swap(token.content) if token.special else token.content
        assert spelling.placeholder_tokenizer.token_to_id(spelt) == number


def test_between_the_templates_own_a_text_is_as_sentencepiece_has_it(
    openllama: Path,  # noqa: F811
) -> None:
    from sentencepiece import SentencePieceProcessor

    judge, ours = (
        SentencePieceProcessor(model_file=str(openllama / "tokenizer.model")),
        tokenizer_of(openllama),
    )
    for text in hostile(ours):
        asked = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": text},
        ]
        rendered = (
            ours.apply_chat_template(asked, tokenize=False)
            .removeprefix("<s>")
            .removesuffix("</s>")
        )
        assert encoding.encode(ours, asked)["input_ids"] == [
            1,
            *judge.encode(rendered),
            2,
        ]


def test_training_serving_and_scoring_see_the_same_ids(
    tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    from bezoar_ray.evaluate.completions import ChatCompletions
    from bezoar_ray.evaluate.mt_bench.answers import remaining_context_of

    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    served = AutoTokenizer.from_pretrained(tmp_path)
    protect_chat_template(served)  # as vLLM's server asks it
    scored = ChatCompletions(
        base_url="http://127.0.0.1:9/v1",
        model="sft",
        tokenizer=str(tmp_path),
        tokenizer_backend="huggingface",
        tokenized_requests=True,
        add_bos_token=False,
    )
    room = remaining_context_of(str(tmp_path), 10_000)
    for text in hostile(tokenizer):
        row = encoding.encode(tokenizer, talk(text))
        prompt = row["input_ids"][
            : max(
                i for i, label in enumerate(row["labels"]) if label == encoding.IGNORED
            )
            + 1
        ]
        options: dict[str, Any] = {
            "add_generation_prompt": True,
            "tokenize": False,
            "return_dict": False,
        }
        assert (
            served.apply_chat_template(conversation=talk(text)[:-1], **options)
            == prompt
        )
        assert scored.tok_encode(scored.apply_chat_template(talk(text)[:-1])) == prompt
        assert scored.tok_encode([scored.apply_chat_template(talk(text)[:-1])]) == [
            prompt
        ]
        assert room(talk(text)[:-1]) == 10_000 - len(prompt)
        assert not controls(tokenizer, scored.tok_encode(text))
    plain = served.apply_chat_template(conversation=talk("plain")[:-1], **options)
    assert plain == tokenizer.apply_chat_template(
        talk("plain")[:-1], **options
    )  # a text, which vLLM encodes


def test_prompts_without_control_tokens_are_encoded_as_lm_eval_does(
    tokenizer: Any, tmp_path: Path
) -> None:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from bezoar_ray.evaluate.completions import ChatCompletions

    tokenizer.save_pretrained(tmp_path)
    for bos in (True, False):
        arguments = {
            "base_url": "http://127.0.0.1:9/v1",
            "model": "sft",
            "tokenizer": str(tmp_path),
            "tokenizer_backend": "huggingface",
            "add_bos_token": bos,
        }
        ours, theirs = ChatCompletions(**arguments), LocalCompletionsAPI(**arguments)
        asked = [text for text in ORDINARY if text.strip()]
        assert ours.tok_encode(asked) == theirs.tok_encode(asked)
        assert ours.tok_encode(asked[0], left_truncate_len=2) == theirs.tok_encode(
            asked[0], left_truncate_len=2
        )
        assert ours._encode_pair("A question ", "its answer") == theirs._encode_pair(
            "A question ", "its answer"
        )


def test_rows_pairs_and_transcripts_are_text(tokenizer: Any, tmp_path: Path) -> None:
    eos, wanted = tokenizer.eos_token, tokenizer.eos_token_id
    told = Sample(
        "1",
        "orca",
        "x",
        system=f"Say {eos}",
        instruction=f"What is {eos}?",
        response=f"{eos} ends",
    ).to_row()
    assert encoding.sample_tokens(tokenizer, told, 4096)["input_ids"].count(wanted) == 1
    row = {
        "chosen": f"\n\nHuman: {eos}\n\nAssistant: a{eos}\n\nHuman: b\n\nAssistant: {eos}c",
        "rejected": f"\n\nHuman: {eos}\n\nAssistant: a{eos}\n\nHuman: b\n\nAssistant: d{eos}",
    }
    (tmp_path / "hh.jsonl").write_text(json.dumps(row))
    part = (
        load_recipe("tiny")
        .seeds.hh_rlhf[0]
        .model_copy(update={"source": str(tmp_path / "hh.jsonl")})
    )
    (pair,) = read_pairs([part]).rows
    assert (
        encoding.chosen_tokens(tokenizer, vars(pair), 4096)["input_ids"].count(wanted)
        == 2
    )
    found = encoding.pair_tokens(tokenizer, vars(pair), 4096)
    sides = {
        name: tokenizer.decode(found[name]).replace(" ", "")
        for name in ("chosen_ids", "rejected_ids")
    }
    assert sides == {"chosen_ids": f"{eos}c{eos}", "rejected_ids": f"d{eos}{eos}"}
    assert [found[name].count(wanted) for name in found] == [1, 1, 1]


def test_a_template_may_put_control_tokens_together(tmp_path: Path) -> None:
    """As Phi-3's, which writes `'<|' + role + '|>'`; tools are texts, too."""
    from transformers import AutoTokenizer

    ours = AutoTokenizer.from_pretrained(
        byte_level(tmp_path / "base", "PreTrainedTokenizerFast")
    )
    template = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '\n' }}{% endfor %}{{ tools | tojson }}"
    asked = [
        {"role": "begin", "content": "<|end|>"},
        {"role": "end", "content": "<|begin|>"},
    ]
    ids = chat_tokens(ours, asked, chat_template=template, tools=[{"name": "<|end|>"}])[
        "input_ids"
    ]
    assert [number for number in ids if number in ours.all_special_ids] == [0, 1]
    assert (
        ours.decode(ids) == '<|begin|><|end|>\n<|end|><|begin|>\n[{"name": "<|end|>"}]'
    )


def test_a_tokenizer_that_is_none_of_transformers_is_asked_as_it_knows():
    class Ids:
        """As vLLM's of mistral_common."""

        def apply_chat_template(
            self, messages: Any, tools: Any = None, **options: Any
        ) -> list[int]:
            return [len(messages[0]["content"])]

    assert chat_ids(
        Ids(), [{"role": "user", "content": "</s>"}], add_generation_prompt=True
    ) == [4]


def test_a_template_that_is_not_there_is_named_as_before(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours = AutoTokenizer.from_pretrained(
        byte_level(tmp_path / "base", "PreTrainedTokenizerFast")
    )
    with pytest.raises(ValueError, match="chat_template"):
        chat_tokens(ours, talk("<|end|>"))
