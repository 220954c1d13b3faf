"""The trainers of the stages: TRL's and one of this package.

Their rows are already tokenized, and their steps are computed in passes.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bezoar_ray.recipe import Align, Rm, Training
from bezoar_ray.train.encoding import IGNORED
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


def reward(tokenizer: "PreTrainedTokenizerBase", rm: Rm) -> BuildTrainer:
    """Build trainers of a reward model, on rated answers or on preferences."""
    build_for_ratings = _regression(tokenizer, rm)
    build_for_pairs = _bradley_terry(tokenizer, rm)

    def build(
        model: "PeftModel", rows: "Dataset", settings: dict[str, Any]
    ) -> "PassesTrainer":
        if "labels" in rows.column_names:
            return build_for_ratings(model, rows, settings)
        return build_for_pairs(model, rows, settings)

    return build


def steered(tokenizer: "PreTrainedTokenizerBase", align: Align) -> BuildTrainer:
    """Build trainers of a round of SteerLM 2.0 (arXiv 2406.08673).

    A row is a group: all answers to one prompt, which share a pass. The weights b' are
    then those of the same forward pass, without their gradient.
    """

    def build(
        model: "PeftModel", rows: "Dataset", settings: dict[str, Any]
    ) -> "PassesTrainer":
        from transformers import Trainer
        from trl.trainer.utils import add_fused_lm_head

        from bezoar_ray.train import steer_weights

        base: Any = _with_means(Trainer)

        class SteerTrainer(base):
            """Computes the mean loss of the groups of a pass."""

            def compute_loss(
                self,
                model: "PeftModel",
                inputs: "dict[str, Tensor]",
                return_outputs: bool = False,
                **_: object,
            ) -> "Tensor":
                output = model(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    labels=inputs["labels"],
                    fused_lm_head=True,
                )
                log_probabilities = in_groups(output.log_probs.float().sum(dim=1))
                tokens = in_groups(output.label_mask.sum(dim=1))
                target = in_groups(inputs["target"])
                sampler = in_groups(inputs["sampler"])
                policy = steer_weights.policy_log_weights(
                    log_probabilities.detach(), sampler
                )
                self.note(
                    tokens.sum(dim=1) > 0,  # not a worker's repeated row
                    distance=steer_weights.distance(target, policy),
                    effective_samples=steer_weights.effective_samples(target),
                )
                losses = steer_weights.group_loss(
                    target, policy, log_probabilities, tokens
                )
                return losses.mean()

        def in_groups(values: "Tensor") -> "Tensor":
            """Return values as (groups, answers); all first answers come first."""
            return values.view(width, -1).T

        assert align.steer  # this method has it
        width = align.steer.samples
        # Without it the logits of whole rows, prompts included, would be computed.
        add_fused_lm_head(model.get_base_model())
        trainer = _plain_trainer(
            SteerTrainer,
            model,
            rows,
            settings,
            tokenizer,
            partial(_collate_answers, tokenizer.pad_token_id),
        )
        trainer.batch = align.batch
        trainer.measure = group_row
        trainer.width = width
        return trainer

    return build


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


def group_row(examples: list[Example]) -> Row:
    """Measure the answers to one prompt."""
    lengths = [len(example["input_ids"]) for example in examples]
    return Row(tokens=sum(lengths), sequences=len(lengths), longest=max(lengths))


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

        # TRL counts sides, of which a pair has two.
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
        # Given, so that workers and later runs with this order find the same file.
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
        from transformers import Trainer
        from trl.trainer.dpo_trainer import DataCollatorForPreference
        from trl.trainer.utils import add_fused_lm_head

        from bezoar_ray.train.orpo_asft import LOSSES, mean_log_probability

        base: Any = _with_accuracy(Trainer)

        class OddsTrainer(base):
            """Computes the mean loss of the pairs of a pass."""

            def compute_loss(
                self,
                model: "PeftModel",
                inputs: "dict[str, Tensor]",
                return_outputs: bool = False,
                **_: object,
            ) -> "Tensor":
                # TRL's collator puts all chosen sides first.
                chosen, rejected = mean_log_probability(model, inputs).chunk(2)
                self.note(chosen > rejected)
                pair_losses = LOSSES[align.method](chosen, rejected, align.beta)
                return pair_losses.mean()

        collator = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)
        # Without it the logits of whole rows, prompts included, would be computed.
        add_fused_lm_head(model.get_base_model())
        trainer = _plain_trainer(
            OddsTrainer, model, rows, settings, tokenizer, collator
        )
        trainer.batch = align.batch
        trainer.measure = pair_row
        return trainer

    return build


def _regression(tokenizer: "PreTrainedTokenizerBase", rm: Rm) -> BuildTrainer:
    """Regression on the ratings that exist (arXiv 2406.08673, section 3.1)."""

    def build(
        model: "PeftModel", rows: "Dataset", settings: dict[str, Any]
    ) -> "PassesTrainer":
        from transformers import Trainer

        from bezoar_ray.train.reward_losses import squared_error

        class RatingTrainer(Trainer):
            """Computes the squared error of a pass, over the ratings of its step."""

            def compute_loss(
                self,
                model: "PeftModel",
                inputs: "dict[str, Tensor]",
                return_outputs: bool = False,
                num_items_in_batch: "Tensor | int | None" = None,
            ) -> "Tensor":
                ratings = inputs["labels"]
                outputs = _head_outputs(model, inputs)
                # transformers counts the labels that are not -100, on all workers.
                # Workers average their gradients, so their number cancels.
                count = num_items_in_batch / self.accelerator.num_processes
                return squared_error(outputs, ratings) / count

        trainer = _plain_trainer(
            RatingTrainer,
            model,
            rows,
            settings,
            tokenizer,
            partial(_collate_ratings, tokenizer.pad_token_id),
        )
        trainer.batch = rm.batch
        trainer.measure = conversation_row
        trainer.mean_over_rows = False
        trainer.model_accepts_loss_kwargs = True
        return trainer

    return build


def _bradley_terry(tokenizer: "PreTrainedTokenizerBase", rm: Rm) -> BuildTrainer:
    """Bradley-Terry on the weighted score of both sides (arXiv 2410.01257)."""

    def build(
        model: "PeftModel", rows: "Dataset", settings: dict[str, Any]
    ) -> "PassesTrainer":
        from transformers import Trainer

        from bezoar_ray.train.reward_losses import bradley_terry
        from bezoar_ray.train.reward_model import scores

        base: Any = _with_accuracy(Trainer)

        class PreferenceTrainer(base):
            """Computes the mean loss of the pairs of a pass."""

            def compute_loss(
                self,
                model: "PeftModel",
                inputs: "dict[str, Tensor]",
                return_outputs: bool = False,
                **_: object,
            ) -> "Tensor":
                outputs = _head_outputs(model, inputs)
                chosen, rejected = scores(outputs, rm.weights).chunk(2)
                self.note(chosen > rejected)
                losses = bradley_terry(chosen - rejected, inputs["strength"], rm.loss)
                return losses.mean()

        trainer = _plain_trainer(
            PreferenceTrainer,
            model,
            rows,
            settings,
            tokenizer,
            partial(_collate_preferences, tokenizer.pad_token_id),
        )
        trainer.batch = rm.batch
        trainer.measure = pair_row
        return trainer

    return build


def _with_accuracy(kind: type) -> Any:
    """Derive a trainer that logs how often the chosen answer is ahead."""
    base: Any = kind  # a class that is known at run time only

    class WithAccuracy(base):
        """The parent class with TRL's metric `rewards/accuracies`."""

        def __init__(self, *args: object, **more: object) -> None:
            super().__init__(*args, **more)
            self._is_right: list[bool] = []  # of the pairs since the last log

        def note(self, is_right: "Tensor") -> None:
            """Note whether the chosen answer is ahead, for each pair of a pass."""
            # Of all workers: what is logged must not depend on their number.
            self._is_right += self.accelerator.gather(is_right).tolist()

        def log(self, logs: dict[str, float], *more: object) -> None:
            """Log the share of the pairs since the last log."""
            if self._is_right:
                share = sum(self._is_right) / len(self._is_right)
                # By TRL's name for it, which the reporter looks for.
                logs["rewards/accuracies"] = share
                self._is_right = []
            super().log(logs, *more)

    return WithAccuracy


def _with_means(kind: type) -> Any:
    """Derive a trainer that logs the means of some numbers of its rows."""
    base: Any = kind  # a class that is known at run time only

    class WithMeans(base):
        """The parent class with further metrics."""

        def __init__(self, *args: object, **more: object) -> None:
            super().__init__(*args, **more)
            # Of the rows since the last log.
            self._noted: dict[str, list[float]] = defaultdict(list)

        def note(self, counts: "Tensor", **numbers: "Tensor") -> None:
            """Note numbers of the rows of a pass, as far as a row counts."""
            # Of all workers: what is logged must not depend on their number.
            counted = self.accelerator.gather(counts).tolist()
            for name, values in numbers.items():
                gathered = self.accelerator.gather(values).tolist()
                self._noted[name] += itertools.compress(gathered, counted)

        def log(self, logs: dict[str, float], *more: object) -> None:
            """Log the means over the rows since the last log."""
            for name, values in self._noted.items():
                logs[name] = sum(values) / len(values)
            self._noted.clear()
            super().log(logs, *more)

    return WithMeans


def _plain_trainer(
    kind: type,
    model: "PeftModel",
    rows: "Dataset",
    settings: dict[str, Any],
    tokenizer: "PreTrainedTokenizerBase",
    collator: "Callable[[list[Example]], dict[str, Tensor]]",
) -> "PassesTrainer":
    """Build a trainer in passes from a trainer class of transformers."""
    from transformers import TrainingArguments

    settings = dict(settings)
    settings.pop("max_length", None)  # only TRL's configurations have it
    # transformers would drop the columns that the model's forward does not name.
    config = TrainingArguments(remove_unused_columns=False, **settings)
    return in_passes(kind)(
        model,
        config,
        data_collator=collator,
        train_dataset=rows,
        processing_class=tokenizer,
    )


def _head_outputs(model: "PeftModel", inputs: "dict[str, Tensor]") -> "Tensor":
    """Return the outputs of a reward model, shape (rows, attributes), in float32."""
    output = model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
    )
    return output.logits


def _collate_ratings(pad_id: int, examples: list[Example]) -> "dict[str, Tensor]":
    """Pad rated answers on the right; `labels` are their ratings."""
    import torch

    batch = _pad([example["input_ids"] for example in examples], pad_id)
    ratings = [example["labels"] for example in examples]
    batch["labels"] = torch.tensor(ratings, dtype=torch.float32)
    return batch


def _collate_answers(pad_id: int, examples: list[Example]) -> "dict[str, Tensor]":
    """Pad answers with their prompts on the right, with their ln w' and ln Q'."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    batch = _pad([example["input_ids"] for example in examples], pad_id)
    labels = [torch.tensor(example["labels"]) for example in examples]
    batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    for name in ("target", "sampler"):
        values = [example[name] for example in examples]
        batch[name] = torch.tensor(values, dtype=torch.float32)
    return batch


def _collate_preferences(pad_id: int, examples: list[Example]) -> "dict[str, Tensor]":
    """Pad both sides of pairs on the right, all chosen sides first."""
    import torch

    sides = []
    for name in ("chosen_ids", "rejected_ids"):
        for example in examples:
            sides.append([*example["prompt_ids"], *example[name]])
    batch = _pad(sides, pad_id)
    strengths = [example["strength"][0] for example in examples]
    batch["strength"] = torch.tensor(strengths, dtype=torch.float32)
    return batch


def _pad(rows: list[list[int]], pad_id: int) -> "dict[str, Tensor]":
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tensors = [torch.tensor(row) for row in rows]
    ones = [torch.ones_like(row) for row in tensors]
    return {
        "input_ids": pad_sequence(tensors, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence(ones, batch_first=True),
    }
