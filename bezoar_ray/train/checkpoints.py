"""From a trained adapter to a checkpoint: adapter, merged and joined weights, lineage, and its held-out score."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from bezoar_ray import layout
from bezoar_ray.llm.model_identity import model_path
from bezoar_ray.recipe import Lora
from bezoar_ray.stages import BASE, StageContext, adapters_of, checkpoint_of
from bezoar_ray.store import Store, digest
from bezoar_ray.train import adapters, heldout, model_loading, pairs
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.packing import Layout, in_float32

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def finish(
    job: Job, tokenizer: "PreTrainedTokenizerBase", lora: Lora, rows: Layout
) -> dict[str, dict[str, object]]:
    """Merge and join the adapter that lies in the checkpoint's folder, and score it; one model load.

    `rows` says how the rows of a pass are laid out.

    Returns:
        `heldout_accuracy` and its interval by checkpoint: the stage's own, and base's from sft.
    """
    store, name = job.store, job.checkpoint
    below = None if name == "sft" else str(store.path(layout.checkpoint("sft").merged))
    model = model_loading.load(
        job.recipe.base, below, device_map={"": model_loading.device(job)}
    )
    scores = {}
    if name == "sft":
        scores["base"] = _score(job, "base", model, tokenizer, rows)
        _base(job, tokenizer)
    files = layout.checkpoint(name)
    model = adapters.merge(
        model_loading.with_adapter(model, str(store.path(files.adapter)))
    )
    scores[name] = _score(job, name, model, tokenizer, rows)
    with store.writing(files.merged) as path:
        adapters.save(model, tokenizer, path)
    chain = [store.path(layout.checkpoint(part).adapter) for part in adapters_of(name)]
    with store.writing(files.joined) as path:
        joined = _join(chain, path, job.recipe.base.model)
    mark = adapters.weights_fingerprint(store, name)
    sum_of = [f"../{part}/adapter" for part in adapters_of(name)]
    adapters.record(
        store,
        job.recipe,
        name,
        checkpoint_of(name).parent,
        mark,
        adapter=lora.model_dump(),
        sum_of=sum_of,
        **joined,
    )
    return scores


def _join(chain: list[Path], folder: Path, base: str) -> dict[str, object]:
    """What the lineage says of the joined adapter: its rank, or why there is none. The merged weights are there."""
    try:
        return {"joined_rank": adapters.join(chain, folder, base)}
    except adapters.NotJoinable as error:
        return {"joined_rank": None, "not_joined": str(error)}


def _base(job: Job, tokenizer: "PreTrainedTokenizerBase") -> None:
    """`checkpoints/base`: the tokenizer with the recipe's template, and who the base is."""
    with job.store.writing(layout.checkpoint(BASE).folder) as path:
        tokenizer.save_pretrained(str(path))
    adapters.record(job.store, job.recipe, "base", None, _base_mark(job))


def _base_mark(job: Job) -> str:
    base = job.recipe.base
    folder = Path(model_path(base.model))
    if folder.is_dir():
        return digest(folder)
    return f"{base.model}@{base.revision or 'main'}"


def _score(
    job: Job,
    name: str,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    layout: Layout,
) -> dict[str, object]:
    """A checkpoint on the held-out pairs: each margin into its folder, the share into the summary."""
    computing = (
        in_float32(model) if job.dtype == "float32" else contextlib.nullcontext()
    )
    kept_out = pairs.read(job.store, "heldout")
    with computing:
        found = heldout.margins(
            model, tokenizer, kept_out, job.recipe.align.max_length, layout
        )
    heldout.write(job.store, name, found)
    return heldout.summary(found)


def clear(context: StageContext, *names: str) -> None:
    """Remove the files that an unfinished attempt left of checkpoints."""
    for name in names:
        context.store.remove(layout.checkpoint(name).folder)


def files(store: Store, *names: str) -> list[str]:
    """All files of these checkpoints."""
    return [
        file for name in names for file in store.list(layout.checkpoint(name).folder)
    ]
