"""What hh-sft and align share: a stage that learns from HH-RLHF's pairs."""

from collections.abc import Callable

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError
from bezoar_ray.stages import STAGES, StageContext, StageResult, checkpoint_of
from bezoar_ray.train import checkpoints, launcher, pairs
from bezoar_ray.train.tokenized_dataset import TokenizedDataset, check_rows


def run(
    context: StageContext,
    stage: str,
    prepared: Callable[[StageContext], TokenizedDataset],
    loop: launcher.Loop,
) -> StageResult:
    """Train a stage on what it has prepared of the pairs, from its parent checkpoint; score it on the held-out ones.

    Raises:
        BezoarError: there are no pairs.
    """
    malformed = pairs.ensure(context)
    if not pairs.read(context.store, "pairs"):
        raise BezoarError(
            f"{stage}: seeds.hh_rlhf gave no pairs to train on. Name a source that has some"
        )
    data = [prepared(context)]
    check_rows(context, stage, data)
    checkpoint = context.recipe.checkpoint(stage)
    checkpoints.clear(context, *STAGES[stage].checkpoint_names)
    parent = layout.checkpoint(checkpoint_of(checkpoint).parent).lineage
    result = launcher.fit(
        context, stage, loop, data, [f"{pairs.FOLDER}/heldout", parent]
    )
    result[checkpoint]["seeds_failed"] = malformed
    return StageResult(checkpoints.files(context.store, checkpoint), {"train": result})
