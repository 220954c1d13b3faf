"""The content of report and cards, gathered from the run directory.

A part that does not exist is listed as missing.
"""

from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import orjson

from bezoar_ray import layout
from bezoar_ray.data.group_terms import group_terms
from bezoar_ray.data.sample_io import count_samples, iter_samples
from bezoar_ray.data.schema import Sample
from bezoar_ray.evaluate.mt_bench.fastchat_files import QUESTIONS
from bezoar_ray.licenses import CommercialUse, causes, commercial_use
from bezoar_ray.recipe import Recipe
from bezoar_ray.report.group_table import GroupCounts, GroupTable
from bezoar_ray.report.harness_table import HarnessTable, below_base, harness
from bezoar_ray.report.reward_bench_table import (
    RewardBenchTable,
    reward_bench_table,
)
from bezoar_ray.report.reward_learning import (
    RewardLearning,
    overrated,
    reward_learning,
)
from bezoar_ray.review.approval import Approval, current_approval
from bezoar_ray.review.people_table import PeopleTable, compare_with_people
from bezoar_ray.sources.mt_bench_files import IDS as MT_BENCH_IDS
from bezoar_ray.stages import (
    BASE,
    STAGES,
    checkpoint_names,
    manifest_of,
    trained_checkpoint_names,
    working_stages,
)
from bezoar_ray.store import Store

SHOWN = 10
"""Number of samples to show of each scheme and status."""
T = TypeVar("T")
_END_STATUSES = ("accepted", "rejected", "failed")
_MT_BENCH = "MT-Bench"  # only the 80 published questions have this name


@dataclass(frozen=True)
class StageStatus:
    """The status of one stage: done, failed, running, interrupted or not run."""

    name: str
    status: str
    seconds: float


@dataclass(frozen=True)
class SchemeFunnel:
    """The rows of one scheme: counts, reasons, and samples to show."""

    name: str
    generated: int
    accepted: int
    rejected: int
    failed: int
    reasons: dict[str, int]
    """Number of rejected and failed rows, by reason."""
    seeds: int | None
    seeds_failed: int | None
    samples: dict[str, list[Sample]]
    """Samples to show, by status."""
    provenance: Counter[tuple[str, str]]
    """Number of accepted rows, by source and license of their seeds."""

    @property
    def accepted_share(self) -> float | None:
        """Share of the generated rows that was accepted."""
        return self.accepted / self.generated if self.generated else None


@dataclass(frozen=True)
class Content:
    """The content of report and cards."""

    recipe: Recipe
    run: dict[str, Any]
    stages: list[StageStatus]
    schemes: list[SchemeFunnel]
    provenance: dict[tuple[str, str], int]
    """Number of accepted rows of all schemes, by source and license of their seeds."""
    groups: GroupTable
    """The groups of people that the rows mention."""
    counterfactuals: dict[str, Any]
    """How ratings change with the group; empty where it was not measured."""
    calls: dict[str, Any]
    judges: dict[str, Any]
    people: PeopleTable | None
    """How far the judges agree with people; None where nobody decided on a row."""
    approval: Approval | None
    """The approval of the rows by a person, if there is one."""
    benchmarks: list[str]
    """The benchmarks whose items the filter kept out of the rows."""
    train: dict[str, Any]
    harness: HarnessTable
    mt_bench: dict[str, Any]
    reward_bench: RewardBenchTable
    reward_learning: RewardLearning | None
    """Of the policy that learned by reward, if there is one."""
    bench_name: str
    """A name for the questions. Only MT-Bench's own questions are called MT-Bench."""
    served: dict[str, str]
    """How each checkpoint was served during the evaluation."""
    conversations: str | None
    """The page with MT-Bench's conversations, if there is one."""
    checkpoints: list[str]
    commercial_use: CommercialUse
    causes: list[Any]

    @property
    def missing(self) -> list[str]:
        """A line for each stage that is not done, and each scheme without accepted rows."""
        lines = []
        for stage in self.stages:
            if stage.status != "done":
                lines.append(f"{stage.name}: {stage.status}")
        for scheme in self.schemes:
            if scheme.generated and not scheme.accepted:
                lines.append(_why_none_accepted(scheme))
        return lines

    @property
    def judge_prompts(self) -> str:
        """Whose prompts MT-Bench's judge got, and whether its scores are comparable."""
        whose = "bezoar_ray's own"
        for scores in self.mt_bench.values():
            if "prompts" in scores:
                whose = scores["prompts"]
                break
        if whose != "FastChat's":
            comparable = "cannot be compared with published ones"
        elif self.bench_name != _MT_BENCH:
            comparable = "cannot be compared with published ones, which are for all of MT-Bench's questions"
        else:
            comparable = "can be compared with published ones of the same judge"
        return f"The judge's prompts are {whose}: the scores {comparable}."

    @property
    def disputed(self) -> list[str]:
        """Ids of the questions whose reference answers are disputed."""
        bench = self.recipe.evaluate.mt_bench
        if not bench:
            return []
        return [str(question_id) for question_id in bench.references_skip]

    @property
    def warnings(self) -> list[str]:
        """A warning for each checkpoint that is worse than base or exploits a reward."""
        worse = below_base(self.harness, self.mt_bench, self.bench_name)
        return worse + overrated(
            self.reward_learning, self.train, self.mt_bench, self.bench_name
        )


def gather(recipe: Recipe, store: Store) -> Content:
    """Gather the content from the files of a run directory."""
    summary = store.read_json(layout.SUMMARY) or {}
    evaluation = summary.get("eval", {})
    schemes = []
    provenance: Counter[tuple[str, str]] = Counter()
    groups = GroupCounts(group_terms(recipe.filter))
    for name in recipe.schemes:
        scheme = _scheme(name, summary, store, groups)
        if scheme:
            schemes.append(scheme)
            provenance += scheme.provenance
    sources = dict(provenance.most_common())
    has_conversations = store.exists(layout.CONVERSATIONS)
    training = _training(summary)
    return Content(
        recipe=recipe,
        run=summary.get("run", {}),
        stages=_stages(recipe, summary, store),
        schemes=schemes,
        provenance=sources,
        groups=groups.table(),
        counterfactuals=summary.get("counterfactuals", {}),
        calls=_calls(summary),
        judges=summary.get("judge", {}),
        people=compare_with_people(store, recipe),
        approval=current_approval(store),
        benchmarks=summary.get("decontaminated", []),
        train=training,
        harness=harness(recipe, evaluation.get("harness", {})),
        reward_bench=reward_bench_table(evaluation.get("reward_bench", {})),
        reward_learning=reward_learning(training, store),
        mt_bench=_checkpoints_first(evaluation.get("mt_bench", {})),
        bench_name=_bench_name(recipe, store),
        served=evaluation.get("served", {}),
        conversations=layout.CONVERSATIONS if has_conversations else None,
        checkpoints=_existing_checkpoints(store),
        commercial_use=commercial_use(recipe, sources),
        causes=causes(recipe, sources),
    )


def _calls(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the calls of each role that made any."""
    calls = {}
    for role, of_role in summary.get("calls", {}).items():
        if of_role.get("attempts"):
            calls[role] = of_role
    return calls


def _training(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the results of training, in its order."""
    by_checkpoint = summary.get("train", {})
    training = {}
    for name in (BASE, *trained_checkpoint_names()):
        if by_checkpoint.get(name):
            training[name] = by_checkpoint[name]
    return training


def _existing_checkpoints(store: Store) -> list[str]:
    names = []
    for name in (BASE, *trained_checkpoint_names()):
        if store.exists(layout.checkpoint(name).lineage):
            names.append(name)
    return names


def _bench_name(recipe: Recipe, store: Store) -> str:
    """Name the questions that the run asked."""
    if not (recipe.evaluate.mt_bench and store.exists(QUESTIONS)):
        return _MT_BENCH
    lines = store.read(QUESTIONS).splitlines()
    ids = {orjson.loads(line)["question_id"] for line in lines}
    if ids <= set(MT_BENCH_IDS):
        if len(ids) == len(MT_BENCH_IDS):
            return _MT_BENCH
        return f"MT-Bench ({len(ids)} of its {len(MT_BENCH_IDS)} questions)"
    file = recipe.evaluate.mt_bench.questions
    name = "embedded questions" if file == "tiny" else Path(file).name
    return f"{name} ({len(ids)}, in MT-Bench's form)"


def _checkpoints_first(scores: dict[str, T]) -> dict[str, T]:
    """Put the checkpoints first, in the order of training, then the other models."""
    order = (*checkpoint_names(), *scores)
    return {name: scores[name] for name in order if name in scores}


def _stages(recipe: Recipe, summary: dict[str, Any], store: Store) -> list[StageStatus]:
    by_stage = summary.get("stages", {})
    names = [name for name in working_stages() if name in recipe.stages]
    return [_stage(name, by_stage, store) for name in names]


def _stage(name: str, by_stage: dict[str, Any], store: Store) -> StageStatus:
    """Return a stage's status, from its manifest if there is one.

    A stage writes its manifest last. summary.json has only the stages of the latest
    command.
    """
    manifest = store.read_json(manifest_of(name, store))
    if manifest:
        return StageStatus(name, "done", manifest["seconds"])
    entry = by_stage.get(name)
    if not entry:
        # An old summary.json has the stage's earlier name.
        entry = by_stage.get(STAGES[name].key, {})
    status = entry.get("status", "not run")
    return StageStatus(name, status, entry.get("seconds", 0.0))


def _scheme(
    name: str, summary: dict[str, Any], store: Store, groups: GroupCounts
) -> SchemeFunnel | None:
    """Gather one scheme's rows, and count their groups; None if it has none.

    Counts come from summary.json. What it does not have is counted from the rows.
    """
    counts = summary.get("data", {}).get(name, {})
    rows = {}
    totals = {}
    for status in _END_STATUSES:
        rows[status] = _RowSummary(iter_samples(store, name, status), groups)
        totals[status] = counts.get(status, rows[status].count)
    generated = counts.get("generated") or count_samples(store, name, "generated")
    if not generated and not any(totals.values()):
        return None
    reasons = counts.get("reasons")
    if not reasons:
        counted = rows["rejected"].reasons + rows["failed"].reasons
        reasons = dict(counted.most_common())
    return SchemeFunnel(
        name=name,
        generated=generated or sum(totals.values()),
        accepted=totals["accepted"],
        rejected=totals["rejected"],
        failed=totals["failed"],
        reasons=reasons,
        seeds=counts.get("seeds"),
        seeds_failed=counts.get("seeds_failed"),
        samples={status: rows[status].samples for status in ("accepted", "rejected")},
        provenance=rows["accepted"].provenance,
    )


class _RowSummary:
    """Counts and samples of one scheme's rows with one status, from one pass over them."""

    def __init__(self, samples: Iterable[Sample], groups: GroupCounts):
        self._groups = groups
        self.count = 0
        self.reasons: Counter[str] = Counter()
        self.provenance: Counter[tuple[str, str]] = Counter()
        """Rows by source and license of their seeds.

        A row with seeds of two sources counts for both.
        """
        self.samples = choose(map(self._count, samples))

    def _count(self, sample: Sample) -> Sample:
        self.count += 1
        self._groups.add(sample)
        self.reasons[sample.gate] += 1
        sources = zip(sample.seed_sources, sample.seed_licenses, strict=False)
        # A set: a row with three seeds of one source is one row of it.
        self.provenance.update(set(sources))
        return sample


def choose(samples: Iterable[Sample], count: int = SHOWN) -> list[Sample]:
    """Choose the samples to show: one of each reason in turn, until there are enough.

    Within a reason, they are in the order of their ids. Ids are hashes, so this is a
    fair draw. At most `count` samples of each reason are in memory.
    """
    by_reason: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        first = by_reason[sample.gate]
        insort(first, sample, key=_id_of)
        del first[count:]
    turns = []
    for first in by_reason.values():
        for turn, sample in enumerate(first):
            turns.append((turn, sample.id, sample))
    turns.sort(key=lambda entry: entry[:2])
    return [sample for _, _, sample in turns[:count]]


def _id_of(sample: Sample) -> str:
    return sample.id


def _why_none_accepted(scheme: SchemeFunnel) -> str:
    if not scheme.reasons:
        return f"{scheme.name}: none of {scheme.generated} rows is accepted yet"
    reasons = [f"{reason} {count}" for reason, count in scheme.reasons.items()]
    return (
        f"{scheme.name}: none of {scheme.generated} rows was accepted. "
        f"Reasons: {', '.join(reasons)}"
    )
