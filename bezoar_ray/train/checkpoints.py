"""From a trained adapter to a checkpoint.

A checkpoint has the adapter, merged and joined weights, its lineage and its held-out
score.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from bezoar_ray import layout
from bezoar_ray.llm.model_identity import model_path
from bezoar_ray.recipe import Lora
from bezoar_ray.stages import BASE, adapters_of, checkpoint_of
from bezoar_ray.store import Store, digest
from bezoar_ray.train import adapters, heldout, model_loading, pairs
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.packing import Layout, computing_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def merge_and_score(
    job: Job,
    tokenizer: "PreTrainedTokenizerBase",
    lora: Lora,
    row_layout: Layout,
    lineage: Mapping[str, object] = MappingProxyType({}),
) -> dict[str, dict[str, object]]:
    """Merge the adapter in the checkpoint's folder, score the result and record it.

    A stage that trains on the base scores the base, too. The model is loaded once.

    Args:
        job: names the checkpoint.
        tokenizer: saved with the merged weights.
        lora: settings of the adapter, for the lineage.
        row_layout: how the rows of a pass are laid out.
        lineage: further fields of the lineage.

    Returns:
        `heldout_accuracy` and its interval, by checkpoint.
    """
    store = job.store
    name = job.checkpoint
    files = layout.checkpoint(name)
    parent = checkpoint_of(name).parent
    scores = {}

    model = model_loading.load(
        job.recipe.base,
        model_loading.frozen_model_folder(job),
        device_map={"": model_loading.device(job)},
    )
    # Before the merge, since that changes the weights of this model.
    if parent == BASE:
        scores[BASE] = _score(job, BASE, model, tokenizer, row_layout)
        _save_base(job, tokenizer)

    adapted_model = model_loading.with_adapter(model, str(store.path(files.adapter)))
    merged_model = adapters.merge(adapted_model)
    scores[name] = _score(job, name, merged_model, tokenizer, row_layout)
    with store.writing(files.merged) as folder:
        adapters.save(merged_model, tokenizer, folder)

    chain = [store.path(layout.checkpoint(part).adapter) for part in adapters_of(name)]
    with store.writing(files.joined) as folder:
        joined = _join(chain, folder, job.recipe.base.model)

    # Last, since a checkpoint counts as complete once it has its lineage.
    adapters.record(
        store,
        job.recipe,
        name,
        parent,
        adapters.weights_fingerprint(store, name),
        adapter=lora.model_dump(),
        sum_of=[f"../{part}/adapter" for part in adapters_of(name)],
        **joined,
        **lineage,
    )
    return scores


def _join(chain: list[Path], folder: Path, base: str) -> dict[str, object]:
    """Join a chain of adapters if possible; the merged weights exist in any case.

    Returns:
        The fields of the lineage: the joined rank, or why there is none.
    """
    try:
        return {"joined_rank": adapters.join(chain, folder, base)}
    except adapters.NotJoinable as error:
        return {"joined_rank": None, "not_joined": str(error)}


def _save_base(job: Job, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Write `checkpoints/base`: tokenizer, chat template and lineage."""
    base = job.recipe.base
    with job.store.writing(layout.checkpoint(BASE).folder) as folder:
        tokenizer.save_pretrained(str(folder))
    fingerprint = f"{base.model}@{base.revision or 'main'}"
    base_folder = Path(model_path(base.model))
    if base_folder.is_dir():
        fingerprint = digest(base_folder)
    adapters.record(job.store, job.recipe, BASE, parent=None, fingerprint=fingerprint)


def _score(
    job: Job,
    checkpoint: str,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    row_layout: Layout,
) -> dict[str, object]:
    """Score a checkpoint on the held-out pairs and write the margin of each pair.

    Returns:
        The share of pairs that are right and its interval.
    """
    heldout_pairs = pairs.read(job.store, "heldout")
    with computing_in(job.dtype, model):
        margin_by_pair = heldout.margins(
            model,
            tokenizer,
            heldout_pairs,
            job.recipe.align.max_length,
            row_layout,
        )
    heldout.write(job.store, checkpoint, margin_by_pair)
    return heldout.summary(margin_by_pair)


def remove(store: Store, *names: str) -> None:
    """Remove what an earlier or unfinished training has left of some checkpoints."""
    for name in names:
        store.remove(layout.checkpoint(name).folder)


def files(store: Store, *names: str) -> list[str]:
    """Return all files of some checkpoints."""
    found = []
    for name in names:
        found += store.list(layout.checkpoint(name).folder)
    return found
