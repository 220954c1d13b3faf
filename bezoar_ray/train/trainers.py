"""The trainers of the three stages: TRL's and our own, on rows that are tokenised already."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bezoar_ray.recipe import Align, Supervised
from bezoar_ray.train import packing, shares
from bezoar_ray.train.unsound import watched

Build = Callable[[Any, Any, dict[str, Any]], Any]
"""Makes a trainer from (model, rows, settings)."""


def supervised(tokenizer: Any, part: Supervised) -> Build:
    """Trainers on conversations: the loss of the labelled tokens, all of one weight, each row once an epoch."""

    def build(model: Any, rows: Any, settings: dict[str, Any]) -> Any:
        from trl import SFTConfig, SFTTrainer

        collate = packing.collator(tokenizer.pad_token_id) if part.packing else None
        config = SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, **settings)
        filled = shares.filled(rows, part.workers * config.per_device_train_batch_size)
        trainer = watched(SFTTrainer)(
            model, config, data_collator=collate, train_dataset=filled, processing_class=tokenizer
        )
        shares.once_each(trainer, len(rows), config.seed)
        return trainer

    return build


def preference(tokenizer: Any, align: Align) -> Build:
    """Trainers on pairs, by the recipe's method."""
    return {"dpo": _dpo, "kto": _kto, "orpo": _reference_free, "asft": _reference_free}[align.method](tokenizer, align)


def _on_tokens(kind: type) -> type:
    """A watched TRL trainer that takes its rows as they are: prepared."""

    class Trainer(watched(kind)):
        """As its parent."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    return Trainer


def _dpo(tokenizer: Any, align: Align) -> Build:
    """DPO (arXiv 2305.18290) and TRL's other losses; the adapter as it is becomes the frozen reference."""

    def build(model: Any, rows: Any, settings: dict[str, Any]) -> Any:
        from trl import DPOConfig, DPOTrainer

        config = DPOConfig(
            beta=align.beta, loss_type=list(align.loss_type), label_smoothing=align.label_smoothing,
            precompute_ref_log_probs=align.precompute_reference, **settings,
        )  # fmt: skip
        return _on_tokens(DPOTrainer)(model, args=config, train_dataset=rows, processing_class=tokenizer)

    return build


def _kto(tokenizer: Any, align: Align) -> Build:
    """KTO (arXiv 2402.01306): each side of a pair by itself, as desirable or not."""

    def build(model: Any, rows: Any, settings: dict[str, Any]) -> Any:
        from trl import KTOConfig, KTOTrainer

        pairs = settings["per_device_train_batch_size"]
        config = KTOConfig(
            beta=align.beta, precompute_ref_log_probs=align.precompute_reference,
            **settings | {"per_device_train_batch_size": 2 * pairs, "train_sampling_strategy": "sequential"},
        )  # fmt: skip
        shuffled, file = rows.shuffle(settings["seed"]), Path(rows.cache_files[0]["filename"])
        mark = f"{rows._fingerprint}-{settings['seed']}-{pairs}"
        sides = shuffled.map(  # in a file: beside it TRL keeps the reference's answers, where all workers find them
            partial(_sides, all_pairs=shuffled), with_indices=True, batched=True, batch_size=pairs,
            remove_columns=rows.column_names, new_fingerprint=mark,
            cache_file_name=str(file.with_name(f"{file.stem}-sides-{mark}.arrow")),
        )  # fmt: skip
        return _on_tokens(KTOTrainer)(model, args=config, train_dataset=sides, processing_class=tokenizer)

    return build


def _sides(pairs: dict[str, list[list[int]]], indices: list[int], all_pairs: Any) -> dict[str, list[Any]]:
    """Both sides of the pairs of one forward pass, the chosen ones first; each prompt also with another's answer.

    KTO estimates its reference point (eq. 7) from answers to other prompts: here the next pair's.
    """
    following = all_pairs[[(n + 1) % len(all_pairs) for n in indices]]
    count = len(indices)
    return {
        "prompt_ids": pairs["prompt_ids"] * 2,
        "completion_ids": pairs["chosen_ids"] + pairs["rejected_ids"],
        "KL_completion_ids": following["chosen_ids"] + following["rejected_ids"],
        "label": [True] * count + [False] * count,
    }


def _reference_free(tokenizer: Any, align: Align) -> Build:
    """ORPO and ASFT, whose losses ask for no reference."""

    def build(model: Any, rows: Any, settings: dict[str, Any]) -> Any:
        from transformers import Trainer, TrainingArguments
        from trl.trainer.dpo_trainer import DataCollatorForPreference

        from bezoar_ray.train.odds import LOSSES, mean_log_probability

        class OddsTrainer(watched(Trainer)):
            """The mean loss of the pairs of a pass."""

            def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
                chosen, rejected = mean_log_probability(model, inputs).chunk(2)
                self.higher += self.accelerator.gather_for_metrics(chosen > rejected).tolist()
                return LOSSES[align.method](chosen, rejected, align.beta).mean()

            def log(self, logs: dict[str, float], *more: Any) -> None:
                if self.higher:
                    logs["rewards/accuracies"] = sum(self.higher) / len(self.higher)
                    self.higher = []
                super().log(logs, *more)

        settings = {name: value for name, value in settings.items() if name != "max_length"}
        config = TrainingArguments(remove_unused_columns=False, **settings)
        collator = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)
        trainer = OddsTrainer(model, config, data_collator=collator, train_dataset=rows, processing_class=tokenizer)
        trainer.higher = []
        return trainer

    return build
