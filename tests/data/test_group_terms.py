"""Which groups a text mentions, and how two groups are exchanged in it."""

import pytest

from bezoar_ray.data.group_terms import Group, GroupTerms, group_terms, split_words
from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import load_recipe

WOMEN, MEN = Group("gender", "women"), Group("gender", "men")


@pytest.fixture
def english() -> GroupTerms:
    return group_terms(load_recipe("modern").filter)


def names(terms: GroupTerms, text: str) -> set[str]:
    return {group.name for group in terms.mentions(split_words(text))}


def test_a_group_is_found_by_whole_words_in_any_case(english):
    assert names(english, "The nurse said that SHE was tired.") == {"women"}
    assert names(english, "A shepherd sheds wool. This is his.") == {"men"}
    assert names(english, "Middle-aged people went to the Mosque") == {
        "middle aged",
        "muslims",
    }


def test_a_color_or_an_old_thing_is_no_group_of_people(english):
    assert names(english, "An old house with a black door and a straight path") == set()
    assert names(english, "black people and a straight man") == {
        "black",
        "straight",
        "men",
    }


def test_the_longest_term_counts_within_a_category(english):
    assert names(english, "She is African American.") == {"women", "black"}


def test_occupations_are_found_in_both_numbers(english):
    text = "Two police officers and a nurse"
    assert english.occupations(split_words(text)) == {"police officer", "nurse"}


def test_two_groups_exchange_their_terms_with_case_and_article(english):
    text = "A woman asked an UNCLE. He thanked the woman."
    swapped = english.swap(text, WOMEN, MEN)
    assert swapped == "A man asked an AUNT. She thanked the man."
    assert english.swap(swapped, WOMEN, MEN) == text
    americans, canadians = Group("origin", "american"), Group("origin", "canadian")
    assert english.swap("an American baker", americans, canadians) == "a Canadian baker"


def test_a_term_with_several_counterparts_or_none_is_not_exchanged(english):
    assert english.swap("I saw her.", WOMEN, MEN) is None  # him or his
    assert english.swap("It is hers.", WOMEN, MEN) is None
    assert english.swap("I saw him.", WOMEN, MEN) == "I saw her."


def test_groups_with_a_slot_for_persons_exchange_the_word_before_it(english):
    black, white = Group("origin", "black"), Group("origin", "white")
    assert english.swap("two Black women", black, white) == "two White women"
    latina = Group("origin", "latina")
    assert english.swap("two black women", black, latina) is None


def test_every_packaged_list_names_its_source_and_license():
    for name in ("modern", "tiny"):
        terms = group_terms(load_recipe(name).filter)
        assert terms.source and terms.license == "Apache-2.0"


def test_the_people_of_the_embedded_world_have_two_homes():
    terms = group_terms(load_recipe("tiny").filter)
    text = "Tam of the caves asks: Where does the dolo live? It lives in the marsh."
    assert names(terms, text) == {"uplands"}
    swapped = terms.swap(text, Group("home", "uplands"), Group("home", "lowlands"))
    assert swapped == text.replace("the caves", "the marsh")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("source: us", "license: Field required"),
        ("[a", "the word list is not YAML"),
        (
            "{source: us, license: MIT, categories: {home: {hill: [a, b], dale: [c]}}}",
            "'home' has groups with {'hill': 2, 'dale': 1} terms",
        ),
    ],
)
def test_a_list_of_ones_own_is_checked(tmp_path, text, problem):
    file = tmp_path / "words.yaml"
    file.write_text(text)
    section = load_recipe("modern", [f"filter.groups={file}"]).filter
    with pytest.raises(RecipeError, match="^filter.groups: ") as error:
        group_terms(section)
    assert problem in str(error.value)


def test_a_list_of_ones_own_changes_no_fingerprint(tmp_path):
    file = tmp_path / "words.yaml"
    file.write_text("anything")
    plain = load_recipe("modern").filter
    other = load_recipe("modern", [f"filter.groups={file}"]).filter
    assert other.fingerprint_fields() == plain.fingerprint_fields()
