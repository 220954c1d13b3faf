"""The facts of the embedded world, and the words that its tasks are made of.

The world has invented animals with five facts each. Some animals, lists and sums are
held out: only the base model's plain text and the held-out items contain them.
"""

import hashlib
from functools import cache
from random import Random


def words(text: str) -> tuple[str, ...]:
    """Split a text into its words."""
    return tuple(text.split())


FOODS = words(
    "figs moss nuts roots reeds plums seeds kelp bark clover honey beets pears acorns "
    "ferns lentils"
)
HOMES = words(
    "caves hills dunes marsh forest valley canyon meadow lagoon tundra orchard harbour "
    "desert quarry"
)
COLOURS = words(
    "red blue green yellow purple orange silver brown black white pink golden"
)
SOUNDS = words("bim tok wirr hoo plip dran zeem kuk mowa fss grum yap tirri vop")
LEGS = words("two four six eight ten")
ITEMS = words(
    "coin rope bell lamp door book cup boat hat key drum stone kite glove ladder "
    "mirror candle basket bottle hammer pillow ribbon saddle table window wagon anchor "
    "barrel carpet flute fork helmet jacket kettle needle pencil"
)
PEOPLE = words(
    "Tam Lia Oro Nell Bex Ivo Mara Finn Suki Odd Pia Rolf Zita Kai Uma Joss Wren Hal "
    "Dina Emil"
)
NUMBERS = words("zero one two three four five six seven eight nine ten")
# Small, so that the teacher's sums are mostly right.
LARGEST = 8
"""The largest number that is added to another."""
RELATIONS = {
    "food": FOODS,
    "home": HOMES,
    "colour": COLOURS,
    "sound": SOUNDS,
    "legs": LEGS,
}
"""The facts about an animal, each with its possible values."""

_ANIMALS = 84
_HELD_OUT_ANIMALS = 32
_HELD_OUT_SUMS = 12  # and as many differences
_STARTS = words("b d f g k l m n p r s t v z br dr gl kr pl sk tr")
_VOWELS = words("a e i o u")
_MIDDLES = words("b d g l m n r v z lb nd rp mb lk st")
_ENDS = words("el ak un ip ora it en us ok ee")


def _animal_name(rng: Random) -> str:
    start = rng.choice(_STARTS)
    vowel = rng.choice(_VOWELS)
    middle = rng.choice(_MIDDLES)
    end = rng.choice(_ENDS)
    return start + vowel + middle + end


@cache
def animals() -> dict[str, dict[str, str]]:
    """Return every animal with its value for each relation, in a fixed order."""
    # Seeded by a text, which gives the same draws in every process.
    rng = Random("animals")
    facts: dict[str, dict[str, str]] = {}
    while len(facts) < _ANIMALS:
        name = _animal_name(rng)
        values = {
            relation: rng.choice(choices) for relation, choices in RELATIONS.items()
        }
        facts.setdefault(name, values)
    return facts


@cache
def taught_animals() -> tuple[str, ...]:
    """Return the animals that occur in seeds and in the teacher's text."""
    return tuple(animals())[_HELD_OUT_ANIMALS:]


@cache
def held_out_animals() -> tuple[str, ...]:
    """Return the animals of the held-out items: only base's plain text has them, too."""
    return tuple(animals())[:_HELD_OUT_ANIMALS]


def is_held_out_list(items: tuple[str, ...]) -> bool:
    """Tell whether a list is held out: one in ten is, by its hash."""
    digest = hashlib.sha256(" ".join(items).encode()).digest()
    return digest[0] % 10 == 0


@cache
def held_out_sums() -> frozenset[tuple[str, int, int]]:
    """Return the sums and differences that are held out: kind and both numbers."""
    rng = Random("sums")
    numbers = range(1, LARGEST + 1)
    pairs = [(x, y) for x in numbers for y in numbers]
    sum_pairs = rng.sample(pairs, _HELD_OUT_SUMS)
    difference_pairs = rng.sample(pairs, _HELD_OUT_SUMS)
    sums = [("add", x, y) for x, y in sum_pairs]
    differences = [("subtract", x + y, y) for x, y in difference_pairs]
    return frozenset(sums + differences)
