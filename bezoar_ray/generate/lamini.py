"""LaMini (arXiv 2304.14402, section 3): write new instructions, then answer each.

An *example-guided* call shows the teacher three seed instructions. A *topic-guided*
call also names three topics. Each new instruction is answered by a call of its own.
"""

import random
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

from bezoar_ray.data.schema import Sample, Seed, row_id
from bezoar_ray.errors import RecipeError
from bezoar_ray.generate.prompts import concise_answer_prompt, new_instructions_prompt
from bezoar_ray.generate.task import GenerationTask, fail_call, fill_answer
from bezoar_ray.llm.aio import to_the_end
from bezoar_ray.llm.chat import CallFailed, Chat, PromptTooLong, Reply
from bezoar_ray.recipe import Lamini

# The tags that the prompt asks for, and the other forms that small models write.
_CLOSED_EXAMPLE = re.compile(
    r"<example\s*>(.*?)</example\s*>", re.DOTALL | re.IGNORECASE
)
_EXAMPLE_TAG = re.compile(r"</?example\b[^>]*>", re.IGNORECASE)
_LABEL = re.compile(
    r"^\W{0,3}(?:new )?(?:instruction|example|task)\s*\d*\s*[:.)]\W{0,3}", re.IGNORECASE
)
_NUMBER = re.compile(r"^\s{0,3}\W{0,2}(\d{1,3})[.):]\W{0,2}\s+")
_BULLET = re.compile(r"^\s{0,3}[-*•–]\s+")
_BOLD_TEXT = re.compile(r"\A\*\*((?:(?!\*\*).)+)\*\*\Z", re.DOTALL)
_BULLET_SHARE = 0.7  # of the lines: with fewer bullets they are part of a text
_SHOWN_CHARACTERS = 300  # of a reply without any instruction


def plan(
    name: str,
    section: Lamini,
    recipe_seed: int,
    seeds: Sequence[Seed],
) -> Iterator[GenerationTask]:
    """Yield one task for each call for instructions, with its examples and topics.

    The same recipe seed and seed rows give the same tasks.

    Raises:
        RecipeError: The recipe has too few topics.
    """
    topics = read_topics(section)
    indices = _example_indices(seeds)
    if not indices:
        return
    for number in range(section.calls):
        # Seeded by the call's number: with more calls, the earlier
        # ones stay as they are.
        rng = random.Random(row_id(recipe_seed, name, number))
        # The paper shows three random examples in each call (`examples`).
        drawn = rng.sample(indices, min(section.examples, len(indices)))
        examples = [seeds[index] for index in drawn]
        # The paper draws three topics for a topic-guided call (`topics_per_call`).
        if _is_topic_guided(number, section.topic_guided):
            generator = "topic_guided"
            call_topics = rng.sample(topics, section.topics_per_call)
        else:
            generator = "example_guided"
            call_topics = []
        seed_ids = [seed.id for seed in examples]
        task_id = row_id(recipe_seed, name, *seed_ids, generator, number)
        draw = {"call": number, "generator": generator, "topics": call_topics}
        yield GenerationTask(task_id, name, recipe_seed, examples, draw)


def read_topics(section: Lamini) -> list[str]:
    """Read the recipe's topics, without duplicates.

    Raises:
        RecipeError: There are fewer topics than one call needs.
    """
    lines = [line.strip() for line in section.topics_text.splitlines()]
    topics = list(dict.fromkeys(line for line in lines if line))
    if len(topics) < section.topics_per_call:
        raise RecipeError(
            f"generate.lamini.topics: {section.topics!r} has {len(topics)} topics, "
            f"fewer than topics_per_call ({section.topics_per_call}). "
            "Add topics, one per line."
        )
    return topics


def _example_indices(seeds: Sequence[Seed]) -> Sequence[int]:
    """Return the indices of the seeds that may be examples.

    An example shows the instruction without its input. So only seeds without an input
    are used, unless all seeds have one.
    """
    without_input = [index for index, seed in enumerate(seeds) if not seed.input]
    return without_input or range(len(seeds))


def _is_topic_guided(number: int, share: float) -> bool:
    """Whether a call is topic-guided; the share is spread evenly over the calls."""
    return int((number + 1) * share) > int(number * share)


async def run(
    task: GenerationTask,
    chat: Chat,
    section: Lamini,
) -> AsyncIterator[Sample]:
    """Yield `per_call` rows, one for each instruction that the call asks for.

    A slot that the teacher left empty is a failed row with the reason "missing".
    """
    slots = [
        task.sample(task.draw["generator"], call=task.draw["call"], slot=slot)
        for slot in range(section.per_call)
    ]
    try:
        reply = await _request_instructions(task, chat, section.per_call)
    except CallFailed as error:
        for sample in slots:
            yield fail_call(sample, error)
        return
    # Teachers write more than they were asked for; ids exist for `per_call` slots only.
    instructions = read_instructions(reply.text, reply.is_cut_off)[: section.per_call]
    # A reply without any instruction is kept in part, so that the report can show it.
    excerpt = "" if instructions else reply.text[:_SHOWN_CHARACTERS]
    for sample in slots[len(instructions) :]:
        empty = replace(sample, response=excerpt, finish_reason=reply.finish_reason)
        yield empty.ended("failed", "missing")
    filled_slots = enumerate(zip(slots, instructions, strict=False))
    answers = [
        _answer(sample, instruction, slot, chat)
        for slot, (sample, instruction) in filled_slots
    ]
    for sample in await to_the_end(answers):
        yield sample


async def _request_instructions(
    task: GenerationTask,
    chat: Chat,
    per_call: int,
) -> Reply:
    """Ask for new instructions, with fewer examples where the prompt is too long."""
    examples = [seed.instruction for seed in task.seeds]
    while True:
        messages = new_instructions_prompt(examples, task.draw["topics"], per_call)
        try:
            return await chat(messages, step="instructions")
        except PromptTooLong:
            if len(examples) == 1:
                raise
            examples.pop()


async def _answer(sample: Sample, instruction: str, slot: int, chat: Chat) -> Sample:
    sample = replace(sample, instruction=instruction)
    messages = concise_answer_prompt(instruction)
    try:
        reply = await chat(messages, step=f"answer/{slot}")
    except CallFailed as error:
        return fail_call(sample, error)
    return fill_answer(sample, messages, reply)


def read_instructions(reply: str, cut_off: bool = False) -> list[str]:
    """Read the instructions from a reply.

    The prompt asks for `<example>` tags. Small models often leave the tags open, number
    the items or use bullets, and all of these are read.

    Args:
        reply: The text of the reply.
        cut_off: Whether the reply is incomplete. Its last item is then left out.

    Returns:
        The instructions. Where some tags are closed, items with open tags do not count.
    """
    closed = _CLOSED_EXAMPLE.findall(reply)
    if closed:
        return _clean_items(closed)
    tagged = _EXAMPLE_TAG.split(reply)[1:]  # empty without any tag
    items = _without_closing_remark(tagged or _list_items(reply))
    if cut_off:
        items = items[:-1]
    return _clean_items(items)


def _list_items(reply: str) -> list[str]:
    """Read the items of a list, each with the lines that follow it.

    Text before the first item is left out.
    """
    lines = reply.splitlines()
    marker = _list_marker(lines)
    if marker is None:
        return []
    marked_lines = sum(1 for line in lines if marker.match(line))
    text_lines = sum(1 for line in lines if line.strip())
    # One number or bullet alone is more likely part of a text.
    if marked_lines < 2:
        return []
    if marker is _BULLET and marked_lines < _BULLET_SHARE * text_lines:
        return []
    items: list[str] = []
    for line in lines:
        match = marker.match(line)
        if match:
            items.append(line[match.end() :])
        elif items:
            items[-1] += f"\n{line}"
    return items


def _list_marker(lines: list[str]) -> re.Pattern[str] | None:
    """Return the pattern of the first list marker in the lines, or None."""
    for line in lines:
        for marker in (_LABEL, _NUMBER, _BULLET):
            if marker.match(line):
                return marker
    return None


def _without_closing_remark(items: list[str]) -> list[str]:
    """Remove a closing remark such as "Let me know if you need more".

    It is a paragraph after the last item, where no other item has a second paragraph.
    """
    texts = [item.strip() for item in items]
    if len(texts) < 2:
        return texts
    if any("\n\n" in text for text in texts[:-1]):
        return texts
    texts[-1] = texts[-1].partition("\n\n")[0]
    return texts


def _clean_items(items: list[str]) -> list[str]:
    """Remove labels or numbers that all items have, emphasis, and empty items."""
    stripped = [item.strip() for item in items]
    texts = [text for text in stripped if text]
    if texts and all(_LABEL.match(text) for text in texts):
        texts = [_LABEL.sub("", text, count=1) for text in texts]
    texts = _without_numbers(texts)
    plain = [_BOLD_TEXT.sub(r"\1", text.strip()) for text in texts]
    return [text for text in plain if text]


def _without_numbers(texts: list[str]) -> list[str]:
    """Remove the numbers before the texts, where all have one and they count up."""
    matches = []
    for text in texts:
        match = _NUMBER.match(text)
        if match is None:
            return texts
        matches.append(match)
    # A single number may be the instruction's own.
    if len(matches) < 2:
        return texts
    numbers = [int(match.group(1)) for match in matches]
    first = numbers[0]
    if numbers != list(range(first, first + len(numbers))):
        return texts
    return [match.string[match.end() :] for match in matches]
