"""Preferences with a strength: HelpSteer2-Preference, or pairs of HH-RLHF's shape.

HelpSteer2-Preference (arXiv 2410.01257) has prompt, response_1, response_2,
preference_strength and split, in `preference/preference.jsonl.gz` of
nvidia/HelpSteer2.
"""

from bezoar_ray.data.schema import Preference
from bezoar_ray.sources import conversations, hh_rlhf
from bezoar_ray.sources.record import Origin, Row, number, required

_STRENGTH = "preference_strength"
_STRONGEST = 3
_OTHER_NAMES = {"val": "validation"}


def preference(row: Row, origin: Origin, split: str = "train") -> Preference | None:
    """Convert a row to a preference.

    A row without `preference_strength` is a pair as in seeds.hh_rlhf, with strength 1.

    Args:
        row: the row.
        origin: where it comes from.
        split: the wanted split, if the row has a column `split`. `val`, as in
            HelpSteer2-Preference, is the same as `validation`.

    Returns:
        None for a row of another split.

    Raises:
        ValueError: the row is malformed, its answers are identical, or its strength is
            no number from -3 to 3.
    """
    row_split = row.get("split")
    if isinstance(row_split, str) and _split_name(row_split) != _split_name(split):
        return None
    if _STRENGTH not in row:
        return _from_pair(row, origin)
    strength = _read_strength(row)
    first = required(row, "response_1")
    second = required(row, "response_2")
    if first == second:
        raise ValueError("`response_1` and `response_2` are identical")
    # Below 0 the first answer is better. At 0 the order means nothing: such a pair has
    # no weight in training.
    chosen, rejected = (first, second) if strength < 0 else (second, first)
    return Preference(
        id=origin.id("preferences"),
        source=origin.source,
        license=origin.license,
        prompt=conversations.read_prompt(row.get("prompt"), "prompt"),
        chosen=chosen,
        rejected=rejected,
        strength=abs(strength),
    )


def _split_name(name: str) -> str:
    return _OTHER_NAMES.get(name, name)


def _from_pair(row: Row, origin: Origin) -> Preference:
    pair = hh_rlhf.pair(row, origin)
    return Preference(
        id=origin.id("preferences"),
        source=pair.source,
        license=pair.license,
        prompt=pair.prompt,
        chosen=pair.chosen,
        rejected=pair.rejected,
    )


def _read_strength(row: Row) -> float:
    strength = number(row[_STRENGTH], _STRENGTH)
    if strength is None:
        raise ValueError(f"empty `{_STRENGTH}`")
    if abs(strength) > _STRONGEST:
        raise ValueError(
            f"`{_STRENGTH}` is {strength:g}, not from -{_STRONGEST} (response_1 is much "
            f"better) to {_STRONGEST} (response_2 is much better)"
        )
    return strength
