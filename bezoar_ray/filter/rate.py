"""One judge's verdict on one sample."""

from bezoar_ray.data.schema import Sample, Verdict
from bezoar_ray.filter.rating_prompt import VERDICT, rating_messages, read_rating
from bezoar_ray.llm.chat import CallFailed, Chat, Sampling
from bezoar_ray.llm.verdicts import request_verdict
from bezoar_ray.recipe import RowJudge


async def judge_sample(
    sample: Sample, chat: Chat, rubric: str, judge: RowJudge, accept_rating: float
) -> Verdict:
    """Return one judge's verdict on a sample: accepted from `accept_rating` upward.

    After a reply without a rating, the judge is asked once more, and told why. A reward
    model gets the row itself, and no rubric.
    """
    schema = VERDICT if judge.structured else ""
    sampling = Sampling(judge.temperature, judge.top_p, judge.max_tokens, schema)
    messages = rating_messages(sample, rubric)
    if judge.reward:
        messages = sample.conversation()
    try:
        heard = await request_verdict(
            chat, messages, "judge", read_rating, "rating", sampling
        )
    except CallFailed as error:
        return Verdict(judge.model, "failed", None, f"call: {error}")
    if heard.value is None:
        reason = heard.problem or f"no rating in: {heard.text[:200]}"
        return Verdict(judge.model, "failed", None, reason)
    rating, reason = heard.value
    status = "accepted" if rating >= accept_rating else "rejected"
    return Verdict(judge.model, status, rating, reason)
