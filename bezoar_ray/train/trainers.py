"""The trainers of the three stages: TRL's and our own, on rows that are tokenised already, in passes."""

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
"""A tokenised row of a data set."""
Build = Callable[["PeftModel", "Dataset", dict[str, Any]], "PassesTrainer"]
"""Makes a trainer from (model, rows, settings)."""

_REFERENCE_TOKENS = 16_384  # of a batch of pairs whose reference is asked ahead, if all were as long as the longest


def supervised(tokenizer: "PreTrainedTokenizerBase", part: Training) -> Build:
    """Trainers on conversations: the loss of the labelled tokens, all of one weight, each row once an epoch."""

    def build(
        model: "PeftModel", rows: "Dataset", settings: dict[str, Any]
    ) -> "PassesTrainer":
        from trl import SFTConfig, SFTTrainer

        config = SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, **settings)
        trainer = in_passes(SFTTrainer)(
            model, config, train_dataset=rows, processing_class=tokenizer
        )
        trainer.batch, trainer.measure, trainer.mean_over_rows = (
            part.batch,
            conversation_row,
            False,
        )
        # Have the tokens of the whole step counted for every architecture: passes are divided by them.
        trainer.model_accepts_loss_kwargs = True
        return trainer

    return build


def preference(tokenizer: "PreTrainedTokenizerBase", align: Align) -> Build:
    """Trainers on pairs, by the recipe's method."""
    return {"dpo": _dpo, "kto": _kto, "orpo": _reference_free, "asft": _reference_free}[
        align.method
    ](tokenizer, align)


def conversation_row(examples: list[Example]) -> Row:
    """What a conversation takes in a pass."""
    length = len(examples[0]["input_ids"])
    return Row(length, 1, length)


def pair_row(examples: list[Example]) -> Row:
    """What a pair takes in a pass."""
    prompt, *sides = (
        len(examples[0][name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")
    )
    return Row(2 * prompt + sum(sides), 2, prompt + max(sides))


def kto_row(examples: list[Example]) -> Row:
    """What the two sides of a pair take in a pass. Their answers to other prompts have a pass without gradients."""
    lengths = [
        len(side["prompt_ids"]) + len(side["completion_ids"]) for side in examples
    ]
    others = [
        len(side["prompt_ids"]) + len(side["KL_completion_ids"]) for side in examples
    ]
    return Row(sum(lengths), 2, max(lengths + others))


def _on_tokens(kind: type) -> type:
    """A TRL trainer in passes that takes its rows as they are: prepared."""

    base: Any = in_passes(kind)  # a class that is known at run time only

    class Trainer(base):
        """As its parent."""

        def _prepare_dataset(self, dataset: "Dataset", *_: object) -> "Dataset":
            return dataset

    return Trainer


def _reference_batch(align: Align) -> int:
    """Pairs whose reference is asked at a time, before training. Without gradients a pass takes little memory."""
    return max(1, _REFERENCE_TOKENS // (2 * align.max_length))


def _dpo(tokenizer: "PreTrainedTokenizerBase", align: Align) -> Build:
    """DPO (arXiv 2305.18290) and TRL's other losses; the adapter as it is becomes the frozen reference."""

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
        trainer = _on_tokens(DPOTrainer)(
            model, args=config, train_dataset=rows, processing_class=tokenizer
        )
        trainer.batch, trainer.measure = align.batch, pair_row
        return trainer

    return build


def _kto(tokenizer: "PreTrainedTokenizerBase", align: Align) -> Build:
    """KTO (arXiv 2402.01306): each side of a pair by itself, as desirable or not.

    Its reference point (eq. 7) is estimated anew in each pass.
    """

    def build(
        model: "PeftModel", rows: "Dataset", settings: dict[str, Any]
    ) -> "PassesTrainer":
        from trl import KTOConfig, KTOTrainer

        config = KTOConfig(
            beta=align.beta,
            precompute_ref_log_probs=align.precompute_reference,
            precompute_ref_batch_size=2 * _reference_batch(align),
            **settings
            | {
                "per_device_train_batch_size": 2
                * settings["per_device_train_batch_size"]
            },
        )
        shuffled, file = (
            rows.shuffle(settings["seed"]),
            Path(rows.cache_files[0]["filename"]),
        )
        mark = f"{rows._fingerprint}-{settings['seed']}"
        sides = shuffled.map(  # in a file: beside it TRL keeps the reference's answers, where all workers find them
            partial(_sides, all_pairs=shuffled),
            with_indices=True,
            batched=True,
            remove_columns=rows.column_names,
            new_fingerprint=mark,
            cache_file_name=str(file.with_name(f"{file.stem}-sides-{mark}.arrow")),
        )
        trainer = _on_tokens(KTOTrainer)(
            model, args=config, train_dataset=sides, processing_class=tokenizer
        )
        trainer.batch, trainer.measure, trainer.width = align.batch, kto_row, 2
        return trainer

    return build


def _sides(
    pairs: dict[str, list[Any]], indices: list[int], all_pairs: "Dataset"
) -> dict[str, list[Any]]:
    """Both sides of each pair, the chosen one first; each prompt also with another's answer.

    KTO estimates its reference point (eq. 7) from answers to other prompts: here the next pair's.
    """
    following = all_pairs[[(index + 1) % len(all_pairs) for index in indices]]
    sides: dict[str, list[Any]] = {
        "id": [],
        "prompt_ids": [],
        "completion_ids": [],
        "KL_completion_ids": [],
        "label": [],
    }
    for place in range(len(indices)):
        for name in ("chosen_ids", "rejected_ids"):
            sides["id"].append(pairs["id"][place])
            sides["prompt_ids"].append(pairs["prompt_ids"][place])
            sides["completion_ids"].append(pairs[name][place])
            sides["KL_completion_ids"].append(following[name][place])
            sides["label"].append(name == "chosen_ids")
    return sides


def _reference_free(tokenizer: "PreTrainedTokenizerBase", align: Align) -> Build:
    """ORPO and ASFT, whose losses ask for no reference."""

    def build(
        model: "PeftModel", rows: "Dataset", settings: dict[str, Any]
    ) -> "PassesTrainer":
        from transformers import Trainer, TrainingArguments
        from trl.trainer.dpo_trainer import DataCollatorForPreference
        from trl.trainer.utils import add_fused_lm_head

        from bezoar_ray.train.orpo_asft import LOSSES, mean_log_probability

        class OddsTrainer(Trainer):
            """The mean loss of the pairs of a pass."""

            def __init__(self, *args: object, **more: object) -> None:
                super().__init__(*args, **more)
                self.higher: list[bool] = []

            def compute_loss(
                self,
                model: "PeftModel",
                inputs: "dict[str, Tensor]",
                return_outputs: bool = False,
                **_: object,
            ) -> "Tensor":
                chosen, rejected = mean_log_probability(model, inputs).chunk(2)
                self.higher += self.accelerator.gather(chosen > rejected).tolist()
                return LOSSES[align.method](chosen, rejected, align.beta).mean()

            def log(self, logs: dict[str, float], *more: object) -> None:
                if self.higher:
                    logs["rewards/accuracies"] = sum(self.higher) / len(self.higher)
                    self.higher = []
                super().log(logs, *more)

        settings = {
            name: value for name, value in settings.items() if name != "max_length"
        }
        config = TrainingArguments(remove_unused_columns=False, **settings)
        collator = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)
        add_fused_lm_head(model.get_base_model())
        trainer = in_passes(OddsTrainer)(
            model,
            config,
            data_collator=collator,
            train_dataset=rows,
            processing_class=tokenizer,
        )
        trainer.batch, trainer.measure = align.batch, pair_row
        return trainer

    return build
