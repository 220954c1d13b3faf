"""Whole rows side by side in the sequences of a forward pass, so that little is computed on padding."""

from typing import Any

Rows = list[dict[str, Any]]


def collator(pad_token_id: int) -> Any:
    """Forward passes whose rows fill as few sequences as they can, none longer than the longest row.

    Rows are packed pass by pass, not ahead of training: an optimiser step takes the rows that it would take padded,
    for any number of workers, each epoch shuffles them anew, and no pass is larger than the padded one.

    Where positions begin anew and no mask is given, transformers lets no row see another, in eager attention and
    torch's fused one alike. TRL's own way (`padding_free`) puts a pass into one sequence, whose attention grows with
    the square of the pass without FlashAttention.
    """
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    class Collator(DataCollatorForLanguageModeling):
        """TRL's, on packed rows and without the mask."""

        def torch_call(self, examples: Rows) -> dict[str, Any]:
            batch = super().torch_call(side_by_side(examples))
            del batch["attention_mask"]
            return batch

    return Collator(pad_token_id=pad_token_id, return_position_ids=True)


def side_by_side(rows: Rows) -> Rows:
    """The `input_ids` and `labels` of rows in few sequences; `seq_lengths` tells their rows apart."""
    filled = [[rows[n] for n in sequence] for sequence in fill([len(row["input_ids"]) for row in rows])]
    return [
        {name: [token for row in sequence for token in row[name]] for name in ("input_ids", "labels")}
        | {"seq_lengths": [len(row["input_ids"]) for row in sequence]}
        for sequence in filled
    ]


def fill(lengths: list[int]) -> list[list[int]]:
    """Which rows share a sequence that is no longer than the longest row: best fit, the longest first."""
    sequences: list[list[int]] = []
    room: list[int] = []
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        fits = [at for at, left in enumerate(room) if left >= lengths[n]]
        at = min(fits, key=room.__getitem__, default=len(room))
        if at == len(room):
            sequences.append([])
            room.append(max(lengths))
        sequences[at].append(n)
        room[at] -= lengths[n]
    return sequences
