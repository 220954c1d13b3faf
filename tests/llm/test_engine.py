"""The real engine: vLLM on this machine with the tiny teacher, started once."""

import asyncio

import orjson
import pytest

from bezoar_ray.filter.prompt import VERDICT
from bezoar_ray.llm.chat import CallFailed, Sampling
from bezoar_ray.llm.engine import VllmEngine, on_cpu
from bezoar_ray.recipe import ModelPart


def ask(text):
    return [{"role": "user", "content": text}]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_engine_answers_keeps_to_a_schema_and_fails_a_prompt_that_is_too_long_alone(tiny_world):
    async def go():
        engine = VllmEngine(ModelPart(model="tiny-teacher", dtype="float32"))
        try:
            return await asyncio.gather(
                engine.complete(ask("Name a bird."), Sampling(0.0, 1.0, 5)),
                engine.complete(ask("Rate this row."), Sampling(1.0, 1.0, 400, VERDICT)),
                engine.complete(ask("word " * 5000), Sampling()),
                engine.complete(ask("<s>old price</s>"), Sampling(0.0, 1.0, 5)),
                return_exceptions=True,
            )
        finally:
            await engine.close()

    short, verdict, long, spelt = asyncio.run(go())
    assert short.text and 0 < short.tokens_out <= 5 and short.finish_reason in ("stop", "length")
    if verdict.finish_reason == "stop":
        assert orjson.loads(verdict.text)["rating"] in (1, 2, 3, 4, 5)
    assert verdict.text.lstrip().startswith("{")
    assert isinstance(long, CallFailed) and "tokens in a context of" in str(long)
    assert spelt.tokens_in > short.tokens_in + 5  # what spells control tokens is text, of several tokens each


def test_on_a_cpu_an_engine_that_needs_one_process_gets_one():
    alone = on_cpu({"max_model_len": 512})
    assert alone["max_model_len"] == 512 and alone["distributed_executor_backend"].endswith("UniProcExecutor")
    assert "distributed_executor_backend" not in on_cpu({"tensor_parallel_size": 2})
    assert on_cpu({"distributed_executor_backend": "mp"})["distributed_executor_backend"] == "mp"
