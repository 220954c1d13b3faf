"""From a trained reward model to its checkpoint, with what it is worth.

The checkpoint has the adapter with its head, `merged` with an output for each
attribute, and `scalar` with the weighted score as its only output.
"""

import statistics
from typing import TYPE_CHECKING, Any

from bezoar_ray import layout
from bezoar_ray.data.schema import ATTRIBUTES, Pair, Rating
from bezoar_ray.llm.chat_tokens import answer_ids
from bezoar_ray.recipe import Lora
from bezoar_ray.stages import checkpoint_of
from bezoar_ray.stats import wilson
from bezoar_ray.train import adapters, model_loading, pairs, rated_rows, reward_model
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.packing import Layout, computing_in, packed
from bezoar_ray.train.passes import split_for_scoring

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def merge_and_measure(
    job: Job,
    tokenizer: "PreTrainedTokenizerBase",
    lora: Lora,
    row_layout: Layout,
) -> dict[str, dict[str, Any]]:
    """Merge the adapter in the checkpoint's folder, measure the result and record it.

    Args:
        job: names the checkpoint.
        tokenizer: saved with the merged weights.
        lora: settings of the adapter, for the lineage.
        row_layout: how the rows of a pass are laid out.

    Returns:
        The metrics on the held-out rows, by checkpoint.
    """
    store = job.store
    name = job.checkpoint
    files = layout.checkpoint(name)
    rm = rated_rows.section(job.recipe)
    merged_model = load_merged(job)
    merged_model.config.pad_token_id = _pad_id(tokenizer)
    metrics = _measure(job, merged_model, tokenizer, row_layout)
    # Whoever rates rows with it needs them, and may not have the lineage.
    merged_model.config.score_weights = rm.weights
    with store.writing(files.merged) as folder:
        adapters.save(merged_model, tokenizer, folder)
    reward_model.make_scalar(merged_model, rm.weights)
    with store.writing(files.scalar) as folder:
        adapters.save(merged_model, tokenizer, folder)
    adapters.record(
        store,
        job.recipe,
        name,
        checkpoint_of(name).parent,
        adapters.weights_fingerprint(store, name),
        adapter=lora.model_dump(),
        weights=rm.weights,
        # What learns from the score needs its scale.
        score_mean=metrics["score_mean"],
        score_sd=metrics["score_sd"],
    )
    return {name: metrics}


def load_merged(job: Job) -> "PreTrainedModel":
    """Load the reward model, with its adapter merged, for this job's worker."""
    # It starts from merged sft, as align does.
    parent_folder = str(job.store.path(layout.checkpoint("sft").merged))
    model = model_loading.load_reward_model(
        job.recipe.base,
        parent_folder,
        job.recipe.seed,
        device_map={"": model_loading.device(job)},
    )
    adapter_folder = job.store.path(layout.checkpoint("rm").adapter)
    return adapters.merge(model_loading.with_adapter(model, str(adapter_folder)))


def head_outputs(
    model: "PreTrainedModel", rows: list[list[int]], row_layout: Layout
) -> "Tensor":
    """Return the outputs for rows of tokens, shape (rows, outputs), on the CPU."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    outputs = torch.zeros(len(rows), model.config.num_labels)
    model.eval()
    with torch.inference_mode(), packed(model, row_layout):
        for indices in split_for_scoring(map(len, rows), row_layout):
            tokens = [torch.tensor(rows[index]) for index in indices]
            ones = [torch.ones_like(row) for row in tokens]
            output = model(
                input_ids=pad_sequence(tokens, batch_first=True).to(model.device),
                attention_mask=pad_sequence(ones, batch_first=True).to(model.device),
            )
            outputs[indices] = output.logits.float().cpu()
    return outputs


def _measure(
    job: Job,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    row_layout: Layout,
) -> dict[str, Any]:
    """Measure a reward model on the held-out ratings, preferences and HH-RLHF pairs."""
    heldout = rated_rows.read_heldout(job.store)
    measuring = _Measuring(job, model, tokenizer, row_layout)
    with computing_in(job.dtype, model):
        metrics, is_ordered = measuring.on_ratings(heldout.ratings)
        shares = {
            "ratings": is_ordered,
            "preferences": measuring.on_pairs(
                [row for row in heldout.preferences if row.strength]
            ),
            "hh_rlhf": measuring.on_pairs(pairs.read(job.store, "heldout")),
        }
    metrics["pairs"] = {}
    metrics["pairs_ci95"] = {}
    metrics["pairs_count"] = {}
    for name, is_right in shares.items():
        total = len(is_right)
        right = sum(is_right)
        metrics["pairs"][name] = round(right / total, 4) if total else None
        metrics["pairs_ci95"][name] = wilson(right, total)
        metrics["pairs_count"][name] = total
    return metrics


class _Measuring:
    """A reward model with what it takes to score rows."""

    def __init__(
        self,
        job: Job,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        row_layout: Layout,
    ):
        self._model = model
        self._tokenizer = tokenizer
        self._layout = row_layout
        self._rm = rated_rows.section(job.recipe)

    def on_ratings(self, ratings: list[Rating]) -> tuple[dict[str, Any], list[bool]]:
        """Measure the model on rated answers.

        Returns:
            r, mean squared error and variance by attribute, and the score's spread;
            then, for each two answers to one prompt that differ in helpfulness, whether
            the more helpful one gets the higher helpfulness.
        """
        tokens = [self._ids(row.prompt, row.response) for row in ratings]
        kept = [index for index, row in enumerate(tokens) if row]
        rated = [ratings[index] for index in kept]
        outputs = head_outputs(
            self._model, [tokens[index] for index in kept], self._layout
        )
        scores = reward_model.scores(outputs, self._rm.weights)
        by_attribute = {}
        for column, name in enumerate(ATTRIBUTES):
            predicted = []
            given = []
            for row, output in zip(rated, outputs[:, column].tolist(), strict=True):
                rating = row.ratings[column]
                if rating is not None:
                    predicted.append(output)
                    given.append(rating)
            by_attribute[name] = _regression_metrics(predicted, given)
        metrics = {
            "heldout": by_attribute,
            "heldout_rows": len(rated),
            "score_mean": round(float(scores.mean()), 4) if rated else None,
            "score_sd": round(float(scores.std()), 4) if len(rated) > 1 else None,
        }
        return metrics, _order(rated, outputs[:, 0].tolist())

    def on_pairs(self, rows: "list[Pair]") -> list[bool]:
        """Return whether each pair's chosen answer has the higher score."""
        sides = []
        for row in rows:
            chosen = self._ids(row.prompt, row.chosen)
            rejected = self._ids(row.prompt, row.rejected)
            if chosen and rejected:
                sides += [chosen, rejected]
        if not sides:
            return []
        outputs = head_outputs(self._model, sides, self._layout)
        scores = reward_model.scores(outputs, self._rm.weights)
        return (scores[0::2] > scores[1::2]).tolist()

    def _ids(self, prompt: list[dict[str, str]], answer: str) -> list[int]:
        """Return the tokens of a row; none if it is longer than `max_length`."""
        ids = answer_ids(self._tokenizer, prompt, answer)
        return ids if len(ids) <= self._rm.max_length else []


def _regression_metrics(
    predicted: list[float], given: list[float]
) -> dict[str, float | None]:
    if len(given) < 2:
        return {"r": None, "mse": None, "variance": None}
    errors = [(a - b) ** 2 for a, b in zip(predicted, given, strict=True)]
    try:
        r = round(statistics.correlation(predicted, given), 4)
    except statistics.StatisticsError:  # all ratings are equal
        r = None
    return {
        "r": r,
        "mse": round(statistics.fmean(errors), 4),
        "variance": round(statistics.pvariance(given), 4),
    }


def _order(ratings: list[Rating], predicted: list[float]) -> list[bool]:
    """Return whether answers to one prompt are predicted in their order."""
    by_prompt: dict[str, list[tuple[float, float]]] = {}
    for row, output in zip(ratings, predicted, strict=True):
        if row.ratings[0] is not None:
            key = repr(row.prompt)
            by_prompt.setdefault(key, []).append((row.ratings[0], output))
    is_right = []
    for answers in by_prompt.values():
        for index, (given, output) in enumerate(answers):
            for other_given, other_output in answers[index + 1 :]:
                if given != other_given:
                    is_right.append((given > other_given) == (output > other_output))
    return is_right


def _pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return a padding token that does not end an answer.

    transformers and other tools read the last token that is not the padding token.
    """
    for token in (tokenizer.pad_token_id, tokenizer.unk_token_id, 0):
        if token is not None and token != tokenizer.eos_token_id:
            return int(token)
    return 1
