"""The judge's calls through curator: `python curator.py URL REQUESTS SLOTS`, in an environment that has it.

Prints when they were done, by the monotonic clock; its cache of answers is on.
"""

import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

os.environ |= {
    "OPENAI_API_KEY": "none",
    "TELEMETRY_ENABLED": "0",
    "CURATOR_DISABLE_RICH_DISPLAY": "1",
}
_encodings = (
    Path(find_spec("litellm").origin).parent / "litellm_core_utils" / "tokenizers"
)
os.environ["TIKTOKEN_CACHE_DIR"] = str(
    _encodings
)  # those that litellm carries: nothing is fetched
sys.path.remove(
    str(Path(__file__).parent)
)  # or this file would be imported in place of the library
from bespokelabs import curator  # noqa: E402
from datasets import Dataset  # noqa: E402

ENDLESS = (
    10**9
)  # requests and tokens a minute: its own limits must not be what is measured


class Judge(curator.LLM):
    """One call a row."""

    def prompt(self, row):
        """What is asked."""
        return f"Is {row['n']} odd?"

    def parse(self, row, response):
        """What is kept."""
        return {"n": row["n"], "said": response}


def main(url: str, requests: int, slots: int) -> None:
    """Make the calls."""
    limits = {
        "max_requests_per_minute": ENDLESS,
        "max_tokens_per_minute": ENDLESS,
        "max_concurrent_requests": slots,
    }
    judge = Judge(
        model_name="gpt-4o-mini",
        backend="openai",
        backend_params={"base_url": url, "max_retries": 3} | limits,
    )
    with tempfile.TemporaryDirectory() as folder:
        answers = judge(
            Dataset.from_dict({"n": list(range(requests))}), working_dir=folder
        )
        over = time.monotonic()
    assert len(answers.dataset) == requests
    print(over)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
