"""The rows of a pass are found by their tokens."""

import torch

from bezoar_ray.stage import Context
from bezoar_ray.train import data, unsound
from bezoar_ray.train.prepared import prepare
from bezoar_ray.train.worker import Job


def test_the_rows_of_a_pass_are_named_padded_or_side_by_side(ray_session: None, context: Context) -> None:
    found = prepare(context, "sft", "lamini", "data/lamini/accepted", data.sample_tokens, data.CONVERSATION)
    rows, job = found.open(context.store)["input_ids"][:], Job(str(context.store.root), context.recipe, "sft", "x", ())
    together, alone = rows[1] + rows[4], rows[6]
    padded = torch.tensor([together, alone + [2] * (len(together) - len(alone))])
    assert list(unsound._rows(padded, found, job)) == ["lamini1", "lamini4", "lamini6"]
    assert list(unsound._rows(None, found, job)) == []
