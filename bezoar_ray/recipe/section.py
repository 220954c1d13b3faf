"""A section of the recipe: what decides the result (*what*), and what only decides how it comes about (*how*)."""

import glob
import hashlib
import math
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypedDict

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from bezoar_ray.errors import RecipeError

RUNTIME_ONLY = "how"
FILES = "files"  # the field names files or a folder: their content counts in its place, where there are any
_PLACEMENT = {
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "gpu_memory_utilization",
    "max_num_seqs",
    "max_num_batched_tokens",
    "enforce_eager",
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "async_scheduling",
    "distributed_executor_backend",
    "swap_space",
    "cpu_offload_gb",
    "max_parallel_loading_workers",
    "download_dir",
}
_ELSEWHERE = {  # of vLLM: what is loaded and which code runs
    "model",
    "revision",
    "tokenizer",
    "tokenizer_revision",
    "code_revision",
    "hf_config_path",
    "config",
    "trust_remote_code",
    "load_format",
    "model_loader_extra_config",
    "worker_cls",
    "worker_extension_cls",
    "scheduler_cls",
    "logits_processors",
    "io_processor_plugin",
    "middleware",
    "tool_parser_plugin",
    "reasoning_parser_plugin",
    "lora_modules",
    "api_key",
}
_WORDS = {  # of vLLM, where a text is the name of something that vLLM itself holds
    "attention_backend",
    "cudagraph_mode",
    "custom_ops",
    "download_dir",
    "dtype",
    "kv_cache_dtype",
    "mamba_cache_dtype",
    "mamba_ssm_cache_dtype",
    "max_model_len",
    "method",
    "quantization",
    "reasoning_parser",
    "rope_type",
    "scheduling_policy",
    "tokenizer_mode",
    "tool_call_parser",
}
_CHOICES = {  # where another text would be a path, or the name of a class
    "distributed_executor_backend": ("ray", "mp", "uni"),
    "data_parallel_backend": ("ray", "mp"),
    "generation_config": ("vllm", "auto"),
}
Label = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
]  # no operator of Ray's selectors
Positive = Annotated[int, Field(gt=0)]
PositiveRate = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Money = NotNegative
Share = Annotated[float, Field(ge=0, le=1)]
OneOrMore = BeforeValidator(lambda value: [value] if isinstance(value, dict) else value)
"""A list that may be written without its brackets where it holds one section."""


def _harmless(engine: dict[str, Any]) -> dict[str, Any]:
    """The arguments with underscores in their names, and without those that are null: vLLM's own defaults."""
    for given, value in engine.items():
        name = given.replace("-", "_")
        if name in _ELSEWHERE:
            raise ValueError(
                f"{given!r} would load or run what `bezoar plan` does not name. Weights and their code have fields of "
                "their own: model, revision, trust_remote_code, pickled_weights"
            )
        if value in _CHOICES.get(name, ()):
            continue
        if "." in name or _holds_text(name, value):
            raise ValueError(
                f"{given!r} holds a text, which may name code for vLLM to run. Numbers and switches may stand there; "
                f"texts in {', '.join(sorted(_WORDS))} alone. "
                + "; ".join(
                    f"{key} is one of {', '.join(choices)}"
                    for key, choices in _CHOICES.items()
                )
            )
    known = {
        given.replace("-", "_"): value
        for given, value in engine.items()
        if value is not None
    }
    for name in (
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
    ):
        if not _is_number(known.get(name, 1), int) or known.get(name, 1) < 1:
            raise ValueError(
                f"{name} {known[name]!r}: expected a whole number from 1 on"
            )
    memory, longest = (
        known.get("gpu_memory_utilization", 1),
        known.get("max_model_len", 1),
    )
    if not _is_number(memory, int | float) or not 0 < memory <= 1:
        raise ValueError(
            f"gpu_memory_utilization {memory!r}: expected a share of the GPU, above 0 and at most 1"
        )
    if not (_is_number(longest, int) or isinstance(longest, str)):
        raise ValueError(
            f"max_model_len {longest!r}: expected tokens, as 4096, 4k or auto"
        )
    return known


def _is_number(value: object, kind: type | UnionType) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _holds_text(name: str, value: object) -> bool:
    if isinstance(value, dict):
        return any(_holds_text(str(inner), of) for inner, of in value.items())
    if isinstance(value, list | tuple):
        return any(_holds_text(name, of) for of in value)
    return isinstance(value, str) and name not in _WORDS


Engine = Annotated[dict[str, Any], RUNTIME_ONLY, AfterValidator(_harmless)]
"""vLLM engine arguments, but for those that say what is loaded and which code runs."""


def check_gpus(field: str, number: float) -> None:
    """Whether Ray can give an actor so many GPUs: a share of one, or whole ones.

    Raises:
        ValueError: it cannot.
    """
    if number < 0 or (number > 1 and number != int(number)):
        raise ValueError(
            f"{field}: {number:g} GPUs. Ray gives an actor a share of one GPU, or whole GPUs: 0.5, 1, 2"
        )


def spread_of(engine: dict[str, Any]) -> int:
    """Over how many GPUs an engine spreads."""
    return math.prod(
        engine.get(f"{kind}_parallel_size", 1)
        for kind in ("tensor", "pipeline", "data")
    )


def gpus_of(engine: dict[str, Any], num_gpus: float) -> float:
    """GPUs that an engine takes: its actor's, or, spread through Ray, further ones beside them."""
    through_ray = engine.get("distributed_executor_backend") == "ray"
    return max(num_gpus, spread_of(engine)) if through_ray else num_gpus


def check_parallel(engine: dict[str, Any], num_gpus: float) -> None:
    """Whether an engine is given the GPUs that it takes; through Ray it takes them beside its actor's.

    Raises:
        ValueError: it is not, and would not start, or would take a neighbour's memory.
    """
    check_gpus("num_gpus", num_gpus)
    spread = spread_of(engine)
    if (
        spread > 1
        and 0 < num_gpus < spread
        and engine.get("distributed_executor_backend") != "ray"
    ):
        raise ValueError(
            f"engine: it spreads over {spread} GPUs, and num_gpus is {num_gpus:g}. Make them equal"
        )
    memory = engine.get("gpu_memory_utilization", 0.0)
    if 0 < num_gpus < 1 and memory > num_gpus:
        raise ValueError(
            f"engine.gpu_memory_utilization {memory:g} with num_gpus {num_gpus:g}: it takes more of the GPU's memory "
            f"than its share. Leave it out, or set at most {num_gpus:g}"
        )


class Section(BaseModel):
    """A section of the recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        validate_default=True,
    )

    def files(self) -> Iterator[str]:
        """What may name files or folders of this machine, as the recipe has it: paths, globs, or other names."""
        for name, field in type(self).model_fields.items():
            yield from _files_in(getattr(self, name), FILES in field.metadata)

    def fingerprint_fields(self) -> dict[str, object]:
        """The fields that decide what comes out, with the content of named files in place of their paths."""
        fields = {
            name: field.metadata
            for name, field in type(self).model_fields.items()
            if RUNTIME_ONLY not in field.metadata
        }
        return {
            name: _fingerprint_value(getattr(self, name), FILES in marks)
            for name, marks in fields.items()
        }


def _files_in(value: object, files: bool) -> Iterator[str]:
    if isinstance(value, Section):
        yield from value.files()
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _files_in(item, files)
    elif files and isinstance(value, str) and "\n" not in value:
        yield value


class Placement(TypedDict, total=False):
    """Ray's options for the kind of node that an actor runs on."""

    accelerator_type: str
    label_selector: dict[str, str]


class SchedulingSection(Section):
    """A section whose work runs in Ray actors that ask for a kind of node."""

    accelerator_type: Annotated[str | None, RUNTIME_ONLY] = None
    """Kind of GPU, by Ray's name (H100, A100, L4); any where empty."""
    node_labels: Annotated[dict[str, Label], RUNTIME_ONLY] = {}
    """Labels that the nodes which may be used have, as the files in `cluster/` give them."""

    @property
    def placement(self) -> Placement:
        """Ray's options for it."""
        found: Placement = {}
        if self.accelerator_type:
            found["accelerator_type"] = self.accelerator_type
        if self.node_labels:
            found["label_selector"] = self.node_labels
        return found


def decisive(engine: dict[str, Any]) -> dict[str, Any]:
    """The vLLM engine arguments that change what is said, not only how fast."""
    return {key: value for key, value in engine.items() if key not in _PLACEMENT}


def packaged_text(name: str, own: str | None, field: str) -> str:
    """The text of the recipe's own file for a field, or the one that comes with the package, in `recipes/`.

    Raises:
        RecipeError: the file cannot be read.
    """
    try:
        return (
            Path(own).read_text()
            if own
            else resources.files("bezoar_ray").joinpath("recipes", name).read_text()
        )
    except OSError as error:
        raise RecipeError(f"{field}: cannot read {own!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{field}: {own!r} is no UTF-8 text: {error.reason} at byte {error.start}"
        ) from error


def matches(pattern: str) -> list[Path]:
    """The files and folders that a path or glob names, sorted. A file's own name is no pattern, whatever it holds."""
    if Path(pattern).expanduser().exists():
        return [Path(pattern).expanduser()]
    return [
        Path(name)
        for name in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
    ]


def _fingerprint_value(value: object, files: bool) -> object:
    if isinstance(value, Section):
        return value.fingerprint_fields()
    if isinstance(value, dict):
        return {key: _fingerprint_value(item, files) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_fingerprint_value(item, files) for item in value]
    return (
        (_content(value) or value)
        if files and isinstance(value, str) and "\n" not in value
        else value
    )


def _content(pattern: str) -> str | None:
    """A digest of the files that a path or glob names, or None where it names none.

    A folder (a model's weights) counts by the names, sizes and times of its files, which takes no reading.
    """
    total, found = hashlib.sha256(), matches(pattern)
    for path in found:
        if path.is_file():
            with open(path, "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        for inner in (
            sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else ()
        ):
            total.update(
                f"{inner.relative_to(path)}:{inner.stat().st_size}:{inner.stat().st_mtime_ns}".encode()
            )
    return total.hexdigest() if found else None
