"""Whole rows side by side in one item, so that nothing is computed on padding."""

from typing import Any


def pack(rows: list[dict[str, list[int]]], longest: int) -> list[dict[str, list[int]]]:
    """Items of at most `longest` tokens: TRL's best fit, decreasing. `seq_lengths` tells their rows apart."""
    from datasets import Dataset
    from trl import pack_dataset

    return pack_dataset(Dataset.from_list(rows), longest, "bfd").to_list() if rows else []


def collator(pad_token_id: int) -> Any:
    """Batches of packed items, padded to the longest.

    Where positions begin anew and no mask is given, transformers lets no row see another, in eager attention and
    torch's fused one alike. TRL's own way (`padding_free`) puts a batch into one row, whose attention grows with the
    square of the batch without FlashAttention.
    """
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    class Collator(DataCollatorForLanguageModeling):
        """TRL's, without the mask."""

        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch = super().torch_call(examples)
            del batch["attention_mask"]
            return batch

    return Collator(pad_token_id=pad_token_id, return_position_ids=True)
