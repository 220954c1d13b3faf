"""The address and limits of the endpoint that serves the checkpoints."""

import json
import urllib.request
from dataclasses import dataclass

from bezoar_ray import layout
from bezoar_ray.stages import BASE
from bezoar_ray.store import Store


@dataclass(frozen=True)
class Endpoint:
    """The endpoint of a run directory's checkpoints."""

    base_url: str
    """Ends in /v1."""
    tokenizer: str
    """Folder of the checkpoints' tokenizer and chat template."""
    context: int
    """Longest prompt and answer together, in tokens."""

    @classmethod
    def at(cls, base_url: str, store: Store) -> "Endpoint":
        """Ask a running endpoint for its context length."""
        with urllib.request.urlopen(f"{base_url}/models", timeout=60) as response:
            models = json.load(response)["data"]
        tokenizer = store.path(layout.checkpoint(BASE).folder)
        return cls(base_url, str(tokenizer), models[0]["max_model_len"])
