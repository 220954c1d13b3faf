"""Both data stages with the real tiny teacher on vLLM and the real tiny-judge over HTTP."""

import pytest

from bezoar_ray.filter import stage as filtering
from bezoar_ray.generate import stage as generating
from bezoar_ray.progress import Progress
from bezoar_ray.recipe import SCHEMES, load_recipe
from bezoar_ray.samples import read_samples
from bezoar_ray.stage import Context
from bezoar_ray.store import Store
from bezoar_ray.tiny import World, build

SMALL = ["generate.lamini.calls=20", "generate.evol_instruct.seeds=30", "generate.orca.rows=60"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tiny_teacher_gives_the_filter_real_work(ray_session, tiny_world, judge_url, tmp_path):
    recipe = load_recipe("tiny", SMALL)
    judges = tuple(judge.model_copy(update={"base_url": judge_url}) for judge in recipe.judges)
    context = Context(recipe.model_copy(update={"judges": judges}), Store(tmp_path), "s1", Progress())
    made = generating.run(context).summary["data"]
    assert {scheme: counts["generated"] for scheme, counts in made.items()} == {
        "lamini": 20 * recipe.generate.lamini.per_call,
        "evol_instruct": 30 * recipe.generate.evol_instruct.epochs,
        "orca": 60,
    }
    summary = filtering.run(context).summary
    for scheme in SCHEMES:
        counts = summary["data"][scheme]
        assert counts["accepted"] + counts["rejected"] + counts["failed"] == made[scheme]["generated"]
        assert counts["accepted"] > 0.1 * made[scheme]["generated"]
        assert counts["rejected"] > 0.05 * made[scheme]["generated"]
    judged = summary["judge"]["tiny-judge"]
    assert judged["known"] > 100
    assert judged["precision"] > 0.85 and judged["recall"] > 0.85
    accepted = [sample for scheme in SCHEMES for sample in read_samples(context.store, scheme, "accepted")]
    assert len({sample.task for sample in accepted}) == len(accepted)
    assert {sample.finish_reason for sample in accepted} == {"stop"}
    read = training_text(tiny_world)
    new = {sample.task for sample in accepted if sample.instruction not in read}
    assert len(new) >= 0.7 * len(accepted)  # it composes, it does not recite


def training_text(world: World) -> str:
    """All that the teacher was trained on."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world.teacher)
    return "\n".join(tokenizer.decode(ids) for ids, _ in build.teacher_blocks(tokenizer))
