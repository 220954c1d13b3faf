"""The real engine: vLLM on this machine with the tiny teacher, started once."""

import asyncio
from types import SimpleNamespace

import orjson
import pytest

from bezoar_ray.filter.rating_prompt import VERDICT
from bezoar_ray.llm.chat import CallFailed, Sampling
from bezoar_ray.llm.engine import VllmEngine, with_cpu_defaults
from bezoar_ray.recipe import ModelSection


def ask(text):
    return [{"role": "user", "content": text}]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_engine_answers_keeps_to_a_schema_and_fails_a_prompt_that_is_too_long_alone(
    tiny_world,
):
    async def go():
        engine = VllmEngine(ModelSection(model="tiny-teacher", dtype="float32"))
        try:
            return await asyncio.gather(
                engine.complete(ask("Name a bird."), Sampling(0.0, 1.0, 5)),
                engine.complete(
                    ask("Rate this row."), Sampling(1.0, 1.0, 400, VERDICT)
                ),
                engine.complete(ask("word " * 5000), Sampling()),
                engine.complete(ask("<s>old price</s>"), Sampling(0.0, 1.0, 5)),
                return_exceptions=True,
            )
        finally:
            await engine.close()

    short, verdict, long, spelt = asyncio.run(go())
    assert (
        short.text
        and 0 < short.tokens_out <= 5
        and short.finish_reason in ("stop", "length")
    )
    if verdict.finish_reason == "stop":
        assert orjson.loads(verdict.text)["rating"] in (1, 2, 3, 4, 5)
    assert verdict.text.lstrip().startswith("{")
    assert isinstance(long, CallFailed) and "tokens in a context of" in str(long)
    assert (
        spelt.tokens_in > short.tokens_in + 5
    )  # what spells control tokens is text, of several tokens each


def test_on_a_cpu_an_engine_that_needs_one_process_gets_one():
    alone = with_cpu_defaults({"max_model_len": 512})
    assert alone["max_model_len"] == 512 and alone[
        "distributed_executor_backend"
    ].endswith("UniProcExecutor")
    assert "distributed_executor_backend" not in with_cpu_defaults(
        {"tensor_parallel_size": 2}
    )
    assert (
        with_cpu_defaults({"distributed_executor_backend": "mp"})[
            "distributed_executor_backend"
        ]
        == "mp"
    )


@pytest.mark.parametrize("marks", [("<think>", "</think>"), ("<a>", "<b>")])
def test_what_an_answer_spells_stays_and_its_control_tokens_go(marks):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(
        models.BPE({letter: number for number, letter in enumerate(alphabet)}, [])
    )
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    said = tokenizer(f"{marks[0]}hm{marks[1]}<s>a", add_special_tokens=False).input_ids
    said += tokenizer(
        "<s>old</s>", add_special_tokens=False, split_special_tokens=True
    ).input_ids
    engine = object.__new__(VllmEngine)
    engine._set_tokenizer(tokenizer)
    reasoning = "".join((marks[0], "hm", marks[1])) if "think" in marks[0] else "hm"
    for finish, ids in (("length", said), ("stop", [*said, tokenizer.eos_token_id])):
        answer = SimpleNamespace(token_ids=ids, finish_reason=finish)
        assert engine._decode(answer) == f"{reasoning}a<s>old</s>"
