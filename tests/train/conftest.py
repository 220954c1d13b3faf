"""A small base model with random weights, rows to train it on, and a recipe that names both."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bezoar_ray.data.schema import Sample, sample_table
from bezoar_ray.recipe import Recipe, parse_recipe
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import StageContext, StageResult
from bezoar_ray.store import Store
from bezoar_ray.train import pairs, training_stages
from bezoar_ray.train.launcher import Job

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
FACTS = [(f"animal{i}", "green" if i % 2 else "blue") for i in range(24)]


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 0.2 M parameters with a byte-level BPE tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    save_base(folder)
    return folder


def save_base(folder: Path, heads: int = 4) -> None:
    """Write the model, with another number of heads if that is given."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    tokenizer = _tokenizer()
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet
    )
    backend.train_from_iterator(
        [f"What colour is {a}? The {a} is {c}.\n### Response:" for a, c in FACTS],
        trainer,
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four transcripts whose chosen side is the true colour."""
    path = tmp_path_factory.mktemp("hh") / "hh.jsonl"
    ask = "\n\nHuman: What colour is {}?\n\nAssistant: The {} is {}."
    rows = [
        {"chosen": ask.format(a, a, c), "rejected": ask.format(a, a, "red")}
        for a, c in FACTS
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="session")
def recipe(base_folder: Path, pairs_file: Path) -> Recipe:
    """All three stages, a few steps each."""
    lora = {"targets": ["q_proj", "v_proj", "up_proj"], "dropout": 0.0}
    stage = {"learning_rate": 0.01, "batch": 4, "micro_batch": 4, "max_length": 256}
    return parse_recipe(
        {
            "name": "small",
            "teacher": {"model": "none"},
            "judges": [{"model": "none"}],
            "base": {"model": str(base_folder), "dtype": "float32"},
            "seeds": {"hh_rlhf": [{"source": str(pairs_file)}]},
            "sft": {**stage, "lora": lora, "checkpoint_every": 3},
            "hh_sft": {
                **stage,
                "lora": {**lora, "r": 8, "targets": ["q_proj", "k_proj"]},
            },
            "align": {**stage, "learning_rate": 5e-4},
            "evaluate": {"heldout_pairs": 4},
        },
        "tests",
    )


@pytest.fixture(scope="session")
def rated() -> dict[str, list[dict[str, Any]]]:
    """A right and a wrong answer to each question, rated; and which of them is better."""
    ratings = []
    preferences = []
    for number, (animal, colour) in enumerate(FACTS):
        prompt = f"What colour is {animal}?"
        right = f"The {animal} is {colour}."
        wrong = f"The {animal} is red."
        for answer, marks in ((right, (4, 4, 4, 1, 1)), (wrong, (1, 0, 4, 1, 1))):
            row = dict(zip(ATTRIBUTES, marks, strict=True))
            ratings.append({"prompt": prompt, "response": answer, **row})
        preferences.append(
            {
                "prompt": prompt,
                "response_1": right,
                "response_2": wrong,
                "preference_strength": -(number % 4),  # 0 for every fourth
            }
        )
    del ratings[0]["verbosity"]
    return {"ratings": ratings, "preferences": preferences}


def with_rm(
    recipe: Recipe, folder: Path, rows: dict[str, list[dict[str, Any]]], **rm: Any
) -> Recipe:
    """The recipe with these rows as sources, and a section rm."""
    tree = recipe.model_dump(mode="json")
    for name, seeds in (("ratings", "helpsteer"), ("preferences", "preferences")):
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows[name])))
        tree["seeds"][seeds] = [{"source": str(path)}]
    tree["rm"] = {
        "learning_rate": 0.01,
        "batch": 8,
        "micro_batch": 4,
        "max_length": 256,
        "checkpoint_every": 3,
        "heldout_answers": 12,
        "lora": {"targets": ["q_proj", "v_proj", "up_proj"], "dropout": 0.0},
    } | rm
    return parse_recipe(tree, "tests")


def samples(scheme: str) -> list[Sample]:
    """Eight accepted rows, one of them with a system message."""
    asked = [(f"What colour is {a}?", f"The {a} is {c}.") for a, c in FACTS[:8]]
    rows = [
        Sample(f"{scheme}{i}", scheme, "op", instruction=q, response=a)
        for i, (q, a) in enumerate(asked)
    ]
    return [replace(rows[0], system="Answer briefly."), *rows[1:]]


def write_rows(store: Store, *schemes: str) -> None:
    """Accepted rows, as the filter leaves them."""
    for scheme in schemes:
        store.replace_table(
            f"data/{scheme}/accepted/part-0.parquet", sample_table(samples(scheme))
        )


@pytest.fixture(scope="session")
def trained(
    ray_session: None, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, dict[str, Any]]:
    """A run directory after all three stages, and their summaries; the loops ran in this process."""
    store = Store(tmp_path_factory.mktemp("trained"))
    write_rows(store, "lamini", "orca", "evol_instruct")
    context = StageContext(recipe, store, "test", Progress())
    pairs.ensure(context)
    summary: dict[str, Any] = {}
    for stage in ("sft", "hh-sft", "align"):
        summary |= in_process(context, stage)
    return store, summary


def in_process(context: StageContext, stage: str, name: str = "test") -> dict[str, Any]:
    """A stage's loop on what it prepares, under Ray Train's local mode."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    prepare = training_stages.training_stage(context.recipe, stage).prepare
    data = tuple(prepare(context))
    job = Job(str(context.store.root), context.recipe, stage, name, data)
    result: dict[str, Any] = {}
    config = RunConfig(name=job.name, storage_path=str(job.store.path(job.folder)))
    here = ScalingConfig(num_workers=0)
    TorchTrainer(
        lambda: result.update(training_stages.train_checkpoint(job)),
        scaling_config=here,
        run_config=config,
    ).fit()
    return result


def up_to_rm(recipe: Recipe, folder: Path) -> Store:
    """A run directory with the checkpoints sft, hh-sft and rm."""
    store = Store(folder)
    write_rows(store, "lamini")
    context = StageContext(recipe, store, "test", Progress())
    pairs.ensure(context)
    for stage in ("sft", "hh-sft", "rm"):
        in_process(context, stage)
    return store


def run_stage(context: StageContext, stage: str) -> StageResult:
    """Carry out a training stage on Ray's workers, as the orchestrator does."""
    return training_stages.run(replace(context, stage=stage))


@pytest.fixture
def context(recipe: Recipe, tmp_path: Path) -> StageContext:
    """A run directory with accepted rows of two schemes."""
    store = Store(tmp_path / "run")
    write_rows(store, "lamini", "evol_instruct")
    return StageContext(recipe, store, "test", Progress())
