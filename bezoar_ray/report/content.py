"""What the report shows, gathered from the run directory; parts that are missing are named, never guessed."""

from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import orjson

from bezoar_ray import layout
from bezoar_ray.data.sample_io import count_samples, iter_samples
from bezoar_ray.data.schema import Sample
from bezoar_ray.evaluate.mt_bench.fastchat_files import QUESTIONS
from bezoar_ray.licenses import CommercialUse, causes, commercial_use
from bezoar_ray.recipe import Recipe
from bezoar_ray.report.harness_table import HarnessTable, below_base, harness
from bezoar_ray.sources.mt_bench_files import IDS as MT_BENCH_IDS
from bezoar_ray.stages import STAGES, checkpoint_names, manifest_of, working_stages
from bezoar_ray.store import Store

SHOWN = 10  # samples of each scheme and status
T = TypeVar("T")
_ENDS = ("accepted", "rejected", "failed")
_MT_BENCH = "MT-Bench"  # what nothing but its 80 questions is called


@dataclass(frozen=True)
class StageStatus:
    """How one stage of the run stands: done, failed, running, interrupted or not run."""

    name: str
    status: str
    seconds: float


@dataclass(frozen=True)
class SchemeFunnel:
    """One scheme's funnel and samples. `reasons` counts what rejected and failed rows went for."""

    name: str
    generated: int
    accepted: int
    rejected: int
    failed: int
    reasons: dict[str, int]
    seeds: int | None
    seeds_failed: int | None
    shown: dict[str, list[Sample]]
    provenance: Counter[
        tuple[str, str]
    ]  # (source, licence) of the accepted rows' seeds, and how many rows

    @property
    def yielded(self) -> float | None:
        """Share of the generated rows that was accepted."""
        return self.accepted / self.generated if self.generated else None


@dataclass(frozen=True)
class Content:
    """Everything that page and cards are made from."""

    recipe: Recipe
    run: dict[str, Any]
    stages: list[StageStatus]
    schemes: list[SchemeFunnel]
    provenance: dict[
        tuple[str, str], int
    ]  # (source, licence) of the accepted rows' seeds, and how many rows
    calls: dict[str, Any]
    judges: dict[str, Any]
    kept_out: list[str]
    train: dict[str, Any]
    harness: HarnessTable
    mt_bench: dict[str, Any]
    bench_name: str  # what its questions are called: only MT-Bench's own are MT-Bench
    served: dict[str, str]  # how each checkpoint was served while it was measured
    conversations: str | None  # the page to read MT-Bench's, if there is one
    checkpoints: list[str]
    commercial_use: CommercialUse
    causes: list[Any]

    @property
    def missing(self) -> list[str]:
        """A sentence for each part that is not there."""
        absent = [
            f"{stage.name}: {stage.status}"
            for stage in self.stages
            if stage.status != "done"
        ]
        return absent + [
            _took(scheme)
            for scheme in self.schemes
            if scheme.generated and not scheme.accepted
        ]

    @property
    def judge_prompts(self) -> str:
        """In whose words MT-Bench's judge was asked, and what its scores can be compared with."""
        whose = next(
            (part["prompts"] for part in self.mt_bench.values() if "prompts" in part),
            "bezoar_ray's own",
        )
        verb = "can be compared with published ones of the same judge"
        if whose != "FastChat's":
            verb = "cannot be compared with published ones"
        elif self.bench_name != _MT_BENCH:
            verb = "cannot be compared with published ones, which are for all of MT-Bench's questions"
        return f"The judge's prompts are {whose}: the scores {verb}."

    @property
    def skipped(self) -> list[str]:
        """The questions whose reference answers are disputed."""
        bench = self.recipe.evaluate.mt_bench
        return [str(question) for question in bench.references_skip] if bench else []

    @property
    def warnings(self) -> list[str]:
        """What the results say against the checkpoints."""
        return below_base(self.harness, self.mt_bench, self.bench_name)


def gather(recipe: Recipe, store: Store) -> Content:
    """What the files of a run directory hold."""
    summary = store.read_json(layout.SUMMARY) or {}
    schemes = [
        found for name in recipe.schemes if (found := _scheme(name, summary, store))
    ]
    provenance = dict(
        sum((found.provenance for found in schemes), Counter()).most_common()
    )
    results = summary.get("eval", {})
    return Content(
        recipe=recipe,
        run=summary.get("run", {}),
        stages=[
            _stage(name, summary.get("stages", {}), store) for name in working_stages()
        ],
        schemes=schemes,
        provenance=provenance,
        calls={
            role: part
            for role, part in summary.get("calls", {}).items()
            if part.get("attempts")
        },
        judges=summary.get("judge", {}),
        kept_out=summary.get("decontaminated", []),
        train={
            name: part
            for name in checkpoint_names()
            if (part := summary.get("train", {}).get(name))
        },
        harness=harness(recipe, results.get("harness", {})),
        mt_bench=_checkpoints_first(results.get("mt_bench", {})),
        bench_name=_bench_name(recipe, store),
        served=results.get("served", {}),
        conversations=layout.CONVERSATIONS
        if store.exists(layout.CONVERSATIONS)
        else None,
        checkpoints=[
            name
            for name in checkpoint_names()
            if store.exists(layout.checkpoint(name).lineage)
        ],
        commercial_use=commercial_use(recipe, provenance),
        causes=causes(recipe, provenance),
    )


def _bench_name(recipe: Recipe, store: Store) -> str:
    """What the questions are called that the run has asked."""
    if not (recipe.evaluate.mt_bench and store.exists(QUESTIONS)):
        return _MT_BENCH
    ids = {
        orjson.loads(line)["question_id"] for line in store.read(QUESTIONS).splitlines()
    }
    if ids <= set(MT_BENCH_IDS):
        whole = len(ids) == len(MT_BENCH_IDS)
        return (
            _MT_BENCH
            if whole
            else f"MT-Bench ({len(ids)} of its {len(MT_BENCH_IDS)} questions)"
        )
    asked = recipe.evaluate.mt_bench.questions
    return f"{'embedded questions' if asked == 'tiny' else Path(asked).name} ({len(ids)}, in MT-Bench's form)"


def _checkpoints_first(scores: dict[str, T]) -> dict[str, T]:
    """In the order of training, then the further models."""
    return {
        name: scores[name] for name in (*checkpoint_names(), *scores) if name in scores
    }


def _stage(name: str, stages: dict[str, Any], store: Store) -> StageStatus:
    """The manifest decides: it is written last, and a later command knows nothing of earlier ones."""
    manifest = store.read_json(manifest_of(name, store))
    if manifest:
        return StageStatus(name, "done", manifest["seconds"])
    known = stages.get(name) or stages.get(STAGES[name].key, {})
    return StageStatus(name, known.get("status", "not run"), known.get("seconds", 0.0))


def _scheme(name: str, summary: dict[str, Any], store: Store) -> SchemeFunnel | None:
    counts = summary.get("data", {}).get(name, {})
    rows = {status: _Rows(iter_samples(store, name, status)) for status in _ENDS}
    waiting = counts.get("generated") or count_samples(store, name, "generated")
    ended = {status: counts.get(status, rows[status].count) for status in _ENDS}
    if not waiting and not any(ended.values()):
        return None
    return SchemeFunnel(
        name=name,
        generated=waiting or sum(ended.values()),
        **ended,
        reasons=counts.get("reasons")
        or dict((rows["rejected"].gates + rows["failed"].gates).most_common()),
        seeds=counts.get("seeds"),
        seeds_failed=counts.get("seeds_failed"),
        shown={status: rows[status].shown for status in ("accepted", "rejected")},
        provenance=rows["accepted"].provenance,
    )


class _Rows:
    """What the page says of the rows of one scheme and status, from one look at each."""

    def __init__(self, samples: Iterable[Sample]):
        self.count = 0
        self.gates: Counter[str] = Counter()
        """How many rows each gate took."""
        self.provenance: Counter[tuple[str, str]] = Counter()
        """Rows by source and licence of their seeds; a row with seeds of two sources counts for both."""
        self.shown = choose(map(self._counted, samples))

    def _counted(self, sample: Sample) -> Sample:
        self.count += 1
        self.gates[sample.gate] += 1
        self.provenance.update(
            set(zip(sample.seed_sources, sample.seed_licenses, strict=False))
        )
        return sample


def choose(samples: Iterable[Sample], count: int = SHOWN) -> list[Sample]:
    """The samples to show: in turn one of each reason, in the order of ids, which are hashes and so a fair draw."""
    first: dict[str, list[Sample]] = defaultdict(
        list
    )  # by gate: no more than could be shown
    for sample in samples:
        of_gate = first[sample.gate]
        insort(of_gate, sample, key=lambda sample: sample.id)
        del of_gate[count:]
    ranked = [
        (turn, sample.id, sample)
        for of_gate in first.values()
        for turn, sample in enumerate(of_gate)
    ]
    return [
        sample for _, _, sample in sorted(ranked, key=lambda entry: entry[:2])[:count]
    ]


def _took(scheme: SchemeFunnel) -> str:
    """Why a scheme has no accepted row."""
    if not scheme.reasons:
        return f"{scheme.name}: none of {scheme.generated} rows is accepted yet"
    gates = ", ".join(f"{gate} {count}" for gate, count in scheme.reasons.items())
    return f"{scheme.name}: no row of {scheme.generated} was accepted; taken by {gates}"
