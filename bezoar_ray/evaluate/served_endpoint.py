"""Where the checkpoints answer."""

import json
import urllib.request
from dataclasses import dataclass

from bezoar_ray import layout
from bezoar_ray.stages import BASE
from bezoar_ray.store import Store


@dataclass(frozen=True)
class Endpoint:
    """`base_url` ends in /v1; `context` is the longest prompt and answer in tokens; `tokenizer` a folder."""

    base_url: str
    tokenizer: str
    context: int

    @classmethod
    def at(cls, base_url: str, store: Store) -> "Endpoint":
        """The endpoint of a run directory's checkpoints."""
        with urllib.request.urlopen(f"{base_url}/models", timeout=60) as answer:
            context = json.load(answer)["data"][0]["max_model_len"]
        return cls(base_url, str(store.path(layout.checkpoint(BASE).folder)), context)
