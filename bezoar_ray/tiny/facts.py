"""What is true in the embedded world: invented animals with five facts each, and the words that tasks are made of."""

import random
from functools import cache

FOODS = tuple("figs moss nuts roots reeds plums seeds kelp bark clover honey beets pears acorns ferns lentils".split())
HOMES = tuple("caves hills dunes marsh forest valley canyon meadow lagoon tundra orchard harbour desert quarry".split())
COLOURS = tuple("red blue green yellow purple orange silver brown black white pink golden".split())
SOUNDS = tuple("bim tok wirr hoo plip dran zeem kuk mowa fss grum yap tirri vop".split())
LEGS = ("two", "four", "six", "eight", "ten")
ITEMS = tuple(
    "coin rope bell lamp door book cup boat hat key drum stone kite glove ladder mirror candle basket bottle hammer "
    "pillow ribbon saddle table window wagon anchor barrel carpet flute fork helmet jacket kettle needle pencil".split()
)
PEOPLE = tuple("Tam Lia Oro Nell Bex Ivo Mara Finn Suki Odd".split())
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
RELATIONS = {"food": FOODS, "home": HOMES, "colour": COLOURS, "sound": SOUNDS, "legs": LEGS}

_ANIMALS = 84
_KEPT = 32
_STARTS = tuple("b d f g k l m n p r s t v z br dr gl kr pl sk tr".split())
_VOWELS = tuple("aeiou")
_MIDDLES = tuple("b d g l m n r v z lb nd rp mb lk st".split())
_ENDS = tuple("el ak un ip ora it en us ok ee".split())


def _name(rng: random.Random) -> str:
    return rng.choice(_STARTS) + rng.choice(_VOWELS) + rng.choice(_MIDDLES) + rng.choice(_ENDS)


@cache
def animals() -> dict[str, dict[str, str]]:
    """Every animal with its value for each relation; the order is fixed."""
    rng, names = random.Random("animals"), {}
    while len(names) < _ANIMALS:
        names.setdefault(_name(rng), {relation: rng.choice(values) for relation, values in RELATIONS.items()})
    return names


@cache
def known() -> tuple[str, ...]:
    """Animals that seeds and the teacher's text speak of."""
    return tuple(animals())[_KEPT:]


@cache
def kept() -> tuple[str, ...]:
    """Animals that only base's plain text and the held-out items speak of."""
    return tuple(animals())[:_KEPT]


@cache
def kept_sums() -> frozenset[tuple[str, int, int]]:
    """Sums and differences that only base's plain text and the held-out items hold."""
    rng = random.Random("sums")
    pairs = [(a, b) for a in range(1, 13) for b in range(1, 13)]
    sums = [("add", a, b) for a, b in rng.sample(pairs, 30)]
    return frozenset(sums + [("subtract", a + b, b) for a, b in rng.sample(pairs, 30)])
