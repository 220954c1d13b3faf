"""Rows are the same after a way through JSON."""

from bezoar_ray.data.row import decode_row, encode_row
from bezoar_ray.data.schema import Sample, Seed, Verdict
from bezoar_ray.generate.task import GenerationTask


def test_a_sample_is_the_same_after_it_was_encoded():
    sample = Sample(
        "0f",
        "orca",
        "x",
        history=[{"role": "user", "content": "Hello"}],
        response="é\n\u2028\x85",
        seed_ids=["s"],
        verdicts=[Verdict("j", "accepted", 4.0, "good"), Verdict("k", "failed")],
    )
    line = encode_row(sample)
    assert b"\n" not in line
    assert decode_row(line, Sample) == sample


def test_a_task_keeps_the_draws_of_its_scheme():
    seeds = [Seed("1", "dolly", "CC0", "Say it.")]
    task = GenerationTask("0f", "lamini", 3, seeds, {"examples": [1, 2], "topic": None})
    assert decode_row(encode_row(task), GenerationTask) == task
