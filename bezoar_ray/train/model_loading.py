"""Loading models: quantised for training, as they are for merging and scoring, with new or saved adapters."""

from typing import TYPE_CHECKING, Any

from bezoar_ray import layout
from bezoar_ray.errors import RecipeError
from bezoar_ray.llm.model_identity import model_path
from bezoar_ray.recipe import Base, Lora
from bezoar_ray.train.launcher import Job

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedModel


def device(job: Job) -> "torch.device":
    """This worker's GPU where the recipe gives it one, or the CPU: Ray hides no GPU from those that asked for none."""
    import torch

    if not job.part.gpus_per_worker:
        return torch.device("cpu")
    from ray.train.torch import get_device

    return get_device()


def device_name(job: Job) -> str:
    """What this worker's GPU calls itself; empty on a CPU."""
    import torch

    where = device(job)
    return torch.cuda.get_device_name(where) if where.type == "cuda" else ""


def load(
    base: Base, folder: str | None = None, **settings: object
) -> "PreTrainedModel":
    """The base model, or the one in `folder`, in the base's dtype unless `settings`, for `from_pretrained`, say so."""
    from transformers import AutoModelForCausalLM

    hub = {"revision": base.revision} if folder is None else {}
    return AutoModelForCausalLM.from_pretrained(
        folder or model_path(base.model),
        trust_remote_code=base.trust_remote_code,
        use_safetensors=None if base.pickled_weights else True,
        **{"dtype": base.dtype, **hub, **settings},
    )


def for_training(job: Job) -> "PreTrainedModel":
    """The stage's frozen model: the base for sft, merged sft for what comes after; in NF4 where the recipe says so, and
    in the type that this machine computes in."""
    folder = (
        None
        if job.stage == "sft"
        else str(job.store.path(layout.checkpoint("sft").merged))
    )
    settings: dict[str, Any] = {"dtype": job.dtype, "device_map": {"": device(job)}}
    if job.part.load_in_4bit:
        settings["quantization_config"] = nf4(settings["dtype"])
    if job.part.zero_stage == 3:
        settings["device_map"] = None  # DeepSpeed places the shards
    if device(job).type == "cpu":
        settings["attn_implementation"] = (
            "eager"  # torch's fused attention takes 3 times as long here: bf16, backward
        )
    model = load(job.recipe.base, folder, **settings)
    _keep_backward(model)
    return model


def _keep_backward(model: "PreTrainedModel") -> None:
    """On a CPU, 4-bit layers that no gradient has flowed through yet would lose the way back.

    In evaluation mode, as when the reference is asked ahead, bitsandbytes 0.50 packs their weights anew on CPUs that
    know AVX512-BF16, for a kernel without a backward pass: all layers below would silently get no gradient.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def nf4(dtype: str) -> "BitsAndBytesConfig":
    """4-bit NormalFloat with double quantisation (arXiv 2305.14314), computing in `dtype`."""
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
    """The model under a new LoRA, drawn from `seed`; in float32 with `autocast_adapter_dtype`, else as the model.

    Raises:
        RecipeError: a target is no linear layer of the model; names those that are.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    _check_targets(model, lora.targets)
    set_seed(seed)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rank_stabilised,
        use_dora=lora.dora,
        target_modules=list(lora.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config, autocast_adapter_dtype=autocast_adapter_dtype)


def _check_targets(model: "PreTrainedModel", targets: tuple[str, ...]) -> None:
    from torch.nn import Linear

    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, Linear)
    }
    known = sorted(linear - {"lm_head"})
    unknown = [target for target in targets if target not in known]
    if unknown or not targets:
        raise RecipeError(
            f"lora.targets: {unknown or 'none'} in this model; its linear layers are {', '.join(known)}"
        )


def with_adapter(
    model: "PreTrainedModel",
    folder: str,
    trainable: bool = False,
    autocast_adapter_dtype: bool = True,
) -> "PeftModel":
    """The model under a saved adapter, in float32 with `autocast_adapter_dtype`, else as the model."""
    from peft import PeftModel

    settings = {
        "is_trainable": trainable,
        "autocast_adapter_dtype": autocast_adapter_dtype,
    }
    return PeftModel.from_pretrained(model, folder, **settings)


def _adapted(model: "PeftModel") -> tuple[str, ...]:
    """The names of the layers that an adapter is on."""
    from peft.tuners.lora import LoraLayer

    layers = (
        name for name, module in model.named_modules() if isinstance(module, LoraLayer)
    )
    return tuple(sorted({name.rsplit(".", 1)[-1] for name in layers}))


def with_own_adapter(
    model: "PreTrainedModel",
    folder: str,
    lora: Lora,
    autocast_adapter_dtype: bool = True,
) -> "PeftModel":
    """The model under the adapter that the recipe starts from, trainable.

    Raises:
        RecipeError: there is none, it is one of another model, not the one that `sft.lora` describes, or one that no
            merge keeps.
    """
    try:
        model = with_adapter(
            model, folder, trainable=True, autocast_adapter_dtype=autocast_adapter_dtype
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise RecipeError(
            f"sft.adapter: {folder} is no LoRA on the recipe's base: {' '.join(str(error).split())[:300]}. "
            "Name a PEFT folder (adapter_config.json, adapter_model.safetensors) that was trained on this base"
        ) from error
    found = model.peft_config["default"]
    targets = _adapted(model)  # the file may say a pattern, "all-linear" or whole paths
    embeddings = {"lm_head", "embed_tokens", "wte"} & set(targets)
    if embeddings and model.get_base_model().config.tie_word_embeddings:
        raise RecipeError(
            f"sft.adapter: {folder} adapts {', '.join(sorted(embeddings))}, and this base has one matrix for its input "
            "and output embeddings. Merging would change both sides. Train one without it"
        )
    has = {
        "r": found.r,
        "alpha": found.lora_alpha,
        "rank_stabilised": found.use_rslora,
        "dora": found.use_dora,
        "targets": targets,
    }
    wanted = {
        **lora.model_dump(include=set(has)),
        "targets": tuple(sorted(lora.targets)),
    }
    if has != wanted:
        other = ", ".join(
            f"{key}: {list(value) if key == 'targets' else value}"
            for key, value in has.items()
            if value != wanted[key]
        )
        raise RecipeError(
            f"sft.adapter: {folder} is not what sft.lora says. Write there {{{other}}}"
        )
    return model
