"""The judge's calls through datatrove: `python datatrove.py URL REQUESTS SLOTS`, in an environment that has it.

Prints when they were done, by the monotonic clock; its checkpoints and its cache of requests are on.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.remove(
    str(Path(__file__).parent)
)  # or this file would be imported in place of the library
from datatrove.data import Document  # noqa: E402
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner  # noqa: E402
from datatrove.pipeline.writers import JsonlWriter  # noqa: E402


async def ask(document, generate):
    """One call a document."""
    answer = await generate(
        {"messages": [{"role": "user", "content": document.text}], "max_tokens": 64}
    )
    return {"said": answer.text}


def main(url: str, requests: int, slots: int) -> None:
    """Make the calls."""
    config = InferenceConfig(
        server_type="endpoint",
        model_name_or_path="m",
        endpoint_url=url.removesuffix("/v1"),
        max_concurrent_generations=slots,
    )
    with tempfile.TemporaryDirectory() as folder:
        writer = JsonlWriter(
            f"{folder}/out",
            output_filename="${rank}_${chunk_index}.jsonl",
            compression=None,
        )
        runner = InferenceRunner(
            ask,
            config,
            writer,
            checkpoints_local_dir=f"{folder}/checkpoints",
            records_per_chunk=500,
        )
        runner.run(Document(text=f"Is {n} odd?", id=str(n)) for n in range(requests))
        over = time.monotonic()
        assert (
            sum(
                len(file.read_text().splitlines())
                for file in Path(folder, "out").glob("*.jsonl")
            )
            == requests
        )
    print(over)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
