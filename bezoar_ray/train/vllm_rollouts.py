"""Rollouts by vLLM: an engine beside each training worker, on the worker's GPU.

The engine has the frozen model of the training and the policy's adapter. Each batch of
answers gets the adapter under a new name and id. With the id of an earlier adapter,
vLLM 0.29 would silently go on with the earlier weights.
"""

import asyncio
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bezoar_ray.llm import engine
from bezoar_ray.recipe import Align
from bezoar_ray.runtime.engine_parent import bind_children
from bezoar_ray.runtime.logs import redirect
from bezoar_ray.train import adapters, model_loading
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.online_model import POLICY
from bezoar_ray.train.rollouts import Episode, Prompt, Sampler

if TYPE_CHECKING:
    from peft import PeftModel

_LARGEST_SEED = 2**63


@dataclass(frozen=True)
class RolloutRequest:
    """An answer to be sampled."""

    ids: list[int]
    seed: int
    max_tokens: int


@dataclass(frozen=True)
class RolloutAnswer:
    """A sampled answer."""

    ids: list[int]
    """With the token that ended it."""
    log_probs: tuple[float, ...]
    """Of its tokens, at the temperature of the sampling."""


class VllmSampler:
    """Samples answers in an engine of its own, which ends with this process.

    Args:
        job: of the training, on this worker.
        align: the recipe's section.
        sampler: with the settings of the sampling.
    """

    def __init__(self, job: Job, align: Align, sampler: Sampler):
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._sampler = sampler
        self._version = 0
        self._folder = Path(tempfile.mkdtemp(prefix="bezoar-policy-"))
        node = ray.get_runtime_context().get_node_id()
        # It reserves nothing: what it uses is the worker's.
        actor = ray.remote(num_cpus=0, num_gpus=0)(_RolloutEngine)
        affinity = NodeAffinitySchedulingStrategy(node, soft=False)
        # Ray's types do not know the methods of an async actor.
        self._engine = cast(Any, actor.options(scheduling_strategy=affinity).remote())
        ray.get(
            self._engine.start.remote(
                str(job.store.log(f"{job.stage}.log")),
                os.environ.get("CUDA_VISIBLE_DEVICES"),
                arguments(job, align),
            )
        )

    def episodes(
        self, model: "PeftModel", prompts: list[Prompt], iteration: int, group: int
    ) -> list[Episode]:
        """Sample answers as `Sampler.episodes` does, by the model's present policy.

        With the same seeds, an engine may still choose other tokens: its rounding
        depends on what it computes at the same time.
        """
        import ray

        requests = []
        members = []
        for prompt in prompts:
            for member in range(group):
                key = self._sampler.random_key(iteration, prompt.draw, member)
                request = RolloutRequest(
                    prompt.context, key % _LARGEST_SEED, self._sampler.budget(prompt)
                )
                requests.append(request)
                members.append(prompt)
        self._version += 1
        adapter = self._folder / f"policy-{self._version}"
        model.save_pretrained(str(adapter), selected_adapters=[POLICY])
        answers: list[RolloutAnswer] = ray.get(
            self._engine.sample.remote(
                requests,
                str(adapter),
                self._version,
                self._sampler.temperature,
                self._sampler.end_ids,
            )
        )
        # The engine has read it, and has dropped the one before it.
        shutil.rmtree(adapter)
        tokens = [answer.ids for answer in answers]
        episodes = []
        for answer, episode in zip(
            answers, self._sampler.finish(members, tokens), strict=True
        ):
            log_probs = answer.log_probs[: len(episode.own_ids)]
            episodes.append(replace(episode, engine_log_probs=log_probs))
        return episodes


def arguments(job: Job, align: Align) -> dict[str, Any]:
    """Return the arguments of the engine beside a worker."""
    lora = job.recipe.hh_sft.lora
    arguments_of_build: dict[str, Any] = {
        "gpu_memory_utilization": align.ppo.engine_share
    }
    if engine.is_cpu_build():
        arguments_of_build = {"worker_extension_cls": engine.GROUPED_LORA}
    return (
        {
            "model": str(model_loading.frozen_model_folder(job)),
            "dtype": job.dtype,
            "max_model_len": align.max_length,
            # Prompts and answers are tokens.
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            # At the temperature of the sampling, as the learner's.
            "logprobs_mode": "processed_logprobs",
            "enable_lora": True,
            # The policy, and the one before it until it is removed.
            "max_loras": 1,
            "max_cpu_loras": 2,
            "max_lora_rank": adapters.served_rank(lora.r),
            "disable_log_stats": True,
        }
        | arguments_of_build
        | align.ppo.engine_arguments
    )


class _RolloutEngine:
    """Holds vLLM's `AsyncLLM`, as a Ray actor."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._loaded = 0

    async def start(
        self, log: str, devices: str | None, engine_arguments: dict[str, Any]
    ) -> None:
        """Start the engine.

        Args:
            log: the file for its output.
            devices: the worker's `CUDA_VISIBLE_DEVICES`. Ray hides all GPUs from an
                actor that reserves none.
            engine_arguments: of `AsyncEngineArgs`, without the build's defaults.
        """
        redirect(log)
        if devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = devices
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        bind_children()

        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        completed = engine.complete_engine_arguments(engine_arguments)
        self._engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(**completed), usage_context=UsageContext.LLM_CLASS
        )

    async def sample(
        self,
        requests: list[RolloutRequest],
        adapter: str,
        version: int,
        temperature: float,
        end_ids: tuple[int, ...],
    ) -> list[RolloutAnswer]:
        """Sample the answers by an adapter that is read from a folder."""
        from vllm.lora.request import LoRARequest

        lora = LoRARequest(f"policy-{version}", version, adapter)
        await self._engine.add_lora(lora)
        if self._loaded:
            await self._engine.remove_lora(self._loaded)
        self._loaded = version
        calls = [
            self._answer(request, f"{version}-{number}", lora, temperature, end_ids)
            for number, request in enumerate(requests)
        ]
        return await asyncio.gather(*calls)

    async def _answer(
        self,
        request: RolloutRequest,
        name: str,
        lora: Any,
        temperature: float,
        end_ids: tuple[int, ...],
    ) -> RolloutAnswer:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=temperature,
            seed=request.seed,
            max_tokens=request.max_tokens,
            stop_token_ids=list(end_ids),
            logprobs=0,  # of the sampled token alone
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = {"prompt_token_ids": request.ids}
        async for result in self._engine.generate(
            prompt, params, name, lora_request=lora
        ):
            output = result.outputs[0]
        ids = list(output.token_ids)
        log_probs = []
        for token, found in zip(ids, output.logprobs, strict=True):
            log_probs.append(found[token].logprob)
        return RolloutAnswer(ids, tuple(log_probs))
