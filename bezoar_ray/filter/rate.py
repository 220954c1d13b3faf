"""One judge's verdict on one sample."""

from bezoar_ray.data.schema import Sample, Verdict
from bezoar_ray.filter.rating_prompt import VERDICT, rate, read_rating
from bezoar_ray.llm.chat import CallFailed, Chat, Sampling
from bezoar_ray.llm.verdicts import hear
from bezoar_ray.recipe import ModelSection


async def judge_sample(
    sample: Sample, chat: Chat, rubric: str, part: ModelSection, accept_rating: float
) -> Verdict:
    """Accepted from `accept_rating` on. After a reply without a rating the judge is asked once more, and told why."""
    schema = VERDICT if part.structured else ""
    sampling = Sampling(part.temperature, part.top_p, part.max_tokens, schema)
    try:
        heard = await hear(
            chat, rate(sample, rubric), "judge", read_rating, "rating", sampling
        )
    except CallFailed as error:
        return Verdict(part.model, "failed", None, f"call: {error}")
    if heard.value is None:
        return Verdict(
            part.model, "failed", None, heard.why or f"no rating in: {heard.text[:200]}"
        )
    rating, reason = heard.value
    return Verdict(
        part.model,
        "accepted" if rating >= accept_rating else "rejected",
        rating,
        reason,
    )
