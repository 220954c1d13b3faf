"""The three stages leave what the contract says, and each moves its own adapter and nothing else."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bezoar_ray.errors import BezoarError
from bezoar_ray.recipe import Recipe
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from bezoar_ray.train import checkpoints, heldout, model_loading, pairs
from bezoar_ray.train.tokenizer import load_tokenizer
from tests.train.conftest import in_process, run_stage

Trained = tuple[Store, dict[str, Any]]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(next(folder.glob("*.safetensors")))


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[bool]:
    assert before.keys() == after.keys()
    return {
        not torch.equal(before[name].float(), after[name].float()) for name in before
    }


def last_checkpoint(store: Store, stage: str, step: str) -> Path:
    return max(
        store.path(f"train/{stage}/work-{step}").glob("checkpoint-*"),
        key=lambda p: int(p.name.split("-")[1]),
    )


def test_sft_carries_one_adapter_through_the_schemes(trained: Trained) -> None:
    store, summary = trained
    order = ["lamini", "orca", "evol_instruct"]
    lamini, orca, evol = (
        weights(last_checkpoint(store, "sft", scheme)) for scheme in order
    )
    assert all(tensor.any() for name, tensor in lamini.items() if "lora_B" in name)
    assert moved(lamini, orca) == moved(orca, evol) == {True}
    assert moved(evol, weights(store.path("checkpoints/sft/adapter"))) == {False}
    assert [point["dataset"] for point in summary["sft"]["by_step"]] == [
        scheme for scheme in order for _ in range(2)
    ]
    assert [point["step"] for point in summary["sft"]["by_step"]] == [1, 2, 3, 4, 5, 6]


def test_the_base_itself_never_moves(trained: Trained, base_folder: Path) -> None:
    store, _ = trained
    before, after = weights(base_folder), weights(store.path("checkpoints/sft/merged"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(
        any(target in name for target in ("q_proj", "v_proj", "up_proj"))
        for name in changed
    )


def test_dpo_goes_on_from_hh_sft_whose_copy_is_the_reference(trained: Trained) -> None:
    store, summary = trained
    hh = weights(store.path("checkpoints/hh-sft/adapter"))
    reference = weights(last_checkpoint(store, "dpo", "pairs") / "ref")
    assert moved(hh, reference) == {False}
    assert moved(hh, weights(store.path("checkpoints/dpo/adapter"))) == {True}
    assert summary["dpo"]["loss_first"] == pytest.approx(math.log(2), abs=1e-6)
    assert summary["dpo"]["loss_last"] < math.log(2)


@pytest.mark.parametrize("name", ["sft", "hh-sft", "dpo"])
def test_joined_on_the_base_answers_as_merged(
    trained: Trained, recipe: Recipe, name: str
) -> None:
    store, _ = trained
    ids = torch.arange(60).reshape(2, 30) * 5 % 300
    folder = store.path(f"checkpoints/{name}")
    with torch.inference_mode():
        merged = (
            model_loading.load(recipe.base, str(folder / "merged")).eval()(ids).logits
        )
        joined = (
            model_loading.with_adapter(
                model_loading.load(recipe.base), str(folder / "joined")
            )
            .eval()(ids)
            .logits
        )
    assert (merged - joined).abs().max() < 1e-4


def test_the_summary_has_the_contracts_fields(trained: Trained) -> None:
    _, summary = trained
    assert set(summary) == {"base", "sft", "hh-sft", "dpo"}
    for stage, rows, steps in (("sft", 24, 6), ("hh-sft", 20, 5), ("dpo", 20, 5)):
        part = summary[stage]
        assert (part["rows"], part["steps"], part["left_out"]) == (rows, steps, 0)
        assert (
            part["tokens_per_s"] > 0
            and part["loss_first"] == part["by_step"][0]["loss"]
        )
    assert all(0 <= part["heldout_accuracy"] <= 1 for part in summary.values())
    assert 0 <= summary["dpo"]["reward_accuracy"] <= 1


def test_the_held_out_share_can_be_traced_to_each_pair(trained: Trained) -> None:
    store, summary = trained
    ids = {pair.id for pair in pairs.read(store, "heldout")}
    assert len(ids) == 4
    for name, part in summary.items():
        margins = heldout.read(store, name)
        assert set(margins) == ids
        assert (
            part["heldout_accuracy"]
            == sum(margin > 0 for margin in margins.values()) / 4
        )
        low, high = part["heldout_ci95"]
        assert low <= part["heldout_accuracy"] <= high
    assert "checkpoints/base/heldout.jsonl" in checkpoints.files(store, "base", "sft")


def test_every_checkpoint_has_its_lineage_and_the_recipes_template(
    trained: Trained, recipe: Recipe
) -> None:
    from transformers import AutoTokenizer

    store, _ = trained
    lineages = {
        name: store.read_json(f"checkpoints/{name}/lineage.json")
        for name in ("base", "sft", "hh-sft", "dpo")
    }
    assert [line["parent"] for line in lineages.values()] == [
        None,
        "../base",
        "../sft",
        "../hh-sft",
    ]
    assert len({line["fingerprint"] for line in lineages.values()}) == 4
    for folder in ("base", "sft/merged", "hh-sft/merged", "dpo/merged"):
        saved = AutoTokenizer.from_pretrained(str(store.path(f"checkpoints/{folder}")))
        assert saved.chat_template == recipe.template
        assert saved.get_vocab() == load_tokenizer(recipe).get_vocab()


def test_what_is_merged_is_whole_in_the_bases_type(trained: Trained) -> None:
    for name in ("sft", "hh-sft", "dpo"):
        config = trained[0].read_json(f"checkpoints/{name}/merged/config.json")
        assert "quantization_config" not in config and config["dtype"] == "float32"


def test_no_accepted_row_at_all_is_an_error_that_says_where_to_look(
    context: StageContext,
) -> None:
    context.store.remove("data/lamini")
    context.store.remove("data/evol_instruct")
    with pytest.raises(
        BezoarError, match="none of lamini, orca, evol_instruct has an accepted row"
    ):
        run_stage(context, "sft")


def starting(context: StageContext, **sft: Any) -> StageContext:
    recipe = context.recipe
    return replace(
        context,
        recipe=recipe.model_copy(update={"sft": recipe.sft.model_copy(update=sft)}),
    )


def test_sft_goes_on_with_an_adapter_of_your_own(
    trained: tuple[Store, dict], context: StageContext
) -> None:
    own = str(trained[0].path("checkpoints/sft/adapter"))
    pairs.ensure(context)
    begun = in_process(starting(context, adapter=own), "sft")["sft"]["loss_first"]
    before = trained[1]["sft"]
    assert abs(begun - before["loss_last"]) < abs(begun - before["loss_first"])


def test_an_adapter_that_does_not_fit_is_refused_with_the_reason(
    trained: tuple[Store, dict], context: StageContext, tmp_path: Path
) -> None:
    pairs.ensure(context)
    own = str(trained[0].path("checkpoints/sft/adapter"))
    with pytest.raises(
        Exception,
        match=r"sft.adapter: .* is not a LoRA on the recipe's base: .*adapter_config.json",
    ):
        in_process(starting(context, adapter=str(tmp_path)), "sft")
    lora = context.recipe.sft.lora.model_copy(update={"r": 3})
    with pytest.raises(
        Exception, match=r"does not match sft.lora. Set there \{r: 16\}"
    ):
        in_process(starting(context, adapter=own, lora=lora), "sft", name="rank")
    narrow = LlamaConfig.from_pretrained(context.recipe.base.model, hidden_size=32)
    shutil.copytree(context.recipe.base.model, tmp_path / "narrow")
    LlamaForCausalLM(narrow).save_pretrained(tmp_path / "narrow")
    base = context.recipe.base.model_copy(update={"model": str(tmp_path / "narrow")})
    other = replace(context, recipe=context.recipe.model_copy(update={"base": base}))
    with pytest.raises(Exception, match="size mismatch"):
        in_process(starting(other, adapter=own), "sft", name="base")
