"""One judge's verdict on one sample."""

from bezoar_ray.filter.prompt import VERDICT, rate, read_rating
from bezoar_ray.llm.chat import CallFailed, Chat, Sampling
from bezoar_ray.recipe import ModelPart
from bezoar_ray.rows import Sample, Verdict


async def judge_sample(sample: Sample, chat: Chat, rubric: str, part: ModelPart, accept_rating: float) -> Verdict:
    """Accepted from `accept_rating` on. A reply without a rating is asked for once more, then it is `failed`."""
    messages = rate(sample, rubric)
    schema = VERDICT if part.structured else ""
    sampling = Sampling(part.temperature, part.top_p, part.max_tokens, schema)
    for attempt in range(2):
        try:
            reply = await chat(messages, step="judge", attempt=attempt, sampling=sampling)
        except CallFailed as error:
            return Verdict(part.model, "failed", None, f"call: {error}")
        if rated := read_rating(reply.text):
            rating, reason = rated
            return Verdict(part.model, "accepted" if rating >= accept_rating else "rejected", rating, reason)
    return Verdict(part.model, "failed", None, f"no rating in: {reply.text[:200]}")
