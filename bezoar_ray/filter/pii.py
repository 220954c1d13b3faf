"""Gates that a recipe may add: secrets and personal data. Each looks at one row."""

from functools import cache
from typing import TYPE_CHECKING

from bezoar_ray.data.schema import Sample

if TYPE_CHECKING:
    from datafog.processing.text_processing.regex_annotator import RegexAnnotator

# They go by the randomness of a word, or by a keyword beside it.
_VAGUE_DETECTORS = (
    "KeywordDetector",
    "IPPublicDetector",
    "Base64HighEntropyString",
    "HexHighEntropyString",
)
_PERSONAL_KINDS = ("EMAIL", "PHONE", "SSN", "CREDIT_CARD", "IP_ADDRESS")


def holds_secrets(sample: Sample) -> bool:
    """The row holds a key, a token or a password in a URL (detect-secrets).

    They are recognized by the formats of their issuers.
    """
    from detect_secrets.core.scan import scan_line
    from detect_secrets.settings import transient_settings

    # detect-secrets keeps its settings in a global of the process.
    with transient_settings({"plugins_used": _detectors()}):
        for line in _text(sample).splitlines():
            if next(scan_line(line), None):
                return True
    return False


def holds_personal_data(sample: Sample) -> bool:
    """The row holds an e-mail or IP address, or a telephone, social security or credit
    card number (datafog).

    A match of digits alone does not count: it is a number of some calculation.
    """
    matches = _annotator().annotate(_text(sample))
    for kind in _PERSONAL_KINDS:
        for match in matches.get(kind, ()):
            if not match.isdigit():
                return True
    return False


@cache
def _detectors() -> list[dict[str, str]]:
    """Return all detectors of detect-secrets but the vague ones."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    detectors: dict[str, type] = get_mapping_from_secret_type_to_class()
    names = [detector.__name__ for detector in detectors.values()]
    return [{"name": name} for name in names if name not in _VAGUE_DETECTORS]


@cache
def _annotator() -> "RegexAnnotator":
    from datafog.processing.text_processing.regex_annotator import RegexAnnotator

    return RegexAnnotator()


def _text(sample: Sample) -> str:
    return f"{sample.task}\n{sample.response}"
