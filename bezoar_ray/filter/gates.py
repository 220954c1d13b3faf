"""What can be said against a row without a judge: each gate looks at one row alone; the first to object counts."""

import re
from collections.abc import Sequence

from bezoar_ray.data.schema import Sample, normal
from bezoar_ray.filter.pii import holds_personal_data, holds_secrets
from bezoar_ray.llm.chat import ending

# What prompts and chat formats are made of, the teacher's and ours.
_SCAFFOLDING = re.compile(
    r"</?example>|#(given|created|rewritten) prompt#|<[|｜][\w▁/-]+[|｜]>|<(start|end)_of_turn>|\[/?inst\]"
    r"|<</?sys>>|^### (system|instruction|response):",
    re.IGNORECASE | re.MULTILINE,
)
_REFUSAL = re.compile(
    r"^\W*("
    r"(i['’]?m |i am )?(very |so |really |terribly )?sorry\b"
    r"|(i['’]m|i am) (unable|not able|not allowed|afraid)\b"
    r"|(i|we) (can['’]?t|cannot|can not|won['’]?t|will not) (help|assist|answer|do|provide|comply|fulfil|write|give)"
    r"|(unfortunately,? )?(as|i['’]m|i am) an? (ai|artificial|large language|language) "
    r")",
    re.IGNORECASE,
)
# Text that speaks to whoever judges the row, or says the verdict for them.
_INJECTION = re.compile(
    r"\{[^{}]*\"rating\"\s*:"
    r"|\b(ignore|disregard|forget|override)\b[^.\n]{0,30}\b(previous|prior|above|earlier|preceding|your|system)\b"
    r"[^.\n]{0,20}\b(instructions?|rules|rubric|prompt|guidelines)\b"
    r"|\b(ignore|disregard|forget|override)\b[^.\n]{0,15}\brubric\b"
    r"|\b(rate|score|grade)\b (this|it|me|the (row|response|answer))\b[^.\n]{0,40}"
    r"\b(highest|full|maximum|perfect|5|10|five|ten)\b"
    r"|\b(give|award)\b[^.\n]{0,40}"
    r"\b((highest|full|maximum|perfect) (rating|score|marks?|grade)|(rating|score) of (5|10))"
    r"|\b(score|rating) of (5|10)\b[^\n]{0,40}$"
    r"|^(dear|note to|attention,?|as) (the )?(judge|grader|evaluator|reviewer|rater)s?\b"
    r"|</?(rubric|instruction|response|system)>",
    re.IGNORECASE | re.MULTILINE,
)


def gate(sample: Sample, further: Sequence[str] = ()) -> str | None:
    """The gate that rejects a generated row, or None where it may go on to a judge.

    `further` names those of `FURTHER` that a recipe adds.
    """
    gates = GATES | {name: FURTHER[name] for name in further}
    return next((name for name, objects in gates.items() if objects(sample)), None)


def is_empty(sample: Sample) -> bool:
    """Nothing is asked, or nothing is said."""
    return not sample.instruction.strip() or not sample.response.strip()


def is_truncated(sample: Sample) -> bool:
    """The response was cut off: at its longest, or by a provider's own filter."""
    return ending(sample.finish_reason) != "stop"


def is_refusal(sample: Sample) -> bool:
    """The response begins with an apology or a refusal."""
    return bool(_REFUSAL.match(sample.response))


def leaks_scaffolding(sample: Sample) -> bool:
    """Marks of our prompts or of a chat format stand in the row's text."""
    texts = (sample.instruction, sample.response)
    return any(_SCAFFOLDING.search(text) or _has_half_a_pair(text) for text in texts)


def _has_half_a_pair(text: str) -> bool:
    """Llama's marks of begin and end, where they are not HTML's for text that no longer holds."""
    begins, ends = text.lstrip().startswith("<s>"), text.rstrip().endswith("</s>")
    return (begins and "</s>" not in text) or (ends and "<s>" not in text)


def speaks_to_the_judge(sample: Sample) -> bool:
    """The response tells the judge what to say. A row that asks for ratings may speak of them."""
    return bool(_INJECTION.search(sample.response)) and not _INJECTION.search(
        sample.task
    )


def is_copy(sample: Sample) -> bool:
    """The response says the instruction again."""
    return normal(sample.response) in (normal(sample.instruction), normal(sample.task))


GATES = {
    "empty": is_empty,
    "truncated": is_truncated,
    "refusal": is_refusal,
    "scaffolding": leaks_scaffolding,
    "injection": speaks_to_the_judge,
    "copy": is_copy,
}
FURTHER = {"secrets": holds_secrets, "personal_data": holds_personal_data}
