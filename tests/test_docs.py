"""The page on errors says what the code says; tests/test_docs_site.py looks at the other pages."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def errors_explained() -> list[str]:
    """The texts in the first column of the page on errors."""
    rows = re.findall(
        r"^\| `(.+?)` \| [^|]+ \| [^|]+ \|$",
        (ROOT / "docs/troubleshooting.md").read_text(),
        re.MULTILINE,
    )
    return [text.strip("` ") for text in rows]


def test_every_error_that_is_explained_is_one_that_the_code_raises():
    """A text may stand in several literals that follow one another, or hold what differs between braces."""
    code = "".join(
        path.read_text() for path in sorted((ROOT / "bezoar_ray").rglob("*.py"))
    )
    joined = (
        re.sub(r"['\"]\s*\n\s*(?:f|r)?['\"]", "", code)
        .replace("{{", "{")
        .replace("}}", "}")
    )
    explained = errors_explained()
    assert len(explained) > 40
    assert [text for text in explained if text not in joined] == []
