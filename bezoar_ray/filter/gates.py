"""Gates: checks that reject a row without a judge.

Each gate looks at one row. The first gate that rejects a row is the reason. The first
paragraph of a gate's docstring is its description in docs/reference.
"""

import re
from collections.abc import Sequence

from bezoar_ray.data.schema import Sample, normalize
from bezoar_ray.filter.pii import holds_personal_data, holds_secrets
from bezoar_ray.llm.chat import classify_finish_reason

# Markers of prompts and chat formats, the teacher's and ours.
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
# Text that addresses the judge of the row, or gives the verdict itself.
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


def find_gate(sample: Sample, extra: Sequence[str] = ()) -> str | None:
    """Return the gate that rejects a generated row, or None.

    Args:
        sample: The row.
        extra: The gates of `EXTRA` that the recipe adds.
    """
    gates = GATES | {name: EXTRA[name] for name in extra}
    for name, rejects in gates.items():
        if rejects(sample):
            return name
    return None


def is_empty(sample: Sample) -> bool:
    """The instruction or the response is empty."""
    return not sample.instruction.strip() or not sample.response.strip()


def is_truncated(sample: Sample) -> bool:
    """The response was cut off, by its length limit or by a provider's filter."""
    return classify_finish_reason(sample.finish_reason) != "stop"


def is_refusal(sample: Sample) -> bool:
    """The response begins with an apology or a refusal."""
    return bool(_REFUSAL.match(sample.response))


def leaks_scaffolding(sample: Sample) -> bool:
    """The row holds markers of our prompts or of a chat format."""
    return _has_scaffolding(sample.instruction) or _has_scaffolding(sample.response)


def _has_scaffolding(text: str) -> bool:
    return bool(_SCAFFOLDING.search(text)) or _has_half_a_pair(text)


def _has_half_a_pair(text: str) -> bool:
    """Return whether a text has Llama's begin or end marker without the other.

    Both together are HTML for text that is struck through.
    """
    starts = text.lstrip().startswith("<s>")
    ends = text.rstrip().endswith("</s>")
    return (starts and "</s>" not in text) or (ends and "<s>" not in text)


def speaks_to_the_judge(sample: Sample) -> bool:
    """The response tells the judge which verdict to give.

    A response to a task that is itself about ratings may mention them.
    """
    if not _INJECTION.search(sample.response):
        return False
    return not _INJECTION.search(sample.task)


def is_copy(sample: Sample) -> bool:
    """The response repeats the instruction."""
    response = normalize(sample.response)
    return response in (normalize(sample.instruction), normalize(sample.task))


GATES = {
    "empty": is_empty,
    "truncated": is_truncated,
    "refusal": is_refusal,
    "scaffolding": leaks_scaffolding,
    "injection": speaks_to_the_judge,
    "copy": is_copy,
}
EXTRA = {"secrets": holds_secrets, "personal_data": holds_personal_data}
