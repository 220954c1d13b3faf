import random
from dataclasses import replace

from bezoar_ray.filter.dedup import reject_exact, reject_near
from bezoar_ray.rows import Sample, Seed

SEED = Seed(id="s", source="own", license="CC0", instruction="Name a bird.", response="A wren.")
LONG = (
    "The harbour opens at six, the first boat leaves at seven, and the last one comes back when the lamps are lit. "
    "Who wants to go along buys a ticket in the small house near the pier, where an old man sells tea and maps. "
    "Dogs travel free, children pay half, and in winter nobody sails unless the wind has turned by noon."
)


def sample(id, instruction, response="An apple.", scheme="lamini") -> Sample:
    return Sample(id=id, scheme=scheme, operation="x", instruction=instruction, response=response)


def fates(samples):
    return {s.id: (s.status, s.reason) for s in samples}


def test_the_first_in_the_order_of_ids_stays_whoever_arrives_first():
    rows = [sample("b", "name a FRUIT"), sample("a", "Name a fruit."), sample("c", "Name a tree.")]
    rows += [sample("d", "Name a  fruit!", scheme="orca")]
    found = fates(reject_exact(rows, []))
    assert found["a"] == found["c"] == ("generated", "")
    assert found["b"] == found["d"] == ("rejected", "duplicate")
    random.Random(0).shuffle(rows)
    assert fates(reject_exact(rows, [])) == found


def test_a_row_that_asks_what_a_seed_asks_is_a_duplicate_but_not_orcas():
    rows = [sample("a", "name a bird"), sample("b", "Name a bird. ", scheme="orca")]
    assert fates(reject_exact(rows, [SEED]))["a"] == ("rejected", "duplicate")
    assert fates(reject_exact(rows[1:], [SEED]))["b"] == ("generated", "")


def test_an_input_makes_another_task():
    rows = [replace(sample("a", "Sum up."), input="one"), replace(sample("b", "Sum up."), input="two")]
    assert {status for status, _ in fates(reject_exact(rows, [])).values()} == {"generated"}


def accepted(*args, **kwargs):
    return replace(sample(*args, **kwargs), status="accepted")


def test_nearly_the_same_row_is_rejected_whatever_the_order():
    rows = [
        accepted("b", f"Read this. {LONG} Say when.", "At six."),
        accepted("a", f"Read this. {LONG} Say it.", "At six."),
    ]
    rows += [accepted("c", f"Read this. {LONG}", "Another answer, which says much more of boats, of lamps and of men.")]
    found = fates(reject_near(rows, []))
    assert found["a"] == found["c"] == ("accepted", "")
    assert found["b"] == ("rejected", "near_duplicate")
    assert fates(reject_near(rows[::-1], [])) == found


def test_short_rows_that_differ_in_a_word_stay():
    rows = [accepted(str(n), f"What is {n} + 4?", f"{n} + 4 = {n + 4}.") for n in range(30)]
    assert {status for status, _ in fates(reject_near(rows, [])).values()} == {"accepted"}


def test_nearly_a_seed_is_rejected_but_not_orcas():
    seed = replace(SEED, instruction=LONG)
    rows = [accepted("a", LONG.replace("six", "eight"), "A wren."), accepted("b", LONG, "A wren.", scheme="orca")]
    assert fates(reject_near(rows[:1], [seed]))["a"] == ("rejected", "near_duplicate")
    assert fates(reject_near(rows[1:], [seed]))["b"] == ("accepted", "")
