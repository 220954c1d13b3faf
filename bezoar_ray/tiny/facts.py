"""What is true in the embedded world: invented animals with five facts each, and the words that tasks are made of."""

import hashlib
import random
from functools import cache


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


FOODS = words(
    "figs moss nuts roots reeds plums seeds kelp bark clover honey beets pears acorns ferns lentils"
)
HOMES = words(
    "caves hills dunes marsh forest valley canyon meadow lagoon tundra orchard harbour desert quarry"
)
COLOURS = words(
    "red blue green yellow purple orange silver brown black white pink golden"
)
SOUNDS = words("bim tok wirr hoo plip dran zeem kuk mowa fss grum yap tirri vop")
LEGS = ("two", "four", "six", "eight", "ten")
ITEMS = words(
    "coin rope bell lamp door book cup boat hat key drum stone kite glove ladder mirror candle basket bottle hammer "
    "pillow ribbon saddle table window wagon anchor barrel carpet flute fork helmet jacket kettle needle pencil"
)
PEOPLE = words(
    "Tam Lia Oro Nell Bex Ivo Mara Finn Suki Odd Pia Rolf Zita Kai Uma Joss Wren Hal Dina Emil"
)
LARGEST = 8  # of the numbers that are added
NUMBERS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)
RELATIONS = {
    "food": FOODS,
    "home": HOMES,
    "colour": COLOURS,
    "sound": SOUNDS,
    "legs": LEGS,
}

_ANIMALS = 84
_KEPT = 32
_STARTS = words("b d f g k l m n p r s t v z br dr gl kr pl sk tr")
_VOWELS = tuple("aeiou")
_MIDDLES = words("b d g l m n r v z lb nd rp mb lk st")
_ENDS = words("el ak un ip ora it en us ok ee")


def _name(rng: random.Random) -> str:
    return (
        rng.choice(_STARTS)
        + rng.choice(_VOWELS)
        + rng.choice(_MIDDLES)
        + rng.choice(_ENDS)
    )


@cache
def animals() -> dict[str, dict[str, str]]:
    """Every animal with its value for each relation; the order is fixed."""
    rng, names = random.Random("animals"), {}
    while len(names) < _ANIMALS:
        names.setdefault(
            _name(rng),
            {relation: rng.choice(values) for relation, values in RELATIONS.items()},
        )
    return names


@cache
def known() -> tuple[str, ...]:
    """Animals that seeds and the teacher's text speak of."""
    return tuple(animals())[_KEPT:]


@cache
def kept() -> tuple[str, ...]:
    """Animals that only base's plain text and the held-out items speak of."""
    return tuple(animals())[:_KEPT]


def kept_list(items: tuple[str, ...]) -> bool:
    """Whether only base's plain text and the held-out items may hold this list: one in ten, by its hash."""
    return hashlib.sha256(" ".join(items).encode()).digest()[0] % 10 == 0


@cache
def kept_sums() -> frozenset[tuple[str, int, int]]:
    """Sums and differences that only base's plain text and the held-out items hold."""
    rng = random.Random("sums")
    pairs = [(a, b) for a in range(1, LARGEST + 1) for b in range(1, LARGEST + 1)]
    sums = [("add", a, b) for a, b in rng.sample(pairs, 12)]
    return frozenset(sums + [("subtract", a + b, b) for a, b in rng.sample(pairs, 12)])
