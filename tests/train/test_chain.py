"""Why resets help: a chain of six tokens, of which only the one right sequence is scored.

From the start, a uniform policy finds it once in 4,096 answers. With a prefix of random
length it is often one or two tokens away (arXiv 2404.08495, section 5). The episodes,
the estimates and the steps are those of the stage.
"""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from bezoar_ray.recipe import Align
from bezoar_ray.recipe.training import Ppo
from bezoar_ray.train.learner import Learner
from bezoar_ray.train.online_model import (
    CRITIC,
    POLICY,
    REFERENCE,
    OnlineModel,
    RewardHead,
)
from bezoar_ray.train.packing import Layout
from bezoar_ray.train.pass_size import PassSize
from bezoar_ray.train.rollouts import Episode, PromptSchedule, Sampler, prompts_of

LENGTH = 6
TOKENS = 4
BATCH = 64
ITERATIONS = 81
HIDDEN = 32
START = TOKENS
"""The token of the prompt. It differs from the others, or a model could not count them."""


def uniform_model() -> Any:
    """A frozen Llama that finds all tokens equally likely, with three adapters."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=TOKENS + 1,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=0.2,
        attn_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    # The head reads the last dimensions, in which only an adapter writes, and one that
    # is the same for all tokens: by it, the start is never written.
    with torch.no_grad():
        head = model.lm_head.weight.zero_()
        head[:TOKENS, -TOKENS:] = 2 * torch.eye(TOKENS)
        head[START, 0] = -50
        embeddings = model.model.embed_tokens.weight
        embeddings[:, -TOKENS:] = 0
        embeddings[:, 0] = 0.3
        for layer in model.model.layers:
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                weight[-TOKENS:] = 0
                weight[0] = 0

    def lora() -> LoraConfig:
        linear = ["q_proj", "k_proj", "v_proj", "o_proj"]
        linear += ["gate_proj", "up_proj", "down_proj"]
        return LoraConfig(r=16, lora_alpha=16, target_modules=linear)

    adapted = get_peft_model(model, lora(), adapter_name=POLICY)
    for name in (REFERENCE, CRITIC):
        adapted.add_adapter(name, lora())
    return adapted


class Chain:
    """A training on the chain."""

    def __init__(self, reset: float, seed: int, **align: Any):
        torch.manual_seed(seed)
        settings = {"learning_rate": 3e-3, "beta": 0.02, "batch": BATCH} | align
        ppo = Ppo(reset=reset, temperature=1.0, max_tokens=LENGTH)
        self.align = Align(
            method="ppo",
            schedule="constant",
            max_grad_norm=1.0,
            **{"ppo": ppo} | settings,
        )
        rng = random.Random(seed)
        self.target = [rng.randrange(TOKENS) for _ in range(LENGTH)]
        flat = Layout("flat")
        head = RewardHead(torch.zeros(HIDDEN), 0.0, 1.0)
        model = OnlineModel(
            uniform_model(),
            head,
            flat,
            1.0,
            lambda: torch.autocast("cpu", enabled=False),
        )
        size = PassSize(rows=BATCH)
        self.learner = Learner(model, self.align, ITERATIONS, size, flat, self.score)
        # No token ends an answer; all have the same length.
        self.sampler = Sampler(seed, 1.0, LENGTH, 1 + LENGTH, (99,), 0)
        self.rows = [
            {"id": f"row{n}", "prompt_ids": [START], "chosen_ids": self.target}
            for n in range(BATCH)
        ]
        self.schedule = PromptSchedule(BATCH, BATCH, ITERATIONS, seed)

    def score(self, episodes: list[Episode]) -> torch.Tensor:
        """1 for the one right sequence."""
        answers = [[*e.forced_ids, *e.own_ids] for e in episodes]
        return torch.tensor([float(answer == self.target) for answer in answers])

    def success(self) -> float:
        """The probability of the right sequence, from its beginning."""
        seen = self.learner.observe([Episode("", [START], [], self.target, True)])
        return float(seen.log_probs.sum().exp())

    def episodes_until(self, wanted: float) -> int | None:
        """Episodes until success is that likely; None if it never is."""
        model = self.learner.model
        for iteration in range(ITERATIONS):
            prompts = prompts_of(
                iteration, self.schedule, self.rows, self.align.ppo.reset
            )
            model.activate(POLICY)
            episodes = self.sampler.episodes(model.base, prompts, iteration, 1)
            whole = [replace(episode, ended=True) for episode in episodes]
            self.learner.learn(self.learner.observe(whole))
            if self.success() > wanted:
                return (iteration + 1) * BATCH
        return None


def test_at_the_start_success_is_as_likely_as_chance() -> None:
    assert Chain(reset=0.0, seed=0).success() == pytest.approx(
        TOKENS**-LENGTH, rel=1e-3
    )


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_with_resets_it_is_found_in_all_seeds_and_without_in_none() -> None:
    found = {
        reset: [Chain(reset, seed).episodes_until(0.5) for seed in range(5)]
        for reset in (0.0, 0.25, 0.5)
    }
    assert found[0.0] == [None] * 5
    assert all(found[0.25]) and all(found[0.5])
