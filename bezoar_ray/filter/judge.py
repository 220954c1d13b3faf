"""One judge's verdict on one sample."""

from importlib import resources
from pathlib import Path

from bezoar_ray.errors import RecipeError
from bezoar_ray.filter.prompt import rate, read_rating
from bezoar_ray.llm.chat import CallFailed, Chat
from bezoar_ray.recipe import Filter, ModelPart
from bezoar_ray.rows import Sample, Verdict


async def judge_sample(sample: Sample, chat: Chat, rubric: str, part: ModelPart, accept_rating: float) -> Verdict:
    """Accepted from `accept_rating` on. A reply without a rating is asked for once more, then it is `failed`."""
    messages = rate(sample, rubric)
    for attempt in range(2):
        try:
            reply = await chat(messages, step="judge", attempt=attempt)
        except CallFailed as error:
            return Verdict(part.model, "failed", None, f"call: {error}")
        if rated := read_rating(reply.text):
            rating, reason = rated
            return Verdict(part.model, "accepted" if rating >= accept_rating else "rejected", rating, reason)
    return Verdict(part.model, "failed", None, f"no rating in: {reply.text[:200]}")


def rubric_of(part: Filter, scheme: str) -> str:
    """The rubric of a scheme: the recipe's file, or the packaged one.

    Raises:
        RecipeError: the file cannot be read.
    """
    path = part.rubrics.get(scheme)
    try:
        packaged = resources.files("bezoar_ray.filter") / "rubrics" / f"{scheme}.txt"
        return Path(path).read_text() if path else packaged.read_text()
    except OSError as error:
        raise RecipeError(f"filter.rubrics.{scheme}: cannot read {path!r}: {error.strerror}") from error
