"""How likely sampled answers are, and how they are rated: the weights of a round.

Workers compute three numbers of each answer: ln P(y | x) by hh-sft, which knows no
goal, ln Q'(y | a, x) by the model that was sampled, and its ratings by the reward
model. From them the driver computes the weights of each group (steer_weights.py).
"""

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from bezoar_ray import layout
from bezoar_ray.data.attribute_line import add_goal
from bezoar_ray.data.schema import ATTRIBUTES, row_id
from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.chat_tokens import answer_ids
from bezoar_ray.recipe import Steer
from bezoar_ray.recipe.steering import Goal
from bezoar_ray.store import Store
from bezoar_ray.train import loop, model_loading, reward_checkpoint
from bezoar_ray.train.attribute_bins import goal_log_probabilities
from bezoar_ray.train.encoding import IGNORED, Tokens, last_answer
from bezoar_ray.train.heldout import sum_log_probabilities
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.packing import Layout, computing_in
from bezoar_ray.train.steer_samples import SteerGroup, read_groups
from bezoar_ray.train.steer_weights import (
    ABSENT,
    effective_samples,
    target_log_weights,
)
from bezoar_ray.train.tokenized_dataset import TokenizedDataset
from bezoar_ray.train.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUT_OFF = "cut off or empty"
FAILED = "failed calls"
FEWER_THAN_TWO = "prompts with fewer than two answers"
_READ_ROWS = 256  # groups that the driver has in memory at a time


def score(job: Job, answers_file: str, sampler_adapter: str) -> dict[str, object]:
    """Score this worker's share of the answers and write them to a file.

    Args:
        job: whose part names the folder.
        answers_file: as `steer_samples.sample` returns it.
        sampler_adapter: folder with the adapter of the model that was sampled.
    """
    from ray.train import get_context

    rank = get_context().get_world_rank()
    workers = get_context().get_world_size()
    store = job.store
    # A range of the rows, so that the files in their order have the order of the rows.
    groups = read_groups(store, answers_file, rank / workers, (rank + 1) / workers)
    tokenizer = load_tokenizer(job.recipe)
    longest = job.section.max_length
    scored = [_encode(tokenizer, group, longest) for group in groups]
    answers = [answer for group in scored for answer in group.answers]
    row_layout = _add_log_probabilities(job, answers, sampler_adapter)
    # Free one model before the other one is loaded.
    gc.collect()
    _add_ratings(job, answers, row_layout)
    store.replace_table(f"{layout.part(job.part)}/{rank:05}.parquet", _table(scored))
    return {}


@dataclass
class _Answer:
    """An answer with its tokens and what the models say of it."""

    text: str
    steered: Tokens
    """The conversation with the goal."""
    plain: Tokens
    """The conversation without it."""
    rated: list[int]
    """The tokens that the reward model reads."""
    plain_log_probability: float = 0.0
    sampler_log_probability: float = 0.0
    ratings: list[float] = field(default_factory=list)


@dataclass
class _Group:
    """The answers to one prompt that can be learned from."""

    id: str
    goal: Goal
    answers: list[_Answer]
    left_out: dict[str, int]
    """Other answers, by reason."""


def _encode(
    tokenizer: "PreTrainedTokenizerBase", group: SteerGroup, longest: int
) -> _Group:
    answers = []
    left_out = Counter({CUT_OFF: group.cut_off, FAILED: group.failed})
    for text in group.answers:
        steered = last_answer(tokenizer, add_goal(group.prompt, group.goal), text)
        if len(steered["input_ids"]) > longest:
            left_out["longer than max_length"] += 1
            continue
        plain = last_answer(tokenizer, group.prompt, text)
        rated = answer_ids(tokenizer, group.prompt, text)
        answers.append(_Answer(text, steered, plain, [*rated]))
    return _Group(group.id, group.goal, answers, dict(+left_out))


def _add_log_probabilities(
    job: Job, answers: list[_Answer], sampler_adapter: str
) -> Layout:
    """Add ln P(y | x) and ln Q'(y | a, x), each summed over the answer's tokens.

    Both are by the frozen model on which the next adapter is trained, in 4 bits if the
    recipe says so. The trained model then begins exactly at Q'.
    """
    import torch

    store = job.store
    plain_folder = str(store.path(layout.checkpoint("hh-sft").adapter))
    # Trainable, as the layout is chosen by a forward and a backward pass.
    model = model_loading.with_adapter(
        model_loading.for_training(job), plain_folder, trainable=True
    )
    row_layout = loop.choose_layout(job, model)
    model.load_adapter(str(store.path(sampler_adapter)), adapter_name="sampler")
    device = model_loading.device(job)
    autocast = torch.autocast(
        device.type, torch.bfloat16, enabled=job.dtype == "bfloat16"
    )
    with autocast:
        plain_rows = [answer.plain for answer in answers]
        plain = sum_log_probabilities(model, plain_rows, row_layout)
        model.set_adapter("sampler")
        steered_rows = [answer.steered for answer in answers]
        sampler = sum_log_probabilities(model, steered_rows, row_layout)
    for answer, by_plain, by_sampler in zip(answers, plain, sampler, strict=True):
        answer.plain_log_probability = by_plain
        answer.sampler_log_probability = by_sampler
    return row_layout


def _add_ratings(job: Job, answers: list[_Answer], row_layout: Layout) -> None:
    model = reward_checkpoint.load_merged(job)
    rows = [answer.rated for answer in answers]
    with computing_in(job.dtype, model):
        outputs = reward_checkpoint.head_outputs(model, rows, row_layout)
    for answer, ratings in zip(answers, outputs.tolist(), strict=True):
        answer.ratings = ratings


def _table(groups: list[_Group]) -> pa.Table:
    lists = pa.list_(pa.list_(pa.int32()))
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("goal", pa.string()),
            ("left_out", pa.string()),
            ("answers", pa.list_(pa.string())),
            ("input_ids", lists),
            ("labels", lists),
            ("plain", pa.list_(pa.float64())),
            ("sampler", pa.list_(pa.float64())),
            ("ratings", pa.list_(pa.list_(pa.float64()))),
        ]
    )
    rows = []
    for group in groups:
        answers = group.answers
        row = {
            "id": group.id,
            "goal": orjson.dumps(group.goal).decode(),
            "left_out": orjson.dumps(group.left_out).decode(),
            "answers": [answer.text for answer in answers],
            "input_ids": [answer.steered["input_ids"] for answer in answers],
            "labels": [answer.steered["labels"] for answer in answers],
            "plain": [answer.plain_log_probability for answer in answers],
            "sampler": [answer.sampler_log_probability for answer in answers],
            "ratings": [answer.ratings for answer in answers],
        }
        rows.append(row)
    return pa.Table.from_pylist(rows, schema)


@dataclass(frozen=True)
class Weighed:
    """A round's groups with their weights, and what they are like."""

    dataset: TokenizedDataset
    metrics: dict[str, Any]
    """`groups`, `answers`, `effective_samples`, `goal_distance` and
    `goal_distance_weighted`."""


def weigh(store: Store, steer: Steer, scores_folder: str, folder: str) -> Weighed:
    """Compute the weights of all groups and write the rows that are trained on.

    Beside these tokens, `weights.parquet` has each answer with its weight and what it
    is made of.

    Args:
        store: the run directory.
        steer: the recipe's section.
        scores_folder: with the files of all workers.
        folder: in which both files are written.

    Raises:
        BezoarError: no group has two answers.
    """
    name = folder.rpartition("/")[2]
    digest = store.digest(scores_folder)
    fingerprint = row_id(digest, steer.samples, steer.edges)
    record_file = f"{folder}/groups-{fingerprint}.json"
    record = store.read_json(record_file)
    if record:
        return Weighed(TokenizedDataset(**record["dataset"]), record["metrics"])
    for old_file in store.list(folder):
        if old_file.startswith(f"{folder}/groups-"):
            store.remove(old_file)
    file = f"{folder}/groups-{fingerprint}.arrow"
    totals = _Totals()
    with (
        store.writing(file) as groups_path,
        store.writing(f"{folder}/weights.parquet") as weights_path,
        pa.ipc.new_stream(str(groups_path), _GROUPS) as groups_writer,
        pq.ParquetWriter(str(weights_path), _WEIGHTS) as weights_writer,
    ):
        for rows in _read_scores(store, scores_folder):
            weighed = [_weigh_group(row, steer, totals) for row in rows]
            examples = [example for group in weighed for example in group.examples]
            answers = [answer for group in weighed for answer in group.answers]
            groups_writer.write_table(pa.Table.from_pylist(examples, _GROUPS))
            weights_writer.write_table(pa.Table.from_pylist(answers, _WEIGHTS))
    if not totals.groups:
        reasons = ", ".join(f"{n} {reason}" for reason, n in totals.left_out.items())
        raise BezoarError(
            f"align.steer: no prompt has two answers to compare: {reasons}. Raise "
            "align.steer.max_tokens or align.max_length"
        )
    dataset = TokenizedDataset(
        name=name,
        file=file,
        rows=totals.groups,
        tokens=totals.tokens,
        longest=totals.longest_group // steer.samples,
        longest_sequence=totals.longest,
        sequences=steer.samples,
        left_out=dict(totals.left_out),
    )
    metrics = totals.metrics()
    # The record comes last, as the files count only with it.
    store.replace_json(record_file, {"dataset": asdict(dataset), "metrics": metrics})
    return Weighed(dataset, metrics)


_GROUPS = pa.schema(
    [
        ("id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("target", pa.float32()),
        ("sampler", pa.float32()),
    ]
)
"""Columns of the rows that are trained on: ln w' and ln Q' beside the tokens."""

_WEIGHTS = pa.schema(
    [
        ("id", pa.string()),
        ("goal", pa.string()),
        ("answer", pa.string()),
        *((name, pa.float64()) for name in ATTRIBUTES),
        ("log_goal", pa.float64()),
        ("log_plain", pa.float64()),
        ("log_sampler", pa.float64()),
        ("weight", pa.float64()),
    ]
)
"""Columns of weights.parquet: predicted ratings, ln P(a | x, y), ln P(y | x),
ln Q'(y | a, x) and w'."""


@dataclass
class _WeighedGroup:
    """A group as it is trained on, and as it is shown."""

    examples: list[dict[str, object]] = field(default_factory=list)
    answers: list[dict[str, object]] = field(default_factory=list)


@dataclass
class _Totals:
    """Sums over the groups of a round."""

    groups: int = 0
    answers: int = 0
    tokens: int = 0
    longest: int = 0
    longest_group: int = 0
    effective: float = 0.0
    goal_distance: float = 0.0
    goal_distance_weighted: float = 0.0
    left_out: Counter[str] = field(default_factory=Counter)

    def metrics(self) -> dict[str, Any]:
        """Return the means over the groups."""
        return {
            "groups": self.groups,
            "answers": self.answers,
            "left_out_because": dict(self.left_out),
            "effective_samples": round(self.effective / self.groups, 4),
            "goal_distance": round(self.goal_distance / self.groups, 4),
            "goal_distance_weighted": round(
                self.goal_distance_weighted / self.groups, 4
            ),
        }


def _read_scores(store: Store, folder: str) -> Iterator[list[dict[str, Any]]]:
    for file in store.list(folder, ".parquet"):
        with contextlib.closing(pq.ParquetFile(store.open(file))) as parquet:
            for batch in parquet.iter_batches(_READ_ROWS):
                yield batch.to_pylist()


def _weigh_group(row: dict[str, Any], steer: Steer, totals: _Totals) -> _WeighedGroup:
    import torch

    totals.left_out.update(orjson.loads(row["left_out"]))
    count = len(row["answers"])
    if count < 2:
        totals.left_out[FEWER_THAN_TWO] += 1
        return _WeighedGroup()
    goal = orjson.loads(row["goal"])
    goal_log_probability = goal_log_probabilities(
        row["ratings"], [goal] * count, steer.edges
    )
    target = target_log_weights(
        torch.from_numpy(goal_log_probability),
        torch.tensor(row["plain"], dtype=torch.float64),
        torch.tensor(row["sampler"], dtype=torch.float64),
    )
    lengths = [len(ids) for ids in row["input_ids"]]
    distances = [_goal_distance(ratings, goal) for ratings in row["ratings"]]
    weights = target.exp().tolist()
    totals.groups += 1
    totals.answers += count
    totals.tokens += sum(lengths)
    totals.longest = max(totals.longest, *lengths)
    totals.longest_group = max(totals.longest_group, sum(lengths))
    totals.effective += float(effective_samples(target))
    totals.goal_distance += sum(distances) / count
    for weight, distance in zip(weights, distances, strict=True):
        totals.goal_distance_weighted += weight * distance
    weighed = _WeighedGroup()
    for index in range(count):
        weighed.examples.append(
            {
                "id": row["id"],
                "input_ids": row["input_ids"][index],
                "labels": row["labels"][index],
                "target": float(target[index]),
                "sampler": row["sampler"][index],
            }
        )
        weighed.answers.append(
            {
                "id": row["id"],
                "goal": row["goal"],
                "answer": row["answers"][index],
                **dict(zip(ATTRIBUTES, row["ratings"][index], strict=True)),
                "log_goal": float(goal_log_probability[index]),
                "log_plain": row["plain"][index],
                "log_sampler": row["sampler"][index],
                "weight": weights[index],
            }
        )
    # All groups have the same number of rows. One token without a label counts nothing.
    absent = {
        "id": row["id"],
        "input_ids": row["input_ids"][0][:1],
        "labels": [IGNORED],
        "target": -ABSENT,
        "sampler": ABSENT,
    }
    weighed.examples += [absent] * (steer.samples - count)
    return weighed


def _goal_distance(ratings: list[float], goal: Goal) -> float:
    """Return the mean absolute difference between ratings and a goal."""
    differences = []
    for name, rating in zip(ATTRIBUTES, ratings, strict=True):
        if name in goal:
            differences.append(abs(rating - goal[name]))
    return sum(differences) / len(differences)
