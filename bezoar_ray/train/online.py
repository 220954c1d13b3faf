"""Learning from the reward model's score: PPO, DR-PO, RLOO and GRPO.

An iteration samples answers, scores them, and takes a few optimizer steps on all of
them. TRL has no PPO since 1.13, and none of its trainers starts from a prefix of the
chosen answer. So this is a loop of its own, inside the same workers, with the same
checkpoints and progress as the trainers of the other stages.
"""

import contextlib
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError
from bezoar_ray.recipe import Align
from bezoar_ray.runtime.logs import event
from bezoar_ray.train import (
    fitting,
    heldout_answers,
    loop,
    model_loading,
    online_model,
    packing,
    rated_rows,
)
from bezoar_ray.train.fitting import Passes
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.learner import Learner, NotFinite, describe, sum_over_workers
from bezoar_ray.train.nonfinite import raise_if_not_finite
from bezoar_ray.train.online_model import POLICY, OnlineModel
from bezoar_ray.train.reporting import (
    DriverLink,
    PhaseClock,
    StopCheck,
    TrainState,
    report_checkpoint,
)
from bezoar_ray.train.rollouts import (
    Episode,
    Prompt,
    PromptSchedule,
    Sampler,
    prompts_of,
)
from bezoar_ray.train.vllm_rollouts import VllmSampler

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_LOGGED_POINTS = 200  # iterations that are kept in the summary, about
_STATE = "online.pt"
"""File of a checkpoint with adapters, critic's head, optimizer and schedule."""


def train(job: Job, tokenizer: "PreTrainedTokenizerBase") -> TrainState:
    """Train the policy's adapter on this worker, and save it."""
    from ray.train import get_context

    align = job.section
    assert isinstance(align, Align)
    training = OnlineTraining(job, align, tokenizer)
    driver = DriverLink(job)
    if get_context().get_world_rank() == 0:
        driver.open()
    try:
        training.run(driver)
    finally:
        driver.close()
    loop.save_adapter(job, training.model.model)
    if get_context().get_world_rank() == 0:
        heldout_answers.write(job.store, job.checkpoint, training.state.looks)
    return training.state


class OnlineTraining:
    """The iterations of a training, on one worker.

    It resumes from Ray Train's last checkpoint.
    """

    def __init__(self, job: Job, align: Align, tokenizer: "PreTrainedTokenizerBase"):
        from ray.train import get_context

        self._job = job
        self._align = align
        self._data = job.data[0]
        self._rows = self._data.open(job.store)
        self._rank = get_context().get_world_rank()
        self._workers = get_context().get_world_size()
        self.state, resume_from = loop.last_checkpoint()
        event(
            "training resumes" if resume_from else "training begins",
            after_step=self.state.global_step,
        )
        self._schedule = PromptSchedule(
            rows=self._data.rows,
            prompts=align.batch // align.ppo.group,
            epochs=align.epochs,
            seed=job.recipe.seed,
        )
        self._sampler = Sampler(
            seed=job.recipe.seed,
            temperature=align.ppo.temperature,
            max_tokens=align.ppo.max_tokens,
            max_length=align.max_length,
            end_ids=_end_ids(tokenizer, self._rows),
            pad_id=tokenizer.pad_token_id,
        )
        # Before the training's model, which takes what the engine leaves of the memory.
        self._engine = None
        if align.ppo.engine == "vllm":
            self._engine = VllmSampler(job, align, self._sampler)
        # Why an earlier attempt ended early is kept.
        self._passes = Passes(because=list(self.state.passes.get("because", [])))
        self._tokenizer = tokenizer
        prompts = heldout_answers.prompts(job.store, tokenizer, align)
        # Every worker must have one, as all of them make the same passes.
        has_enough = len(prompts) >= self._workers
        self._heldout = prompts[self._rank :: self._workers] if has_enough else []
        self._look_steps = heldout_answers.steps(self._schedule.iterations)
        self.model, self._learner = self._build()
        self.state.passes = asdict(self._passes)
        if resume_from:
            import torch

            saved = torch.load(Path(resume_from) / _STATE, map_location="cpu")
            self._learner.load_state(saved)

    def _build(self) -> tuple[OnlineModel, Learner]:
        """Load the model, and choose how its passes are made."""
        import torch

        job = self._job
        align = self._align
        peft_model, head = online_model.load(job)
        fitting.without_input_gradients(peft_model)
        row_layout = loop.choose_layout(job, peft_model)
        if row_layout.because:
            self._passes.say(f"rows are padded: {row_layout.because}")
        device = model_loading.device(job)
        autocast = partial(
            torch.autocast,
            device.type,
            torch.bfloat16,
            enabled=job.dtype == "bfloat16",
        )
        model = OnlineModel(
            peft_model,
            self._reward_head(head),
            row_layout,
            align.ppo.temperature,
            autocast,
        )
        # An episode ends at max_length, wherever it began.
        longest = min(align.max_length, self._data.longest + align.ppo.max_tokens)
        data = replace(self._data, longest=longest, longest_sequence=longest)
        model.activate(POLICY, trains=True)
        with model.passes():
            trial = fitting.PassTrial(peft_model, autocast, data, row_layout, device)
            pass_size = fitting.fit_pass(trial, job, data, row_layout, self._passes)
        self._passes.layout = row_layout.name
        self._passes.size = str(pass_size)
        learner = Learner(
            model, align, self._schedule.iterations, pass_size, row_layout
        )
        return model, learner

    def _reward_head(self, head: "Tensor") -> online_model.RewardHead:
        """Return the head of the standardized score."""
        weights = rated_rows.section(self._job.recipe).weights
        lineage = self._job.store.read_json(layout.checkpoint("rm").lineage)
        mean = lineage.get("score_mean")
        sd = lineage.get("score_sd")
        if not sd:
            self._passes.say(
                "scores are not standardized: rm has measured no held-out ratings"
            )
            mean, sd = 0.0, 1.0
        return online_model.RewardHead.of(head, weights, mean, sd)

    def run(self, driver: DriverLink) -> None:
        """Carry out the iterations that are left.

        Raises:
            BezoarError: the driver asked to stop, or numbers are not finite.
        """
        clock = PhaseClock(self.state)
        stop_check = StopCheck(self._job, driver)
        total = self._schedule.iterations
        if self.state.global_step == 0:
            self._look()
        while self.state.global_step < total and not self.state.finished:
            began = time.monotonic()
            point = self._iterate(self.state.global_step, clock)
            self.state.global_step += 1
            self.state.offset = self.state.global_step
            self.state.seconds += time.monotonic() - began
            reason = self._limit_reached(point)
            if reason:
                self._passes.say(f"ended after {self.state.global_step}: {reason}")
                self.state.passes = asdict(self._passes)
            self.state.finished = bool(reason) or self.state.global_step == total
            self._keep(point, total)
            if self.state.finished or self.state.global_step in self._look_steps:
                self._look()
            driver.progress = self._progress(point, total)
            is_due = self.state.global_step % self._align.checkpoint_every == 0
            must_save = stop_check.check()
            self.state.stopped = stop_check.stop
            if is_due or must_save or self.state.finished:
                self._save(urgent=stop_check.is_urgent)
                clock.end("checkpoints")
            if stop_check.stop:
                raise BezoarError(
                    "stopped, with a last checkpoint. Run the same command to resume"
                )

    def _iterate(self, iteration: int, clock: PhaseClock) -> dict[str, float]:
        """Sample, score and learn; return the metrics over all workers."""
        import torch

        clock.restart()
        episodes = self._sample(iteration)
        clock.end("rollouts")
        # Only in training mode are activations recomputed.
        self.model.model.train(self._passes.gradient_checkpointing)
        experience = self._learner.observe(episodes)
        if iteration == 0:
            self._learner.check_gradients(episodes[:1])
        device = self.model.device
        try:
            point = self._learner.learn(experience)
        except NotFinite as error:
            raise_if_not_finite(
                self._job, self._data.name, iteration + 1, error.rows, device
            )
            raise
        tokens = float(sum(len(episode.ids) for episode in episodes))
        all_tokens = sum_over_workers(torch.tensor(tokens, device=device)).item()
        self.state.tokens += all_tokens * self._align.ppo.passes
        clock.end("passes")
        return point

    def _sample(self, iteration: int) -> list[Episode]:
        """Sample this worker's episodes of an iteration."""
        ppo = self._align.ppo
        prompts = prompts_of(iteration, self._schedule, self._rows, ppo.reset)
        own_prompts = prompts[self._rank :: self._workers]
        return self._episodes(own_prompts, iteration, ppo.group)

    def _episodes(
        self, prompts: list[Prompt], iteration: int, group: int
    ) -> list[Episode]:
        """Sample answers by the policy."""
        if self._engine:
            return self._engine.episodes(self.model.model, prompts, iteration, group)
        # In training mode, recomputing would do without a cache of keys and values.
        self.model.model.eval()
        self.model.activate(POLICY)
        with self._sampling():
            return self._sampler.episodes(self.model.base, prompts, iteration, group)

    def _sampling(self) -> contextlib.AbstractContextManager[object]:
        """Build the context of the sampling: float32 on CPUs.

        There, small steps are much faster in float32 than in bfloat16.
        """
        if self.model.device.type == "cpu":
            return packing.in_float32(self.model.base)
        return self.model.autocast()

    def _look(self) -> None:
        """Answer the held-out prompts, and keep answers and metrics in the state."""
        if not self._heldout:
            return
        # With the same random numbers each time.
        episodes = self._episodes(self._heldout, iteration=0, group=1)
        experience = self._learner.observe(episodes)
        metrics = describe(experience)
        answers = []
        for episode, score in zip(episodes, experience.scores.tolist(), strict=True):
            text = self._tokenizer.decode(episode.own_ids, skip_special_tokens=True)
            answers.append(
                {
                    "id": episode.id,
                    "text": text,
                    "score": round(score, 5),
                    "ended": episode.ended,
                }
            )
        look: dict[str, Any] = {"step": self.state.global_step}
        for name in ("score", "score_sd", "kl", "length", "ended"):
            look[name] = round(metrics[name], 5)
        look["answers"] = _of_all_workers(answers)
        self.state.looks.append(look)

    def _limit_reached(self, point: dict[str, float]) -> str:
        """Return which limit of `stop_at` is reached; empty if none is."""
        stop_at = self._align.ppo.stop_at
        if stop_at.kl is not None and point["kl"] >= stop_at.kl:
            return (
                f"the KL divergence is {point['kl']:.2f}, and stop_at.kl {stop_at.kl:g}"
            )
        if stop_at.score is not None and point["score"] >= stop_at.score:
            return f"the score is {point['score']:.2f}, and stop_at.score {stop_at.score:g}"
        return ""

    def _keep(self, point: dict[str, float], total: int) -> None:
        """Keep the metrics of some iterations for the summary."""
        step = self.state.global_step
        every = max(1, total // _LOGGED_POINTS)
        if step == 1 or step % every == 0 or self.state.finished:
            rounded = {name: round(value, 5) for name, value in point.items()}
            self.state.history.append(
                {"step": step, "dataset": self._data.name, **rounded}
            )

    def _progress(self, point: dict[str, float], total: int) -> dict[str, Any]:
        return {
            "step": self.state.global_step,
            "total": total,
            "note": (
                f"score {point['score']:.2f}, KL {point['kl']:.2f}, "
                f"{self.state.tokens_per_s:.0f} tokens/s"
            ),
            "accuracy": None,
            "say": self.state.passes["because"],
        }

    def _save(self, urgent: bool) -> None:
        """Write a checkpoint and give it to Ray Train."""
        import torch

        name = f"{self._job.folder}/work-online/checkpoint-{self.state.global_step}"
        folder = Path(self._job.store.here(name))
        folder.mkdir(parents=True, exist_ok=True)
        is_main = self._rank == 0
        if is_main:
            torch.save(self._learner.state(), folder / _STATE)
        report_checkpoint(self._job, folder, self.state, is_main, urgent)


def _of_all_workers(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the answers of all workers, on each of them."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return answers
    by_worker: list[list[dict[str, Any]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(by_worker, answers)
    return [answer for of_worker in by_worker for answer in of_worker]


def _end_ids(tokenizer: "PreTrainedTokenizerBase", rows: "Dataset") -> tuple[int, ...]:
    """Return the tokens that end an answer: eos, and the one that the template writes."""
    ends = {tokenizer.eos_token_id}
    last = rows[0]["chosen_ids"][-1]
    if last in tokenizer.all_special_ids:
        ends.add(last)
    return tuple(sorted(ends))
