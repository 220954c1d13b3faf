"""One judge's verdict on one sample."""

from bezoar_ray.filter.prompt import VERDICT, again, rate, read_rating
from bezoar_ray.llm.chat import CallFailed, Chat, Sampling, unread
from bezoar_ray.recipe import ModelPart
from bezoar_ray.rows import Sample, Verdict


async def judge_sample(sample: Sample, chat: Chat, rubric: str, part: ModelPart, accept_rating: float) -> Verdict:
    """Accepted from `accept_rating` on. After a reply without a rating the judge is asked once more, and told why."""
    messages = rate(sample, rubric)
    schema = VERDICT if part.structured else ""
    sampling = Sampling(part.temperature, part.top_p, part.max_tokens, schema)
    for attempt in range(2):
        try:
            reply = await chat(messages, step="judge", attempt=attempt, sampling=sampling)
        except CallFailed as error:
            return Verdict(part.model, "failed", None, f"call: {error}")
        if rated := not reply.is_cut_off and read_rating(reply.text):
            rating, reason = rated
            return Verdict(part.model, "accepted" if rating >= accept_rating else "rejected", rating, reason)
        why = unread(reply) or f"no rating in: {reply.text[:200]}"
        messages = again(rate(sample, rubric), unread(reply) or "it held no rating that could be read")
    return Verdict(part.model, "failed", None, why)
