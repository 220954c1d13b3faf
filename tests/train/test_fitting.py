"""One real pass before the first step settles how passes are made. What does not fit is made smaller, and said so."""

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bezoar_ray.errors import BezoarError
from bezoar_ray.recipe import Align, Recipe, Training
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from bezoar_ray.train import fitting, model_loading, packing, pass_size
from bezoar_ray.train.fitting import Passes, PassTrial
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.packing import Layout
from bezoar_ray.train.pass_size import PassSize, wanted_size
from bezoar_ray.train.tokenized_dataset import TokenizedDataset
from tests.train.conftest import in_process
from tests.train.test_launcher import changed

FLAT, PADDED = Layout("flat"), Layout("padded")
ROWS = TokenizedDataset(
    "rows",
    "",
    rows=40,
    tokens=4000,
    longest=200,
    longest_sequence=200,
    sequences=1,
    left_out={},
)
PAIRS = replace(ROWS, name="pairs", sequences=2)
KIB = 2**10


@pytest.mark.parametrize(
    ("part", "size"),
    [
        ({}, PassSize(rows=4)),
        ({"micro_batch": 7}, PassSize(rows=7)),
        ({"micro_tokens": 900}, PassSize(tokens=900)),
        ({"micro_tokens": "auto"}, None),
        ({"gpus_per_worker": 1}, None),
        ({"gpus_per_worker": 1, "micro_batch": 2}, PassSize(rows=2)),
        (
            {"gpus_per_worker": 1, "zero_stage": 3, "load_in_4bit": False},
            PassSize(rows=4),
        ),
    ],
)
def test_on_a_gpu_the_size_is_left_to_what_fits(
    part: dict[str, Any], size: PassSize | None
) -> None:
    assert wanted_size(Training(learning_rate=1e-4, **part)) == size


def test_a_size_in_rows_and_in_tokens_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match="micro_batch 4 and micro_tokens 900: give the size of a pass in rows or",
    ):
        Align(micro_batch=4, micro_tokens=900)


def test_bytes_are_counted_while_they_are_held() -> None:
    with fitting._limit_tensors(100 * KIB):
        for _ in range(3):
            torch.ones(80 * KIB // 4)
    with pytest.raises(torch.OutOfMemoryError), fitting._limit_tensors(100 * KIB):
        held = torch.ones(80 * KIB // 4)
        held + 1
    weights = torch.ones(2**20)
    with fitting._limit_tensors(100 * KIB):
        weights.mul_(2)  # what was there before does not count


@pytest.fixture(autouse=True)
def enough_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine that nobody else uses."""
    monkeypatch.setattr(fitting, "_free_memory", lambda: 2.0**34)


@pytest.fixture(scope="module")
def model(recipe: Recipe) -> Any:
    made = model_loading.with_new_adapter(
        model_loading.load(recipe.base), recipe.sft.lora, 0
    )
    with packing.fused_head(made), packing.packed(made, FLAT):
        yield made


def trial(
    model: Any, data: TokenizedDataset = ROWS, layout: Layout = FLAT
) -> PassTrial:
    return PassTrial(model, contextlib.nullcontext, data, layout, torch.device("cpu"))


def taken(model: Any, sequences: int, length: int) -> int:
    """The bytes that a pass takes, to a KiB."""
    least, most = 0, 2**30
    while most - least > KIB:
        middle = (least + most) // 2
        try:
            with fitting._limit_tensors(middle):
                trial(model).run(sequences, length)
            most = middle
        except torch.OutOfMemoryError:
            least = middle
    return most


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, model: Any) -> Any:
    """Let the machine have just what a pass of so many sequences of so many tokens takes beside the optimiser."""
    later = fitting._OPTIMIZER_BYTES * sum(
        weight.numel() for weight in model.parameters() if weight.requires_grad
    )

    def limit(sequences: int, length: int, recompute: bool = False) -> None:
        fitting._set_recomputing(model, recompute)
        taken_by_it = taken(model, sequences, length)
        fitting._set_recomputing(model, False)
        monkeypatch.setattr(fitting, "_free_memory", lambda: later + 1.02 * taken_by_it)

    return limit


def fitted(
    model: Any, recipe: Recipe, data: TokenizedDataset = ROWS, **part: Any
) -> tuple[PassSize, Passes]:
    """The size of the passes of a data set, and what was decided with it."""
    job, passes = (
        Job(
            "",
            changed(recipe, **{"micro_batch": None, "batch": 40} | part),
            "sft",
            "x",
            (data,),
        ),
        Passes(),
    )
    return fitting.fit_pass(trial(model, data), job, data, FLAT, passes), passes


def test_left_to_choose_passes_are_as_large_as_a_step_but_no_larger_than_is_of_use(
    model: Any, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, passes = fitted(model, recipe, micro_tokens="auto", batch=16)
    assert size == PassSize(tokens=16 * 200) and not passes.gradient_checkpointing
    monkeypatch.setattr(pass_size, "AUTO_TOKENS", 1000)
    assert fitted(model, recipe, micro_tokens="auto")[0] == PassSize(tokens=1000)
    assert fitted(model, recipe, PAIRS, micro_tokens="auto")[0] == PassSize(tokens=1000)


@pytest.mark.parametrize(
    ("gib", "expected", "recomputed"),
    [
        (
            20.0,
            16_384,
            False,
        ),  # a MiB for each token that is kept, a quarter where activations are recomputed
        (10.0, 8_192, False),
        (4.1, 4_096, False),
        (3.9, 8_192, True),  # a pass of 2,048 tokens would leave a GPU idle
        (0.3, 1_024, True),
    ],
)
def test_a_smaller_pass_comes_before_recomputing_while_it_keeps_a_gpu_busy(
    model: Any,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    gib: float,
    expected: int,
    recomputed: bool,
) -> None:
    def fits(self: PassTrial, size: PassSize, *_: Any) -> bool:
        kept = not self.model.get_base_model().model.gradient_checkpointing
        return size.tokens * (1.0 if kept else 0.25) <= 1024 * gib

    monkeypatch.setattr(PassTrial, "fits", fits)
    size, passes = fitted(model, recipe, micro_tokens="auto", batch=400)
    assert (size, passes.gradient_checkpointing) == (
        PassSize(tokens=expected),
        recomputed,
    )
    never, passes = fitted(
        model, recipe, micro_tokens="auto", batch=400, gradient_checkpointing=False
    )
    assert never.tokens <= 1024 * gib and not passes.gradient_checkpointing
    always, passes = fitted(
        model, recipe, micro_tokens="auto", batch=400, gradient_checkpointing=True
    )
    assert always.tokens >= size.tokens and passes.gradient_checkpointing
    fitting._set_recomputing(model, False)


@pytest.mark.parametrize(
    ("part", "size"),
    [
        ({"micro_batch": 16}, PassSize(rows=4)),
        ({"micro_tokens": 3200}, PassSize(tokens=800)),
    ],
)
def test_a_size_that_does_not_fit_is_made_smaller_and_that_is_said(
    model: Any, recipe: Recipe, memory: Any, part: dict[str, Any], size: PassSize
) -> None:
    memory(5, 200, recompute=True)
    found, passes = fitted(model, recipe, **part)
    assert found == size and passes.gradient_checkpointing
    (said,) = passes.because
    assert "of rows does not fit into memory: passes have" in said and str(size) in said
    fitting._set_recomputing(model, False)


def test_a_row_that_does_not_fit_by_itself_is_refused_with_what_would(
    model: Any, recipe: Recipe, memory: Any
) -> None:
    memory(1, 100, recompute=True)
    with pytest.raises(
        BezoarError,
        match=r"sft: the longest row of rows has 200 tokens.* max_length 64 fits$",
    ):
        fitted(model, recipe)
    with pytest.raises(BezoarError, match="gradient_checkpointing: auto needs less"):
        fitted(model, recipe, gradient_checkpointing=False)
    fitting._set_recomputing(model, False)


@pytest.mark.parametrize(
    ("layout", "tokens"), [(FLAT, 3 * 2 * 200), (PADDED, 3 * 2 * 350)]
)
def test_padded_pairs_are_tried_as_long_as_their_longer_side(
    model: Any, monkeypatch: pytest.MonkeyPatch, layout: Layout, tokens: int
) -> None:
    tried: list[int] = []
    monkeypatch.setattr(
        PassTrial,
        "run",
        lambda self, sequences, length: tried.append(sequences * length),
    )
    uneven = replace(PAIRS, longest_sequence=350)
    assert trial(model, uneven, layout).fits(PassSize(rows=3), share=16)
    assert tried == [tokens]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError(
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
        ),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
)
def test_memory_may_run_out_in_many_words(
    model: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(PassTrial, "run", fails)
    assert not trial(model).fits(PassSize(rows=1), share=1)
    other = RuntimeError("no kernel image is available")
    monkeypatch.setattr(PassTrial, "run", lambda *_: (_ for _ in ()).throw(other))
    with pytest.raises(RuntimeError, match="no kernel image"):
        trial(model).fits(PassSize(rows=1), share=1)


def test_recomputing_leaves_no_hook_behind(model: Any) -> None:
    embeddings = model.get_input_embeddings()
    before = len(embeddings._forward_hooks)
    fitting.without_input_gradients(model)
    for _ in range(5):
        assert fitting._set_recomputing(model, True) and fitting._set_recomputing(
            model, False
        )
    assert len(embeddings._forward_hooks) == before


def test_what_cannot_recompute_is_tried_without(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        type(model.get_base_model()), "supports_gradient_checkpointing", False
    )
    assert not fitting._set_recomputing(model, True) and fitting._set_recomputing(
        model, False
    )


def test_a_trial_changes_no_draw_and_leaves_no_gradient(model: Any) -> None:
    state = torch.get_rng_state()
    trial(model).run(2, 50)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("stage", ["sft", "align"])
def test_a_stage_whose_passes_do_not_fit_trains_in_smaller_ones(
    trained: tuple[Store, dict[str, Any]],
    tmp_path: Path,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    shutil.copytree(
        trained[0].root, tmp_path / "run", ignore=shutil.ignore_patterns("train")
    )
    context = StageContext(recipe, Store(tmp_path / "run"), "test", Progress())
    monkeypatch.setattr(PassTrial, "fits", lambda self, size, *_: size.rows == 1)
    found = in_process(context, stage)[recipe.checkpoint(stage)]
    assert (
        found["passes"]["size"] == "1 rows"
        and found["passes"]["gradient_checkpointing"]
    )
    assert all(
        "a pass of 4 rows of" in said and "does not fit" in said
        for said in found["passes"]["because"]
    )
    whole = trained[1][recipe.checkpoint(stage)]
    assert found["loss_first"] == pytest.approx(whole["loss_first"], abs=1e-4)
    assert found["loss_last"] == pytest.approx(whole["loss_last"], abs=1e-2)


@pytest.mark.slow
def test_layers_are_compiled_once_for_all(model: Any) -> None:
    layers, passes = fitting._decoder_layers(model), Passes()
    assert [type(layer).__name__ for layer in layers] == ["LlamaDecoderLayer"] * 2
    part = Training(learning_rate=1e-4, compile=True)
    fitting._compile(trial(model), part, passes, steps=1)
    assert passes.compiled and all(layer._compiled_call_impl for layer in layers)
    with fitting._limit_tensors(2**30):
        trial(model).run(3, 77)
    for layer in layers:
        layer._compiled_call_impl = None


def test_an_architecture_that_does_not_compile_runs_as_it_is(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers, passes = fitting._decoder_layers(model), Passes()

    def fails(self: Any, *args: Any) -> None:
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(PassTrial, "run", fails)
    fitting._compile(
        trial(model), Training(learning_rate=1e-4, compile=True), passes, steps=1
    )
    assert not passes.compiled and not any(
        layer._compiled_call_impl for layer in layers
    )
    assert passes.because == ["layers are not compiled: RuntimeError: no such operator"]


@pytest.mark.parametrize(
    ("steps", "gpus", "compiled"), [(201, 1, True), (200, 1, False), (5000, 0, False)]
)
def test_short_stages_and_cpus_do_not_compile(
    model: Any, monkeypatch: pytest.MonkeyPatch, steps: int, gpus: float, compiled: bool
) -> None:
    monkeypatch.setattr(PassTrial, "run", lambda *_: None)
    passes = Passes()
    fitting._compile(
        trial(model), Training(learning_rate=1e-4, gpus_per_worker=gpus), passes, steps
    )
    assert passes.compiled is compiled
    for layer in fitting._decoder_layers(model):
        layer._compiled_call_impl = None
