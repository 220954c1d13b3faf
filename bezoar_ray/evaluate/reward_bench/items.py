"""The items of RewardBench: a prompt and its answers, the right ones first.

Version 1 (arXiv 2403.13787) has one right and one wrong answer to each prompt. Version 2
(arXiv 2506.01937) has one right and three wrong ones, and in its subset Ties several
answers that are equally right.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from bezoar_ray.errors import RecipeError
from bezoar_ray.llm.chat import Messages
from bezoar_ray.recipe import SourceSection
from bezoar_ray.runtime.embedded_world import find_ratings
from bezoar_ray.sources import conversations, read_fields
from bezoar_ray.sources.record import Row, as_text, required

Version = Literal["one", "two"]
"""The field of `evaluate.reward_bench` that names the file of a version."""
TIES = "Ties"
"""The subset of version 2 whose prompts have several right answers."""
_COLUMNS = {
    "one": "id, prompt, chosen, rejected, subset",
    "two": "id, prompt, chosen, rejected, num_correct, subset",
}
_TIES_KINDS = ("ref", "tied")


@dataclass(frozen=True)
class BenchItem:
    """A prompt with several answers."""

    id: str
    subset: str
    prompt: Messages
    """The conversation up to the turn that is answered."""
    answers: tuple[str, ...]
    """The right answers, then the wrong ones."""
    right: int
    """Number of right answers."""

    @property
    def ties_kind(self) -> str:
        """In the subset Ties: `ref` with one right answer, or `tied` with several."""
        return self.id.partition(":")[0]

    @property
    def ties_prompt(self) -> str:
        """In the subset Ties: what the `ref` and the `tied` item of a pair share."""
        return self.id.partition(":")[2]


def load_items(
    source: SourceSection, version: Version, limit: int | None = None
) -> list[BenchItem]:
    """Load the items of a version, in the order of the file.

    Args:
        source: the recipe's `evaluate.reward_bench.one` or `.two`.
        version: its name.
        limit: items of each subset, at most. In Ties, the two items of a prompt count
            as one.

    Raises:
        RecipeError: the file cannot be read, or a row is not an item; the message names
            file, line, column and value.
    """
    field = f"evaluate.reward_bench.{version}"
    convert = _CONVERT[version]
    items = []
    for where, row in read_fields(_with_path(source, version), field):
        try:
            items.append(convert(row))
        except ValueError as error:
            raise RecipeError(f"{field}: {where}: {error}") from error
    if not items:
        raise RecipeError(
            f"{field}: {source.source!r} has no rows. Give a file with the columns "
            f"{_COLUMNS[version]}"
        )
    _check_ties(items, field, source.source)
    return _first_of_each_subset(items, limit)


def _with_path(source: SourceSection, version: Version) -> SourceSection:
    """The source, with the path of the embedded file in place of `tiny`."""
    if source.source != "tiny":
        return source
    files = find_ratings()
    path = files.reward_bench if version == "one" else files.reward_bench_2
    return source.model_copy(update={"source": str(path)})


def _item_of_version_1(row: Row) -> BenchItem:
    _check_columns(row, "one")
    for column in ("chosen", "rejected"):
        if isinstance(row[column], list):
            raise ValueError(
                f"`{column}` is a list of answers, as in RewardBench 2. Give the file "
                "as evaluate.reward_bench.two"
            )
    answers = (_answer(row["chosen"], "chosen"), _answer(row["rejected"], "rejected"))
    return BenchItem(_id(row), required(row, "subset"), _prompt(row), answers, right=1)


def _item_of_version_2(row: Row) -> BenchItem:
    _check_columns(row, "two")
    chosen = _answers(row, "chosen")
    rejected = _answers(row, "rejected")
    count = row["num_correct"]
    if count != len(chosen):
        raise ValueError(
            f"`num_correct` is {count!r}, and `chosen` has {len(chosen)} answers. The "
            "right answers are those in `chosen`: make the two equal"
        )
    subset = required(row, "subset")
    if subset.casefold() == TIES.casefold():
        subset = TIES
    elif len(chosen) > 1:
        raise ValueError(
            f"`chosen` has {len(chosen)} answers in the subset {subset!r}. Only "
            f"{TIES} has several right answers: leave one"
        )
    answers = (*chosen, *rejected)
    return BenchItem(_id(row), subset, _prompt(row), answers, right=len(chosen))


_CONVERT: dict[Version, Callable[[Row], BenchItem]] = {
    "one": _item_of_version_1,
    "two": _item_of_version_2,
}


def _check_columns(row: Row, version: Version) -> None:
    for column in _COLUMNS[version].split(", "):
        if column in row:
            continue
        if column == "num_correct" and isinstance(row["chosen"], str):
            raise ValueError(
                "no `num_correct`, and `chosen` is a text, as in RewardBench 1. Give "
                "the file as evaluate.reward_bench.one"
            )
        raise ValueError(
            f"no `{column}`. The columns are {', '.join(row)}; needed are "
            f"{_COLUMNS[version]}"
        )


def _id(row: Row) -> str:
    """The id as text. Version 1 has numbers."""
    if not isinstance(row["id"], int | str):
        raise ValueError(f"`id` is {row['id']!r}, not a number or text")
    return str(row["id"])


def _prompt(row: Row) -> Messages:
    """The messages of a prompt, which is a text or a list of messages."""
    prompt = row["prompt"]
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return [{"role": "user", "content": _answer(prompt, "prompt")}]
    messages = conversations.read(prompt, "prompt")
    if messages[-1]["role"] != "user":
        raise ValueError(
            f"`prompt` ends with a turn of the {messages[-1]['role']}; its last turn "
            "must be the user's"
        )
    return messages


def _answers(row: Row, column: str) -> list[str]:
    value = row[column]
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{column}` is {value!r:.60}, not a list of answers")
    return [_answer(answer, column) for answer in value]


def _answer(value: object, column: str) -> str:
    """A text that is not blank. It keeps its white space, since code is indented."""
    if not isinstance(value, str):
        raise ValueError(f"`{column}` holds {value!r:.60}, not text")
    if not value.strip():
        raise ValueError(f"empty `{column}`")
    return as_text(value)


def _check_ties(items: Iterable[BenchItem], field: str, source: str) -> None:
    """Check the ids of the subset Ties, and the number of right answers.

    Raises:
        RecipeError: an item cannot be scored.
    """
    seen = set()
    for item in items:
        if item.subset != TIES:
            continue
        name = f"{field}: {source}: the item {item.id!r} of {TIES}"
        if item.ties_kind not in _TIES_KINDS or not item.ties_prompt:
            raise RecipeError(
                f"{name} has another id than `ref:<prompt>` or `tied:<prompt>`. These "
                "ids tell which two items belong together"
            )
        if item.id in seen:
            raise RecipeError(f"{name} is there twice. Remove one")
        if item.ties_kind == "tied" and item.right < 2:
            raise RecipeError(
                f"{name} has one right answer. A `tied` item needs several: call it "
                f"'ref:{item.ties_prompt}', or add answers to `chosen`"
            )
        seen.add(item.id)


def _first_of_each_subset(items: list[BenchItem], limit: int | None) -> list[BenchItem]:
    """Return the first items of each subset. The rows of a file are sorted by subset."""
    if limit is None:
        return items
    kept = []
    counts: Counter[str] = Counter()
    ties_prompts: set[str] = set()
    for item in items:
        if item.subset == TIES and item.ties_prompt in ties_prompts:
            kept.append(item)
        elif counts[item.subset] < limit:
            counts[item.subset] += 1
            kept.append(item)
            if item.subset == TIES:
                ties_prompts.add(item.ties_prompt)
    return kept
