"""What hh-sft and dpo share: a stage that learns from HH-RLHF's pairs."""

from collections.abc import Callable

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError
from bezoar_ray.stages import StageContext, StageResult, checkpoint_of
from bezoar_ray.train import checkpoints, launcher, pairs
from bezoar_ray.train.tokenized_dataset import TokenizedDataset, checked


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
    data = checked(context, stage, [prepared(context)])
    checkpoints.clear(context, stage)
    parent = layout.checkpoint(checkpoint_of(stage).parent).lineage
    result = launcher.fit(
        context, stage, loop, data, [f"{pairs.FOLDER}/heldout", parent]
    )
    result[stage]["seeds_failed"] = malformed
    return StageResult(checkpoints.files(context.store, stage), {"train": result})
