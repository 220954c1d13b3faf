from bezoar_ray.filter.selection import choose_rows

BIRDS = [
    f"Name a bird of the {place}."
    for place in ("sea", "wood", "marsh", "shore", "field", "hill")
]
SUMS = ["Add 3 and 4, please.", "Add 30 and 41, please."]


def test_few_rows_are_all_kept():
    assert choose_rows(BIRDS, [1.0] * 6, 6) == [True] * 6


def test_rare_kinds_of_instructions_are_kept_before_more_of_the_common_kind():
    kept = choose_rows(BIRDS + SUMS, [5.0] * 6 + [4.0] * 2, 2)
    assert sum(kept) == 2
    assert any(kept[:6]) and any(kept[6:])


def test_of_like_instructions_the_best_rated_is_kept_and_the_first_of_equals():
    assert choose_rows(["Name a bird."] * 4, [4.0, 5.0, 5.0, 4.5], 1) == [
        False,
        True,
        False,
        False,
    ]
    ratings = [4.0, 4.0, 5.0, 4.0, 4.0, 4.0]
    assert choose_rows(BIRDS, ratings, 1).index(True) == 2


def test_the_choice_repeats():
    assert choose_rows(BIRDS + SUMS, [4.0] * 8, 4) == choose_rows(
        BIRDS + SUMS, [4.0] * 8, 4
    )
