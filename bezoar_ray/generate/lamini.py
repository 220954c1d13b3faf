"""LaMini (arXiv 2304.14402, section 3): a call asks for new instructions, and each of them gets its own answer.

*Example-guided* calls show three seed instructions; *topic-guided* ones name three topics besides.
"""

import random
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

from bezoar_ray.errors import RecipeError
from bezoar_ray.generate.prompts import concise_answer, new_instructions
from bezoar_ray.generate.work import Work, answered, call_failed
from bezoar_ray.llm.chat import CallFailed, Chat, PromptTooLong, Reply
from bezoar_ray.llm.together import to_the_end
from bezoar_ray.recipe import Lamini
from bezoar_ray.rows import Sample, Seed, row_id

SCHEME = "lamini"
_EXAMPLE = re.compile(r"<example>(.*?)</example>", re.DOTALL | re.IGNORECASE)
_OPEN = re.compile(r"</?example\b[^>]*>", re.IGNORECASE)
_MARKERS = (  # of the items of a list, by kind: bullets inside of a numbered item are its own
    re.compile(r"^\W{0,3}(?:new )?(?:instruction|example|task)\s*\d*\s*[:.)]\W{0,3}", re.IGNORECASE),
    re.compile(r"^\s{0,3}\W{0,2}\d{1,3}[.):]\W{0,2}\s+"),
    re.compile(r"^\s{0,3}[-*•–]\s+"),
)
_SHOWN = 300  # characters of a reply in which nothing was found


def plan(part: Lamini, recipe_seed: int, seeds: Sequence[Seed]) -> Iterator[Work]:
    """The calls, each with its examples and topics: the same for the same recipe seed and rows."""
    topics, shown = read_topics(part), _alone(seeds)
    for number in range(part.calls if shown else 0):
        yield _call(number, part, recipe_seed, seeds, shown, topics)


def read_topics(part: Lamini) -> list[str]:
    """The recipe's topics, each once.

    Raises:
        RecipeError: there are too few for one call.
    """
    topics = list(dict.fromkeys(line.strip() for line in part.topics_text.splitlines() if line.strip()))
    if len(topics) < part.topics_per_call:
        raise RecipeError(
            f"generate.lamini.topics: {part.topics!r} has {len(topics)} topics, fewer than topics_per_call "
            f"({part.topics_per_call}). Add some, one a line."
        )
    return topics


async def lamini(work: Work, chat: Chat, part: Lamini) -> AsyncIterator[Sample]:
    """One call's rows: `per_call` slots, of which those that the teacher left empty are failed rows ("missing")."""
    slots = [work.sample(work.draw["generator"], call=work.draw["call"], slot=slot) for slot in range(part.per_call)]
    try:
        reply = await _new(work, chat, part.per_call)
    except CallFailed as error:
        for sample in slots:
            yield sample.ended(*call_failed(error))
        return
    found = read_instructions(reply.text, reply.is_cut_off)[: part.per_call]
    for sample in slots[len(found) :]:
        told = "" if found else reply.text[:_SHOWN]  # so that a report can show what such replies look like
        yield replace(sample, response=told, finish_reason=reply.finish_reason).ended("failed", "missing")
    filled = zip(slots, found, strict=False)
    for sample in await to_the_end(_answer(*one, slot, chat) for slot, one in enumerate(filled)):
        yield sample


async def _new(work: Work, chat: Chat, per_call: int) -> Reply:
    """The reply to the call for new instructions: examples are dropped where they leave no room for it."""
    examples = [seed.instruction for seed in work.seeds]
    while True:
        try:
            return await chat(new_instructions(examples, work.draw["topics"], per_call), step="instructions")
        except PromptTooLong:
            if len(examples) == 1:
                raise
            examples.pop()


def read_instructions(reply: str, cut_off: bool = False) -> list[str]:
    """The instructions in a reply: between the tags that were asked for, or as small models write them instead.

    They leave all tags open, or number their items, or put bullets before them. The last item of a reply that is cut
    off does not count, and neither does an open one where others are closed.
    """
    if closed := _EXAMPLE.findall(reply):
        return _cleaned(closed)
    found = _OPEN.split(reply)[1:] if _OPEN.search(reply) else _items(reply)
    return _cleaned(found[:-1] if cut_off else found)


def _items(reply: str) -> list[str]:
    """The items of a list, each with the lines that follow it; what stands before the first is no item."""
    lines = reply.splitlines()
    marker = next((marker for marker in _MARKERS if sum(bool(marker.match(line)) for line in lines) > 1), None)
    found: list[str] = []
    for line in lines if marker else ():
        if marked := marker.match(line):
            found.append(line[marked.end() :])
        elif found:
            found[-1] += f"\n{line}"
    return found


def _cleaned(texts: list[str]) -> list[str]:
    """Without a label or number before them and emphasis around them, and without empty ones."""
    cleaned = []
    for text in texts:
        text = text.strip()
        for marker in _MARKERS[:2]:
            text = marker.sub("", text, count=1)
        cleaned.append(text.strip().strip("*").strip())
    return [text for text in cleaned if text]


async def _answer(sample: Sample, instruction: str, slot: int, chat: Chat) -> Sample:
    messages = concise_answer(instruction)
    try:
        reply = await chat(messages, step=f"answer/{slot}")
    except CallFailed as error:
        return replace(sample, instruction=instruction).ended(*call_failed(error))
    return replace(sample, instruction=instruction, **answered(messages, reply))


def _alone(seeds: Sequence[Seed]) -> Sequence[int]:
    """The places of seeds without an input, where there are any: examples are shown without theirs."""
    return [place for place, seed in enumerate(seeds) if not seed.input] or range(len(seeds))


def _call(
    number: int, part: Lamini, recipe_seed: int, seeds: Sequence[Seed], places: Sequence[int], topics: list[str]
) -> Work:
    rng = random.Random(row_id(recipe_seed, SCHEME, number))
    shown = [seeds[place] for place in rng.sample(places, min(part.examples, len(places)))]
    guided = int((number + 1) * part.topic_guided) > int(number * part.topic_guided)  # the share, spread evenly
    generator = "topic_guided" if guided else "example_guided"
    named = rng.sample(topics, part.topics_per_call) if guided else []
    id = row_id(recipe_seed, SCHEME, *(seed.id for seed in shown), generator, number)
    return Work(id, SCHEME, recipe_seed, shown, {"call": number, "generator": generator, "topics": named})
