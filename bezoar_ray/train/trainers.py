"""The trainers of the stages: TRL's and one of this package.

Their rows are already tokenized, and their steps are computed in passes.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bezoar_ray.recipe import Align, Training
from bezoar_ray.train.passes import Row, in_passes

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from bezoar_ray.train.passes import PassesTrainer

Example = dict[str, Any]
"""A tokenized row of a data set."""
BuildTrainer = Callable[["PeftModel", "Dataset", dict[str, Any]], "PassesTrainer"]
"""Builds a trainer from (model, rows, settings)."""

_REFERENCE_TOKENS = 16_384
"""Most tokens of a batch whose reference is computed ahead."""


def supervised(tokenizer: "PreTrainedTokenizerBase", section: Training) -> BuildTrainer:
    """Build trainers on conversations, with the mean loss of the labelled tokens."""

    def build(
        model: "PeftModel", rows: "Dataset", settings: dict[str, Any]
    ) -> "PassesTrainer":
        from trl import SFTConfig, SFTTrainer

        config = SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, **settings)
        trainer = in_passes(SFTTrainer)(
            model, config, train_dataset=rows, processing_class=tokenizer
        )
        trainer.batch = section.batch
        trainer.measure = conversation_row
        trainer.mean_over_rows = False
        # transformers then counts the tokens of the whole step for every architecture,
        # and TRL divides the loss of each pass by them.
        trainer.model_accepts_loss_kwargs = True
        return trainer

    return build


def preference(tokenizer: "PreTrainedTokenizerBase", align: Align) -> BuildTrainer:
    """Build trainers on pairs for the recipe's method."""
    if align.method == "dpo":
        return _dpo(tokenizer, align)
    if align.method == "kto":
        return _kto(tokenizer, align)
    return _reference_free(tokenizer, align)


def conversation_row(examples: list[Example]) -> Row:
    """Measure a conversation."""
    length = len(examples[0]["input_ids"])
    return Row(tokens=length, sequences=1, longest=length)


def pair_row(examples: list[Example]) -> Row:
    """Measure a pair."""
    prompt = len(examples[0]["prompt_ids"])
    chosen = len(examples[0]["chosen_ids"])
    rejected = len(examples[0]["rejected_ids"])
    return Row(
        tokens=2 * prompt + chosen + rejected,
        sequences=2,
        longest=prompt + max(chosen, rejected),
    )


def kto_row(examples: list[Example]) -> Row:
    """Measure the two sides of a pair.

    Their answers to other prompts add no tokens, as they are computed in a pass of
    their own without gradients.
    """
    lengths = []
    kl_lengths = []
    for side in examples:
        prompt = len(side["prompt_ids"])
        lengths.append(prompt + len(side["completion_ids"]))
        kl_lengths.append(prompt + len(side["KL_completion_ids"]))
    return Row(tokens=sum(lengths), sequences=2, longest=max(lengths + kl_lengths))


def _on_tokens(kind: type) -> type:
    """Derive a TRL trainer in passes that accepts tokenized rows unchanged."""

    base: Any = in_passes(kind)  # a class that is known at run time only

    class Trainer(base):
        """The parent class without TRL's preparation of rows."""

        def _prepare_dataset(self, dataset: "Dataset", *_: object) -> "Dataset":
            return dataset

    return Trainer


def _reference_batch(align: Align) -> int:
    """Return how many pairs' reference is computed at a time, before training.

    Without gradients a pass takes little memory.
    """
    longest_pair = 2 * align.max_length
    return max(1, _REFERENCE_TOKENS // longest_pair)


def _dpo(tokenizer: "PreTrainedTokenizerBase", align: Align) -> BuildTrainer:
    """DPO (arXiv 2305.18290) and TRL's other losses.

    The frozen reference is a copy of the adapter as it is when the trainer is built.
    """

    def build(
        model: "PeftModel", rows: "Dataset", settings: dict[str, Any]
    ) -> "PassesTrainer":
        from trl import DPOConfig, DPOTrainer

        config = DPOConfig(
            beta=align.beta,
            loss_type=list(align.loss_type),
            label_smoothing=align.label_smoothing,
            precompute_ref_log_probs=align.precompute_reference,
            precompute_ref_batch_size=_reference_batch(align),
            **settings,
        )
        # Given a PEFT model and no `peft_config`, TRL freezes a copy of its adapter as
        # the reference. With a `peft_config`, the bare model would be the reference.
        trainer = _on_tokens(DPOTrainer)(
            model, args=config, train_dataset=rows, processing_class=tokenizer
        )
        trainer.batch = align.batch
        trainer.measure = pair_row
        return trainer

    return build


def _kto(tokenizer: "PreTrainedTokenizerBase", align: Align) -> BuildTrainer:
    """KTO (arXiv 2402.01306): each side of a pair by itself, as desirable or not.

    Its reference point (eq. 7) is estimated anew in each pass.
    """

    def build(
        model: "PeftModel", rows: "Dataset", settings: dict[str, Any]
    ) -> "PassesTrainer":
        from trl import KTOConfig, KTOTrainer

        sides_per_step = 2 * settings["per_device_train_batch_size"]
        config = KTOConfig(
            beta=align.beta,
            precompute_ref_log_probs=align.precompute_reference,
            precompute_ref_batch_size=2 * _reference_batch(align),
            **(settings | {"per_device_train_batch_size": sides_per_step}),
        )
        trainer = _on_tokens(KTOTrainer)(
            model,
            args=config,
            train_dataset=_sides_of_pairs(rows, settings["seed"]),
            processing_class=tokenizer,
        )
        trainer.batch = align.batch
        trainer.measure = kto_row
        trainer.width = 2
        return trainer

    return build


def _sides_of_pairs(pairs: "Dataset", seed: int) -> "Dataset":
    """Return both sides of each pair as rows, in a shuffled order of the pairs.

    They are in a file, since TRL keeps the reference's log-probabilities beside it,
    where all workers find them.
    """
    shuffled = pairs.shuffle(seed)
    pairs_file = Path(pairs.cache_files[0]["filename"])
    fingerprint = f"{pairs._fingerprint}-{seed}"
    sides_file = pairs_file.with_name(f"{pairs_file.stem}-sides-{fingerprint}.arrow")
    return shuffled.map(
        partial(_split_sides, all_pairs=shuffled),
        with_indices=True,
        batched=True,
        remove_columns=pairs.column_names,
        new_fingerprint=fingerprint,
        cache_file_name=str(sides_file),
    )


def _split_sides(
    pairs: dict[str, list[Any]], indices: list[int], all_pairs: "Dataset"
) -> dict[str, list[Any]]:
    """Return both sides of each pair, the chosen one first.

    Each prompt also gets an answer to another prompt, from which KTO estimates its
    reference point (eq. 7): here an answer of the next pair.
    """
    next_indices = [(index + 1) % len(all_pairs) for index in indices]
    next_pairs = all_pairs[next_indices]
    sides: dict[str, list[Any]] = {
        "id": [],
        "prompt_ids": [],
        "completion_ids": [],
        "KL_completion_ids": [],
        "label": [],
    }
    for position in range(len(indices)):
        for name in ("chosen_ids", "rejected_ids"):
            sides["id"].append(pairs["id"][position])
            sides["prompt_ids"].append(pairs["prompt_ids"][position])
            sides["completion_ids"].append(pairs[name][position])
            sides["KL_completion_ids"].append(next_pairs[name][position])
            sides["label"].append(name == "chosen_ids")
    return sides


def _reference_free(tokenizer: "PreTrainedTokenizerBase", align: Align) -> BuildTrainer:
    """ORPO and ASFT, whose losses need no reference."""

    def build(
        model: "PeftModel", rows: "Dataset", settings: dict[str, Any]
    ) -> "PassesTrainer":
        from transformers import Trainer, TrainingArguments
        from trl.trainer.dpo_trainer import DataCollatorForPreference
        from trl.trainer.utils import add_fused_lm_head

        from bezoar_ray.train.orpo_asft import LOSSES, mean_log_probability

        class OddsTrainer(Trainer):
            """Computes the mean loss of the pairs of a pass."""

            def __init__(self, *args: object, **more: object) -> None:
                super().__init__(*args, **more)
                self.is_right: list[bool] = []  # of the pairs since the last log

            def compute_loss(
                self,
                model: "PeftModel",
                inputs: "dict[str, Tensor]",
                return_outputs: bool = False,
                **_: object,
            ) -> "Tensor":
                chosen, rejected = mean_log_probability(model, inputs).chunk(2)
                self.is_right += self.accelerator.gather(chosen > rejected).tolist()
                pair_losses = LOSSES[align.method](chosen, rejected, align.beta)
                return pair_losses.mean()

            def log(self, logs: dict[str, float], *more: object) -> None:
                if self.is_right:
                    share = sum(self.is_right) / len(self.is_right)
                    logs["rewards/accuracies"] = share
                    self.is_right = []
                super().log(logs, *more)

        settings = dict(settings)
        settings.pop("max_length", None)  # only TRL's configurations have it
        config = TrainingArguments(remove_unused_columns=False, **settings)
        collator = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)
        # Without it the logits of whole rows, prompts included, would be computed.
        add_fused_lm_head(model.get_base_model())
        trainer = in_passes(OddsTrainer)(
            model,
            config,
            data_collator=collator,
            train_dataset=rows,
            processing_class=tokenizer,
        )
        trainer.batch = align.batch
        trainer.measure = pair_row
        return trainer

    return build
