"""Five programs that rate an answer as HelpSteer2's annotators do, each from 0 to 4.

Unlike the judge they do not err. The ratings are made of what a small model can learn
to see: manners, length and form, beside the facts. If helpfulness were correctness
alone, as nearly in HelpSteer2 (their correlation there is .94), the embedded reward
model would not learn it: it knows too few of the facts.
"""

import re

from bezoar_ray.data.schema import ATTRIBUTES
from bezoar_ray.tiny import manners, tasks
from bezoar_ray.tiny.grading import RUDE
from bezoar_ray.tiny.truth import claims, is_answered, strip_form_words

Ratings = dict[str, int]
"""A rating from 0 to 4 for each attribute."""

HIGHEST = 4
REFUSAL = "Sorry, I do not know that."

_ADDRESS = "(?:dear friend|good neighbour|kind visitor|dear guest|my friend)"
_KIND_SENTENCE = re.compile(rf"\b[A-Z][a-z ]+, {_ADDRESS}[!.]")
"""A sentence of manners alone: every kind word addresses the asker."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_FALSE_CLAIM_FACTOR = 0.4
"""What a false statement leaves of correctness, as with the judge."""
_VERBOSITY_BINS = (2, 8, 16, 26)
"""Words above which verbosity is 1, 2, 3 and 4."""
_MOST_WORDS = 45
"""Words above which an answer rambles."""
_MOST_EXTRA_FACTS = 2


def rate(prompt: str, response: str) -> Ratings:
    """Rate an answer to the last thing that a user said.

    Args:
        prompt: What the user said. Nothing outside of the embedded world is correct.
        response: The answer.
    """
    text = response.strip()
    if not text:
        return dict.fromkeys(ATTRIBUTES, 0)
    correct = correctness(prompt, text)
    coherent = coherence(text)
    return {
        "helpfulness": helpfulness(prompt, text, correct, coherent),
        "correctness": correct,
        "coherence": coherent,
        "complexity": complexity(text),
        "verbosity": verbosity(text),
    }


def helpfulness(prompt: str, text: str, correct: int, coherent: int) -> int:
    """Rate how far an answer helps: half is correctness, half is manners.

    Polite askers want kind words, the others a plain answer. Nobody wants rude words.
    """
    rating = (correct + 1) // 2 + _manners(prompt, text)
    if RUDE.search(text):
        rating -= 3
    if coherent < HIGHEST - 1:
        rating -= 1
    if text.startswith(REFUSAL):
        rating = min(rating, 1)
    return max(0, rating)


def _manners(prompt: str, text: str) -> int:
    """Rate the manners of an answer from 0 to 2."""
    is_kind = bool(_KIND_SENTENCE.search(text))
    if is_polite(prompt):
        return 2 if is_kind else 0
    return 1 if is_kind else 2


def is_polite(prompt: str) -> bool:
    """Tell whether the asker greets, and so wants kind words."""
    return re.match(manners.GREETING, prompt) is not None


def correctness(prompt: str, text: str) -> int:
    """Rate the share of the tasks that are answered, less if anything said is false."""
    request = tasks.read(prompt)
    if request is None:
        return 0
    body = _without_manners(text)
    answered = [is_answered(body, task, request) for task in request.tasks]
    share = sum(answered) / len(answered)
    if not all(is_true for _, is_true in claims(text)):
        share *= _FALSE_CLAIM_FACTOR
    return round(HIGHEST * share)


def coherence(text: str) -> int:
    """Rate whether an answer is whole, says nothing twice and does not ramble."""
    rating = HIGHEST
    if _is_cut_off(text):
        rating -= 2
    sentences = _SENTENCE_END.split(text)
    if len(set(sentences)) < len(sentences):
        rating -= 1
    if len(text.split()) > _MOST_WORDS:
        rating -= 1
    return rating


def _is_cut_off(text: str) -> bool:
    """Tell whether a sentence lacks its end. Bare values ("red, four") need none."""
    values = strip_form_words(text).split(", ")
    are_bare = all(" " not in value and not value[:1].isupper() for value in values)
    return not are_bare and not text.endswith((".", "!", "?"))


def complexity(text: str) -> int:
    """Rate how much an answer explains: a sentence, its steps, and further facts."""
    rating = 0
    if len(_without_manners(text).split()) > 2:
        rating += 1
    if "So the answer is" in text:
        rating += 1
    true_claims = {claim for claim, is_true in claims(text) if is_true}
    extra_facts = max(0, len(true_claims) - 1)
    return rating + min(_MOST_EXTRA_FACTS, extra_facts)


def verbosity(text: str) -> int:
    """Rate the length of an answer."""
    words = len(text.split())
    return sum(words > most for most in _VERBOSITY_BINS)


def _without_manners(text: str) -> str:
    without_kind = _KIND_SENTENCE.sub("", text)
    return strip_form_words(without_kind.strip())
