"""What hh-sft and dpo share: a stage that learns from HH-RLHF's pairs."""

from bezoar_ray.errors import BezoarError
from bezoar_ray.stage import Context, Outcome
from bezoar_ray.train import checkpoints, pairs, worker


def run(context: Context, stage: str, rows: str, loop: worker.Loop) -> Outcome:
    """Train a stage on the `rows` part of the pairs, from its parent checkpoint; score it on the held-out ones.

    Raises:
        BezoarError: there are no pairs.
    """
    malformed = pairs.ensure(context)
    if not pairs.read(context.store, rows):
        raise BezoarError(f"{stage}: seeds.hh_rlhf gave no pairs to train on. Name a source that has some")
    checkpoints.clear(context, stage)
    parent = f"checkpoints/{checkpoints.PARENT[stage]}/lineage.json"
    inputs = [f"{pairs.FOLDER}/{rows}", f"{pairs.FOLDER}/heldout", parent]
    result = worker.fit(context, stage, loop, inputs)
    result[stage]["seeds_failed"] = malformed
    return Outcome(checkpoints.files(context.store, stage), {"train": result})
