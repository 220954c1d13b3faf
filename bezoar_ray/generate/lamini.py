"""LaMini (arXiv 2304.14402, section 3): a call asks for new instructions, and each of them gets its own answer.

*Example-guided* calls show three seed instructions; *topic-guided* ones name three topics besides.
"""

import random
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

from bezoar_ray.data.schema import Sample, Seed, row_id
from bezoar_ray.errors import RecipeError
from bezoar_ray.generate.prompts import concise_answer, new_instructions
from bezoar_ray.generate.task import GenerationTask, answered, call_failed
from bezoar_ray.llm.aio import to_the_end
from bezoar_ray.llm.chat import CallFailed, Chat, PromptTooLong, Reply
from bezoar_ray.recipe import Lamini

_EXAMPLE = re.compile(r"<example\s*>(.*?)</example\s*>", re.DOTALL | re.IGNORECASE)
_OPEN = re.compile(r"</?example\b[^>]*>", re.IGNORECASE)
_LABEL = re.compile(
    r"^\W{0,3}(?:new )?(?:instruction|example|task)\s*\d*\s*[:.)]\W{0,3}", re.IGNORECASE
)
_NUMBER = re.compile(r"^\s{0,3}\W{0,2}(\d{1,3})[.):]\W{0,2}\s+")
_BULLET = re.compile(r"^\s{0,3}[-*•–]\s+")
_WHOLE_BOLD = re.compile(r"\A\*\*((?:(?!\*\*).)+)\*\*\Z", re.DOTALL)
_MOSTLY = 0.7  # of the lines: fewer bullets are part of a text
_SHOWN = 300  # characters of a reply in which nothing was found


def plan(
    name: str, part: Lamini, recipe_seed: int, seeds: Sequence[Seed]
) -> Iterator[GenerationTask]:
    """The calls, each with its examples and topics: the same for the same recipe seed and rows."""
    topics, shown = read_topics(part), _alone(seeds)
    for number in range(part.calls if shown else 0):
        yield _call(name, number, part, recipe_seed, seeds, shown, topics)


def read_topics(part: Lamini) -> list[str]:
    """The recipe's topics, each once.

    Raises:
        RecipeError: there are too few for one call.
    """
    topics = list(
        dict.fromkeys(
            line.strip() for line in part.topics_text.splitlines() if line.strip()
        )
    )
    if len(topics) < part.topics_per_call:
        raise RecipeError(
            f"generate.lamini.topics: {part.topics!r} has {len(topics)} topics, fewer than topics_per_call "
            f"({part.topics_per_call}). Add some, one a line."
        )
    return topics


async def run(work: GenerationTask, chat: Chat, part: Lamini) -> AsyncIterator[Sample]:
    """One call's rows: `per_call` slots, of which those that the teacher left empty are failed rows ("missing")."""
    slots = [
        work.sample(work.draw["generator"], call=work.draw["call"], slot=slot)
        for slot in range(part.per_call)
    ]
    try:
        reply = await _new(work, chat, part.per_call)
    except CallFailed as error:
        for sample in slots:
            yield sample.ended(*call_failed(error))
        return
    found = read_instructions(reply.text, reply.is_cut_off)[: part.per_call]
    for sample in slots[len(found) :]:
        told = (
            "" if found else reply.text[:_SHOWN]
        )  # so that a report can show what such replies look like
        yield replace(sample, response=told, finish_reason=reply.finish_reason).ended(
            "failed", "missing"
        )
    filled = zip(slots, found, strict=False)
    for sample in await to_the_end(
        _answer(*one, slot, chat) for slot, one in enumerate(filled)
    ):
        yield sample


async def _new(work: GenerationTask, chat: Chat, per_call: int) -> Reply:
    """The reply to the call for new instructions: examples are dropped where they leave no room for it."""
    examples = [seed.instruction for seed in work.seeds]
    while True:
        try:
            return await chat(
                new_instructions(examples, work.draw["topics"], per_call),
                step="instructions",
            )
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
        return _unmarked(closed)
    items = _OPEN.split(reply)[1:] if _OPEN.search(reply) else _items(reply)
    found = _without_farewell(items)
    return _unmarked(found[:-1] if cut_off else found)


def _items(reply: str) -> list[str]:
    """The items of a list, each with the lines that follow it; what stands before the first is no item."""
    lines = reply.splitlines()
    marker = next(
        (
            kind
            for line in lines
            for kind in (_LABEL, _NUMBER, _BULLET)
            if kind.match(line)
        ),
        None,
    )
    marked = [line for line in lines if marker and marker.match(line)]
    written = [line for line in lines if line.strip()]
    if len(marked) < 2 or (marker is _BULLET and len(marked) < _MOSTLY * len(written)):
        return []
    found: list[str] = []
    for line in lines:
        if marker and (begin := marker.match(line)):
            found.append(line[begin.end() :])
        elif found:
            found[-1] += f"\n{line}"
    return found


def _without_farewell(items: list[str]) -> list[str]:
    """Without a last paragraph that only the last item has: "Let me know if you need more"."""
    texts = [item.strip() for item in items]
    if len(texts) > 1 and not any("\n\n" in text for text in texts[:-1]):
        texts[-1] = texts[-1].partition("\n\n")[0]
    return texts


def _unmarked(items: list[str]) -> list[str]:
    """Without what stands before all of them (a label, or numbers that count up) or around one (emphasis), and without
    empty ones."""
    texts = [item.strip() for item in items]
    texts = [text for text in texts if text]
    if texts and all(_LABEL.match(text) for text in texts):
        texts = [_LABEL.sub("", text, count=1) for text in texts]
    numbers = [number for text in texts if (number := _NUMBER.match(text))]
    if len(texts) == len(numbers) > 1:
        counted = [int(number.group(1)) for number in numbers]
        if counted == list(range(counted[0], counted[0] + len(counted))):
            texts = [
                text[number.end() :]
                for text, number in zip(texts, numbers, strict=True)
            ]
    return [found for text in texts if (found := _WHOLE_BOLD.sub(r"\1", text.strip()))]


async def _answer(sample: Sample, instruction: str, slot: int, chat: Chat) -> Sample:
    messages = concise_answer(instruction)
    try:
        reply = await chat(messages, step=f"answer/{slot}")
    except CallFailed as error:
        return replace(sample, instruction=instruction).ended(*call_failed(error))
    return replace(sample, instruction=instruction, **answered(messages, reply))


def _alone(seeds: Sequence[Seed]) -> Sequence[int]:
    """The places of seeds without an input, where there are any: examples are shown without theirs."""
    return [place for place, seed in enumerate(seeds) if not seed.input] or range(
        len(seeds)
    )


def _call(
    scheme: str,
    number: int,
    part: Lamini,
    recipe_seed: int,
    seeds: Sequence[Seed],
    places: Sequence[int],
    topics: list[str],
) -> GenerationTask:
    rng = random.Random(row_id(recipe_seed, scheme, number))
    shown = [
        seeds[place] for place in rng.sample(places, min(part.examples, len(places)))
    ]
    guided = int((number + 1) * part.topic_guided) > int(
        number * part.topic_guided
    )  # the share, spread evenly
    generator = "topic_guided" if guided else "example_guided"
    named = rng.sample(topics, part.topics_per_call) if guided else []
    id = row_id(recipe_seed, scheme, *(seed.id for seed in shown), generator, number)
    return GenerationTask(
        id,
        scheme,
        recipe_seed,
        shown,
        {"call": number, "generator": generator, "topics": named},
    )
