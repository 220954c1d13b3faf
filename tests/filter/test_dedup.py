from dataclasses import replace

from bezoar_ray.data.schema import Sample, Seed, Verdict
from bezoar_ray.filter.dedup import Duplicates

SEED = Seed(
    id="s", source="own", license="CC0", instruction="Name a bird.", response="A wren."
)
LONG = (
    "The harbour opens at six, the first boat leaves at seven, and the last one comes back when the lamps are lit. "
    "Who wants to go along buys a ticket in the small house near the pier, where an old man sells tea and maps. "
    "Dogs travel free, children pay half, and in winter nobody sails unless the wind has turned by noon."
)


def sample(id, instruction, response="An apple.", scheme="lamini") -> Sample:
    return Sample(
        id=id, scheme=scheme, operation="x", instruction=instruction, response=response
    )


def fates(rows, seeds=()):
    """What is found, by id, of rows in the order of their ids."""
    duplicates, ordered = Duplicates(seeds), sorted(rows, key=lambda row: row.id)
    for row in ordered:
        duplicates.add(row)
    return dict(zip([row.id for row in ordered], duplicates.find(), strict=True))


def test_the_first_in_the_order_of_ids_stays():
    rows = [
        sample("b", "name a FRUIT"),
        sample("a", "Name a fruit."),
        sample("c", "Name a tree."),
    ]
    rows += [sample("d", "Name a  fruit!", scheme="orca")]
    assert fates(rows) == {"a": "", "b": "duplicate", "c": "", "d": "duplicate"}


def test_a_row_that_asks_what_a_seed_asks_is_a_duplicate_but_not_orcas():
    rows = [sample("a", "name a bird", "One with wings, which sings at dawn.")]
    assert fates(rows, [SEED]) == {"a": "duplicate"}
    assert fates([replace(rows[0], scheme="orca")], [SEED]) == {"a": ""}


def rated(id, rating, response="An apple.", **more):
    return replace(
        sample(id, "Name a fruit.", response),
        verdicts=[Verdict("j", "accepted", rating)],
        **more,
    )


def test_of_several_answers_to_the_same_the_best_rated_stays():
    rows = [
        rated("a", 4.0),
        rated("b", 5.0, "An apple or a pear."),
        rated("c", 5.0),
        rated("d", 4.5),
    ]
    assert fates(rows) == {"a": "not_best", "b": "", "c": "duplicate", "d": "not_best"}


def test_the_best_of_nearly_equal_answers_is_not_lost_to_a_worse_one():
    rows = [
        replace(rated("a", 4.0), response=LONG),
        replace(rated("b", 5.0), response=LONG + " So it is."),
    ]
    assert fates(rows) == {"a": "not_best", "b": ""}


def test_an_input_makes_another_task():
    rows = [
        replace(sample("a", "Sum up."), input="one"),
        replace(sample("b", "Sum up."), input="two"),
    ]
    assert set(fates(rows).values()) == {""}


def test_nearly_the_same_row_is_found():
    rows = [
        sample("b", f"Read this. {LONG} Say when.", "At six."),
        sample("a", f"Read this. {LONG} Say it.", "At six."),
        sample(
            "c",
            f"Read this. {LONG}",
            "Another answer, which says much more of boats, of lamps and of men.",
        ),
    ]
    assert fates(rows) == {"a": "", "b": "near_duplicate", "c": ""}


def test_short_rows_that_differ_in_a_word_stay():
    rows = [
        sample(str(n), f"What is {n} + 4?", f"{n} + 4 = {n + 4}.") for n in range(30)
    ]
    assert set(fates(rows).values()) == {""}


def test_nearly_a_seed_is_found_but_not_orcas():
    seed = replace(SEED, instruction=LONG)
    near = sample("a", LONG.replace("six", "eight"), "A wren.")
    assert fates([near], [seed]) == {"a": "near_duplicate"}
    assert fates([replace(near, scheme="orca")], [seed]) == {"a": ""}
    assert fates([near, replace(near, id="b", scheme="orca")], [seed]) == {
        "a": "near_duplicate",
        "b": "duplicate",
    }


def test_without_rows_there_is_nothing_to_find():
    assert fates([], [SEED]) == fates([]) == {}


def chain(length, changed=6, words=300):
    """Rows of which each is near the one before, and no other."""
    text = [f"word{n}" for n in range(words)]
    rows = []
    for number in range(length):
        rows.append(sample(f"{number:03}", f"Read {number}. {' '.join(text)}"))
        for place in range(changed):
            text[(number * changed + place) * 4 % words] = f"new{number}and{place}"
    return rows


def test_a_row_that_goes_takes_no_other_with_it():
    """Of a chain every second stays: what the first stands for is gone, what it does not stand for is not."""
    found = fates(chain(9))
    assert found == {f"{n:03}": "near_duplicate" if n % 2 else "" for n in range(9)}
    assert set(fates(chain(9)[::2]).values()) == {
        ""
    }  # those that stay say something new each
