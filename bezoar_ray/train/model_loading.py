"""Loading models: quantized for training, unquantized for merging and scoring.

A model gets a new adapter or a saved one.
"""

from typing import TYPE_CHECKING, Any

from bezoar_ray import layout
from bezoar_ray.data.schema import ATTRIBUTES
from bezoar_ray.errors import RecipeError
from bezoar_ray.llm.model_identity import model_path
from bezoar_ray.recipe import Base, Lora
from bezoar_ray.stages import checkpoint_of
from bezoar_ray.train import reward_model
from bezoar_ray.train.launcher import Job

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedModel

_MESSAGE_CHARACTERS = 300  # of a library's error that a message repeats


def device(job: Job) -> "torch.device":
    """Return this worker's GPU if the recipe gives it one, otherwise the CPU.

    Ray hides no GPU from workers that request none, so torch cannot be asked.
    """
    import torch

    if not job.section.gpus_per_worker:
        return torch.device("cpu")
    from ray.train.torch import get_device

    return get_device()


def device_name(job: Job) -> str:
    """Return the name of this worker's GPU, empty on a CPU."""
    import torch

    worker_device = device(job)
    if worker_device.type != "cuda":
        return ""
    return torch.cuda.get_device_name(worker_device)


def load(
    base: Base, folder: str | None = None, **settings: object
) -> "PreTrainedModel":
    """Load the base model, or the model in `folder`.

    Args:
        base: the recipe's section; it sets the dtype unless `settings` do.
        folder: of another model than the base.
        settings: arguments of `from_pretrained`.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder or model_path(base.model), **_load_arguments(base, folder, settings)
    )
    _keep_backward(model)
    return model


def load_reward_model(
    base: Base, folder: str, seed: int, **settings: object
) -> "PreTrainedModel":
    """Load the model in `folder` as a reward model with a new head.

    Args:
        base: the recipe's section, as for `load`.
        folder: of a model that writes text, such as merged sft.
        seed: the head's first weights are drawn from it.
        settings: arguments of `from_pretrained`.

    Raises:
        RecipeError: transformers has no reward model of this architecture.
    """
    from transformers import AutoModelForSequenceClassification

    labels = dict(enumerate(ATTRIBUTES))
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            id2label=labels,
            label2id={name: index for index, name in labels.items()},
            # Without it, vLLM would apply a softmax to the outputs.
            problem_type="regression",
            **_load_arguments(base, folder, settings),
        )
    except ValueError as error:
        raise RecipeError(
            f"rm: transformers cannot load {base.model} for sequence classification: "
            f"{str(error)[:_MESSAGE_CHARACTERS]}. Choose another base, or remove `rm`"
        ) from error
    reward_model.prepare(model, seed)
    _keep_backward(model)
    return model


def _load_arguments(
    base: Base, folder: str | None, settings: dict[str, object]
) -> dict[str, Any]:
    """Return the arguments of `from_pretrained`; `settings` take precedence."""
    arguments: dict[str, object] = {
        "dtype": base.dtype,
        "trust_remote_code": base.trust_remote_code,
        # True refuses pickled weights; None also accepts them.
        "use_safetensors": None if base.pickled_weights else True,
    }
    if folder is None:
        arguments["revision"] = base.revision
    return arguments | settings


def frozen_model_folder(job: Job) -> str | None:
    """Return the folder of the model under the stage's adapter; None for the base.

    sft trains on the base, the stages after it on merged sft.
    """
    below = checkpoint_of(job.checkpoint).below
    if not below:
        return None
    return str(job.store.path(layout.checkpoint(below[-1]).merged))


def for_training(job: Job) -> "PreTrainedModel":
    """Load the stage's frozen model, in NF4 if the recipe says so.

    It computes in the type that suits this machine.
    """
    worker_device = device(job)
    settings: dict[str, Any] = {
        "dtype": job.dtype,
        # Straight onto the worker's device, without a copy in the machine's memory.
        "device_map": {"": worker_device},
    }
    if job.section.load_in_4bit:
        settings["quantization_config"] = nf4(job.dtype)
    if job.section.zero_stage == 3:
        settings["device_map"] = None  # DeepSpeed places the shards
    if worker_device.type == "cpu":
        # torch's fused attention takes 3 times as long on a CPU: bfloat16, backward.
        settings["attn_implementation"] = "eager"
    folder = frozen_model_folder(job)
    if checkpoint_of(job.checkpoint).is_reward_model:
        assert folder  # it starts from merged sft
        return load_reward_model(job.recipe.base, folder, job.recipe.seed, **settings)
    return load(job.recipe.base, folder, **settings)


def _keep_backward(model: "PreTrainedModel") -> None:
    """Keep the 4-bit layers of a model on a CPU differentiable.

    In evaluation mode, as when the reference is computed ahead, bitsandbytes 0.50
    repacks their weights on CPUs with AVX512-BF16 for a kernel without a backward pass.
    Without this switch, all layers below would silently get no gradient.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def nf4(dtype: str) -> "BitsAndBytesConfig":
    """4-bit NormalFloat with double quantization (arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def with_new_adapter(
    model: "PreTrainedModel", lora: Lora, seed: int, autocast_adapter_dtype: bool = True
) -> "PeftModel":
    """Put a new LoRA on the model, drawn from `seed`.

    It is in float32 with `autocast_adapter_dtype`, otherwise in the model's type.

    Raises:
        RecipeError: a target is not a linear layer of the model; it lists the linear
            layers.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    _check_targets(model, lora.targets)
    # LoRA draws its A at random: the same on all workers, and in a rerun.
    set_seed(seed)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rank_stabilised,
        use_dora=lora.dora,
        target_modules=list(lora.targets),
        # As in the adapter configurations that the authors published.
        bias="none",
        # PEFT then trains and saves the head of a reward model, too.
        task_type="SEQ_CLS" if reward_model.is_reward_model(model) else "CAUSAL_LM",
    )
    return get_peft_model(model, config, autocast_adapter_dtype=autocast_adapter_dtype)


def _check_targets(model: "PreTrainedModel", targets: tuple[str, ...]) -> None:
    from torch.nn import Linear

    linear_names = set()
    for name, module in model.named_modules():
        # The 4-bit layers of bitsandbytes are subclasses of it.
        if isinstance(module, Linear):
            linear_names.add(name.rsplit(".", 1)[-1])
    known = sorted(linear_names - {"lm_head", "score"})
    unknown = [target for target in targets if target not in known]
    if unknown or not targets:
        raise RecipeError(
            f"lora.targets: {unknown or 'none'} in this model. Its linear layers are "
            f"{', '.join(known)}"
        )


def with_adapter(
    model: "PreTrainedModel",
    folder: str,
    trainable: bool = False,
    autocast_adapter_dtype: bool = True,
) -> "PeftModel":
    """Put a saved adapter on the model.

    It is in float32 with `autocast_adapter_dtype`, otherwise in the model's type.
    """
    from peft import PeftModel

    return PeftModel.from_pretrained(
        model,
        folder,
        is_trainable=trainable,
        autocast_adapter_dtype=autocast_adapter_dtype,
    )


def with_custom_adapter(
    model: "PreTrainedModel",
    folder: str,
    lora: Lora,
    autocast_adapter_dtype: bool = True,
) -> "PeftModel":
    """Put the adapter that the recipe starts from on the model, trainable.

    Raises:
        RecipeError: the folder holds no adapter of this model, the adapter does not
            match `sft.lora`, or it cannot be merged.
    """
    try:
        adapted_model = with_adapter(
            model, folder, trainable=True, autocast_adapter_dtype=autocast_adapter_dtype
        )
    except (ValueError, RuntimeError, OSError) as error:
        cause = " ".join(str(error).split())[:_MESSAGE_CHARACTERS]
        raise RecipeError(
            f"sft.adapter: {folder} is not a LoRA on the recipe's base: {cause}. Give "
            "a PEFT folder (adapter_config.json, adapter_model.safetensors) that was "
            "trained on this base"
        ) from error
    # The adapter's own list may hold a pattern, "all-linear" or whole paths.
    targets = _adapted_layers(adapted_model)
    _check_embeddings(adapted_model, folder, targets)
    _check_matches(adapted_model, folder, targets, lora)
    return adapted_model


def _adapted_layers(model: "PeftModel") -> tuple[str, ...]:
    """Return the names of the layers that have an adapter."""
    from peft.tuners.lora import LoraLayer

    names = set()
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            names.add(name.rsplit(".", 1)[-1])
    return tuple(sorted(names))


def _check_embeddings(
    model: "PeftModel", folder: str, targets: tuple[str, ...]
) -> None:
    embeddings = sorted({"lm_head", "embed_tokens", "wte"} & set(targets))
    if embeddings and model.get_base_model().config.tie_word_embeddings:
        raise RecipeError(
            f"sft.adapter: {folder} adapts {', '.join(embeddings)}, and this base has "
            "one matrix for its input and output embeddings. Merging would change both. "
            "Train an adapter without it"
        )


def _check_matches(
    model: "PeftModel", folder: str, targets: tuple[str, ...], lora: Lora
) -> None:
    config = model.peft_config["default"]
    actual = {
        "r": config.r,
        "alpha": config.lora_alpha,
        "rank_stabilised": config.use_rslora,
        "dora": config.use_dora,
        "targets": list(targets),
    }
    expected = lora.model_dump(include=set(actual))
    expected["targets"] = sorted(lora.targets)
    differences = [
        f"{field}: {value}"
        for field, value in actual.items()
        if value != expected[field]
    ]
    if differences:
        settings = ", ".join(differences)
        raise RecipeError(
            f"sft.adapter: {folder} does not match sft.lora. Set there {{{settings}}}"
        )
