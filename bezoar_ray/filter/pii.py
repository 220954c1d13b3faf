"""Gates that a recipe may add: what should not be in anybody's training data. Each looks at one row alone."""

from functools import cache
from typing import TYPE_CHECKING

from bezoar_ray.data.schema import Sample

if TYPE_CHECKING:
    from datafog.processing.text_processing.regex_annotator import RegexAnnotator

_VAGUE = (
    "KeywordDetector",
    "IPPublicDetector",
    "Base64HighEntropyString",
    "HexHighEntropyString",
)
_PERSONAL = ("EMAIL", "PHONE", "SSN", "CREDIT_CARD", "IP_ADDRESS")


def holds_secrets(sample: Sample) -> bool:
    """A key, a token or a password in an address, by the form that its issuer gives it (detect-secrets)."""
    from detect_secrets.core.scan import scan_line
    from detect_secrets.settings import transient_settings

    with transient_settings({"plugins_used": _detectors()}):
        return any(next(scan_line(line), None) for line in _text(sample).splitlines())


def holds_personal_data(sample: Sample) -> bool:
    """An e-mail, telephone, social security or credit card number, or an IP address (datafog's expressions).

    Bare digits are taken for a number to reckon with, not for somebody's.
    """
    found = _annotator().annotate(_text(sample))
    return any(not hit.isdigit() for kind in _PERSONAL for hit in found.get(kind, ()))


@cache
def _detectors() -> list[dict[str, str]]:
    """All of detect-secrets' but those that go by the randomness of a word or by a keyword beside it."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    detectors: dict[str, type] = get_mapping_from_secret_type_to_class()
    names = (detector.__name__ for detector in detectors.values())
    return [{"name": name} for name in names if name not in _VAGUE]


@cache
def _annotator() -> "RegexAnnotator":
    from datafog.processing.text_processing.regex_annotator import RegexAnnotator

    return RegexAnnotator()


def _text(sample: Sample) -> str:
    return f"{sample.task}\n{sample.response}"
