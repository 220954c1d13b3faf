"""Base classes and field types of the recipe's sections.

A field either enters the fingerprint of the stages that read it, or is marked
`RUNTIME_ONLY`: it decides how a run is carried out, not its result.
"""

import glob
import hashlib
import math
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypedDict, TypeGuard

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from bezoar_ray.errors import RecipeError

RUNTIME_ONLY = "runtime only"
"""Marks a field that does not enter a fingerprint."""
FILES = "files"
"""Marks a field that can name files or a folder. Where it does, their content enters
the fingerprint in place of their names."""

_SPEED_ARGUMENTS = {
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
"""vLLM engine arguments that change the speed of an engine, but not its answers."""
_REFUSED_ARGUMENTS = {
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
"""vLLM engine arguments that say which weights are loaded and which code runs."""
_TEXT_ARGUMENTS = {
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
"""vLLM engine arguments whose text is a name that vLLM itself defines."""
_TEXT_CHOICES = {
    "distributed_executor_backend": ("ray", "mp", "uni"),
    "data_parallel_backend": ("ray", "mp"),
    "generation_config": ("vllm", "auto"),
}
"""The safe values of engine arguments that otherwise take a path or a class name."""
_PARALLEL_SIZES = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
)

# Ray's label selectors have operators (`!`, `in(...)`), which this pattern excludes.
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
Positive = Annotated[int, Field(gt=0)]
PositiveRate = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Money = NotNegative
Share = Annotated[float, Field(ge=0, le=1)]
OneOrMore = BeforeValidator(lambda value: [value] if isinstance(value, dict) else value)
"""A list of sections; a single section may be written without brackets."""


def _check_engine(engine: dict[str, Any]) -> dict[str, Any]:
    """Normalize vLLM engine arguments, and refuse those that could run unknown code.

    Returns:
        The arguments with underscores in their names. Null values are left out, so that
        vLLM's defaults apply.

    Raises:
        ValueError: an argument is refused, or has an impossible value.
    """
    for given_name, value in engine.items():
        _check_engine_argument(given_name, value)
    arguments = {}
    for given_name, value in engine.items():
        if value is not None:
            arguments[given_name.replace("-", "_")] = value
    for name in _PARALLEL_SIZES:
        size = arguments.get(name, 1)
        if not _is_number(size, int) or size < 1:
            raise ValueError(f"{name} {size!r}: expected a whole number of at least 1")
    memory = arguments.get("gpu_memory_utilization", 1)
    if not _is_number(memory, int | float) or not 0 < memory <= 1:
        raise ValueError(
            f"gpu_memory_utilization {memory!r}: expected a share of the GPU, "
            "above 0 and at most 1"
        )
    longest = arguments.get("max_model_len", 1)
    if not (_is_number(longest, int) or isinstance(longest, str)):
        raise ValueError(
            f"max_model_len {longest!r}: expected tokens, such as 4096, 4k or auto"
        )
    return arguments


def _check_engine_argument(given_name: str, value: object) -> None:
    name = given_name.replace("-", "_")
    if name in _REFUSED_ARGUMENTS:
        raise ValueError(
            f"{given_name!r} would load weights or run code that `bezoar plan` does "
            "not list. Use the fields model, revision, trust_remote_code and "
            "pickled_weights instead"
        )
    if value in _TEXT_CHOICES.get(name, ()):
        return
    # A dotted name sets a nested value, which could be any of the refused ones.
    if "." in name or _has_unknown_text(name, value):
        choices = "; ".join(
            f"{argument} is one of {', '.join(values)}"
            for argument, values in _TEXT_CHOICES.items()
        )
        raise ValueError(
            f"{given_name!r} holds text, which may name code for vLLM to run. Use "
            "numbers and switches. Text is allowed in "
            f"{', '.join(sorted(_TEXT_ARGUMENTS))} only. {choices}"
        )


def _is_number(value: object, kind: type | UnionType) -> bool:
    # In Python, True is an int.
    return isinstance(value, kind) and not isinstance(value, bool)


def _has_unknown_text(name: str, value: object) -> bool:
    """Whether an argument holds text, at any depth, under a name not known as safe."""
    if isinstance(value, dict):
        return any(_has_unknown_text(str(key), item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return any(_has_unknown_text(name, item) for item in value)
    return isinstance(value, str) and name not in _TEXT_ARGUMENTS


Engine = Annotated[dict[str, Any], RUNTIME_ONLY, AfterValidator(_check_engine)]
"""vLLM engine arguments, except those that say which weights and code are loaded."""


def check_gpus(field: str, number: float) -> None:
    """Check that Ray can give one actor this many GPUs.

    Raises:
        ValueError: the number is neither a share of one GPU nor a whole number.
    """
    is_whole = float(number).is_integer()
    if number < 0 or (number > 1 and not is_whole):
        raise ValueError(
            f"{field}: {number:g} GPUs. Ray gives an actor a share of one GPU, or "
            "whole GPUs: 0.5, 1, 2"
        )


def parallel_gpus(engine: dict[str, Any]) -> int:
    """Number of GPUs over which the arguments spread one engine."""
    return math.prod(engine.get(name, 1) for name in _PARALLEL_SIZES)


def gpus_of(engine: dict[str, Any], num_gpus: float) -> float:
    """Number of GPUs that an engine takes from the cluster.

    By default an engine uses the GPUs of its actor. With Ray's executor, its workers
    reserve GPUs of their own.
    """
    if engine.get("distributed_executor_backend") == "ray":
        return max(num_gpus, parallel_gpus(engine))
    return num_gpus


def check_parallel(engine: dict[str, Any], num_gpus: float) -> None:
    """Check that an engine's actor has the GPUs and memory that the engine will use.

    Raises:
        ValueError: the engine could not start, or would use a neighbor's memory.
    """
    check_gpus("num_gpus", num_gpus)
    spread = parallel_gpus(engine)
    through_ray = engine.get("distributed_executor_backend") == "ray"
    if spread > 1 and 0 < num_gpus < spread and not through_ray:
        raise ValueError(
            f"engine: it spreads over {spread} GPUs, and num_gpus is {num_gpus:g}. "
            "Make them equal"
        )
    memory = engine.get("gpu_memory_utilization", 0.0)
    if 0 < num_gpus < 1 and memory > num_gpus:
        raise ValueError(
            f"engine.gpu_memory_utilization {memory:g} with num_gpus {num_gpus:g}: the "
            "engine takes more of the GPU's memory than its share of the GPU. Leave it "
            f"out, or set at most {num_gpus:g}"
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
        """Values of all fields that can name files: paths, globs or other names."""
        for name, field in type(self).model_fields.items():
            names_files = FILES in field.metadata
            yield from _file_names(getattr(self, name), names_files)

    def fingerprint_fields(self) -> dict[str, object]:
        """The fields that decide the result, as plain values.

        Where a field names files, a digest of their content stands in place of the
        name.
        """
        values = {}
        for name, field in type(self).model_fields.items():
            if RUNTIME_ONLY not in field.metadata:
                names_files = FILES in field.metadata
                values[name] = _fingerprint_value(getattr(self, name), names_files)
        return values


def _file_names(value: object, names_files: bool) -> Iterator[str]:
    if isinstance(value, Section):
        yield from value.files()
    elif isinstance(value, dict):
        for item in value.values():
            yield from _file_names(item, names_files)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _file_names(item, names_files)
    elif names_files and _can_be_file_name(value):
        yield value


def _can_be_file_name(value: object) -> TypeGuard[str]:
    """Whether a value is one line of text. A template may be given as several lines."""
    return isinstance(value, str) and "\n" not in value


class Placement(TypedDict, total=False):
    """Ray's options for the kind of node that an actor runs on."""

    accelerator_type: str
    label_selector: dict[str, str]


class SchedulingSection(Section):
    """A section whose Ray actors can require a kind of node."""

    accelerator_type: Annotated[str | None, RUNTIME_ONLY] = None
    """Kind of GPU that the actors or workers need, by Ray's name, such as `H100`,
    `A100` or `L4`. Any kind where empty. Set it on clusters with several kinds of
    GPU."""
    node_labels: Annotated[dict[str, Label], RUNTIME_ONLY] = {}
    """Labels that a node must have to run the actors or workers. The files in
    `cluster/` set such labels."""

    @property
    def placement(self) -> Placement:
        """The options for `ray.remote` that request this kind of node."""
        options: Placement = {}
        if self.accelerator_type:
            options["accelerator_type"] = self.accelerator_type
        if self.node_labels:
            options["label_selector"] = self.node_labels
        return options


def decisive(engine: dict[str, Any]) -> dict[str, Any]:
    """The vLLM engine arguments that change the answers, not only the speed."""
    return {
        name: value for name, value in engine.items() if name not in _SPEED_ARGUMENTS
    }


def packaged_text(name: str, path: str | None, field: str) -> str:
    """Read the recipe's own file for a field, or the packaged one.

    Args:
        name: the packaged file, below `bezoar_ray/recipes/`.
        path: the recipe's own file, if it names one.
        field: the recipe's field, for errors.

    Raises:
        RecipeError: the file cannot be read.
    """
    if not path:
        packaged = resources.files("bezoar_ray").joinpath("recipes", name)
        return packaged.read_text()
    return read_text(path, field)


def read_text(path: str, field: str) -> str:
    """Read a text file that a field of the recipe names.

    Raises:
        RecipeError: the file cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_text()
    except OSError as error:
        raise RecipeError(f"{field}: cannot read {path!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{field}: {path!r} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from error


def matches(pattern: str) -> list[Path]:
    """The files and folders that a path or glob names, sorted.

    An existing path is taken as it is, even if its name has the characters of a glob.
    """
    path = Path(pattern).expanduser()
    if path.exists():
        return [path]
    return [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]


def _fingerprint_value(value: object, names_files: bool) -> object:
    if isinstance(value, Section):
        return value.fingerprint_fields()
    if isinstance(value, dict):
        return {
            key: _fingerprint_value(item, names_files) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_fingerprint_value(item, names_files) for item in value]
    if names_files and _can_be_file_name(value):
        # A model's name on the hub names no file here, and counts as it is written.
        return _content_digest(value) or value
    return value


def _content_digest(pattern: str) -> str | None:
    """A digest of the files that a path or glob names; None where it names none.

    The files of a folder (a model's weights) count by name, size and time, since
    reading them would take long.
    """
    paths = matches(pattern)
    if not paths:
        return None
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        elif path.is_dir():
            inner_files = [inner for inner in path.rglob("*") if inner.is_file()]
            for inner in sorted(inner_files):
                stat = inner.stat()
                name = inner.relative_to(path)
                entry = f"{name}:{stat.st_size}:{stat.st_mtime_ns}"
                digest.update(entry.encode())
    return digest.hexdigest()
