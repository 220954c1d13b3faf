"""How far the judges of a run agree with the people who reviewed its rows.

People see a stratified sample, in which rare kinds of rows are common. So each reviewed
row is weighted by the number of rows of its stratum that it stands for, and an interval
is that of a simple sample of the effective size (Kish, Survey Sampling, 1965).
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from bezoar_ray.data.decision import Decision, by_row, latest, read_own_decisions
from bezoar_ray.data.sample_io import iter_samples
from bezoar_ray.data.schema import Sample
from bezoar_ray.recipe import Recipe
from bezoar_ray.review.queue import judge_fingerprint, rubric_fingerprint
from bezoar_ray.review.sample import STATUSES, Stratum, stratum_of
from bezoar_ray.stats import kappa, kappa_ci95, share, wilson
from bezoar_ray.store import Store

FEWEST_DECISIONS = 50
"""Below this number, the report cautions its reader."""
_BY_VERDICT = ("", "judge", "unrated", "person")
"""Outcomes that follow from verdicts, or from a person in place of them. The others
(duplicates, caps) depend on other rows."""


@dataclass(frozen=True)
class JudgeScores:
    """One judge against people, in one scheme or in all."""

    judge: str
    scheme: str
    """Empty for all schemes together."""
    rows: int
    """Rows that both the judge and a person decided on."""
    base_rate: float | None
    """Share of the rows that people accept."""
    base_rate_ci95: list[float] | None
    precision: float | None
    """Share of the rows accepted by the judge that people accept."""
    precision_ci95: list[float] | None
    recall: float | None
    """Share of the rows that people accept that the judge accepts."""
    recall_ci95: list[float] | None
    kappa: float | None
    kappa_ci95: list[float] | None


@dataclass(frozen=True)
class ReviewerAgreement:
    """Two reviewers on the rows that both decided on."""

    reviewers: tuple[str, str]
    rows: int
    same: float | None
    """Share of the rows with the same decision."""
    same_ci95: list[float] | None
    kappa: float | None
    kappa_ci95: list[float] | None


@dataclass(frozen=True)
class PeopleTable:
    """What people decided, beside what judges said."""

    reviewers: list[str]
    decided: int
    """Rows that somebody accepted or rejected."""
    stale: int
    """Decisions that were made under another rubric or other judges."""
    scores: list[JudgeScores]
    agreements: list[ReviewerAgreement]

    @property
    def cautions(self) -> list[str]:
        """What a reader of the figures must know."""
        lines = []
        if self.decided < FEWEST_DECISIONS:
            lines.append(
                f"Caution: {self.decided} decisions are few. From {FEWEST_DECISIONS} on, "
                "the estimates become useful."
            )
        if self.stale:
            lines.append(
                f"Stale: {self.stale} of {self.decided} decisions were made under "
                "another rubric or other judges. Review these rows again."
            )
        return lines


@dataclass(frozen=True)
class _Reviewed:
    """One row with a person's decision."""

    stratum: Stratum
    verdicts: tuple[str, ...]
    """The status of each judge's verdict."""
    approved: bool


@dataclass(frozen=True)
class _Weighted:
    """Whether a judge and a person accept a row, and how many rows it stands for."""

    accepted: bool
    approved: bool
    weight: float


def compare_with_people(store: Store, recipe: Recipe) -> PeopleTable | None:
    """Compare the judges with the decisions of a run directory.

    Returns:
        None if nobody has accepted or rejected a row.
    """
    decisions = read_own_decisions(store)
    decided = by_row(decisions)
    if not decided:
        return None
    sizes: Counter[Stratum] = Counter()
    reviewed: list[_Reviewed] = []
    judges: list[str] = []
    for sample in _iter_judged(store, recipe):
        judges = judges or [verdict.judge for verdict in sample.verdicts]
        stratum = _stratum(sample, recipe)
        sizes[stratum] += 1
        if sample.id in decided:
            approves = decided[sample.id].approves
            reviewed.append(_Reviewed(stratum, stratum.verdicts, approves))
    effective = [one for one in latest(decisions).values() if one.decision != "skip"]
    return PeopleTable(
        reviewers=sorted({decision.reviewer for decision in effective}),
        decided=len(decided),
        stale=_count_stale(decided, recipe),
        scores=list(_scores(judges, recipe.schemes, reviewed, sizes)),
        agreements=list(_agreements(effective)),
    )


def _iter_judged(store: Store, recipe: Recipe) -> Iterator[Sample]:
    for scheme in recipe.schemes:
        for status in STATUSES:
            for sample in iter_samples(store, scheme, status):
                if sample.verdicts and sample.gate in _BY_VERDICT:
                    yield sample


def _stratum(sample: Sample, recipe: Recipe) -> Stratum:
    """Return the stratum of a row by its verdicts alone, which no person changes."""
    return stratum_of(sample, recipe.filter.accept_rating)._replace(gate="")


def _count_stale(decided: dict[str, Decision], recipe: Recipe) -> int:
    rubrics = {
        scheme: rubric_fingerprint(recipe.filter.rubric(scheme))
        for scheme in recipe.schemes
    }
    judge = judge_fingerprint(recipe)
    return sum(
        decision.rubric != rubrics.get(decision.scheme) or decision.judge != judge
        for decision in decided.values()
    )


def _scores(
    judges: list[str],
    schemes: tuple[str, ...],
    reviewed: list[_Reviewed],
    sizes: Counter[Stratum],
) -> Iterator[JudgeScores]:
    """Yield the scores of each judge: in all schemes, then in each one with decisions."""
    counts = Counter(row.stratum for row in reviewed)
    for index, judge in enumerate(judges):
        by_scheme: dict[str, list[_Weighted]] = defaultdict(list)
        for row in reviewed:
            status = row.verdicts[index]
            if status == "failed":
                continue
            weight = sizes[row.stratum] / counts[row.stratum]
            weighted = _Weighted(status == "accepted", row.approved, weight)
            by_scheme[""].append(weighted)
            by_scheme[row.stratum.scheme].append(weighted)
        for scheme in ("", *schemes):
            if scheme in by_scheme:
                yield _score(judge, scheme, by_scheme[scheme])


def _score(judge: str, scheme: str, rows: list[_Weighted]) -> JudgeScores:
    accepted = [row for row in rows if row.accepted]
    approved = [row for row in rows if row.approved]
    base_rate = _share_of(rows, [row.approved for row in rows])
    precision = _share_of(accepted, [row.approved for row in accepted])
    recall = _share_of(approved, [row.accepted for row in approved])
    agreement, interval = _weighted_kappa(rows)
    return JudgeScores(
        judge, scheme, len(rows), *base_rate, *precision, *recall, agreement, interval
    )


def _share_of(
    rows: list[_Weighted], hits: list[bool]
) -> tuple[float | None, list[float] | None]:
    """Return the weighted share of the rows that are hits, and its interval."""
    if not rows:
        return None, None
    total = sum(row.weight for row in rows)
    part = sum(row.weight for row, hit in zip(rows, hits, strict=True) if hit)
    size = _effective_size(rows)
    return round(part / total, 4), wilson(round(size * part / total), size)


def _effective_size(rows: list[_Weighted]) -> int:
    """Return the size of a simple sample that would be as precise, at least 1."""
    total = sum(row.weight for row in rows)
    squares = sum(row.weight**2 for row in rows)
    return max(1, round(total**2 / squares))


def _weighted_kappa(
    rows: list[_Weighted],
) -> tuple[float | None, list[float] | None]:
    total = sum(row.weight for row in rows)
    table = [[0.0, 0.0], [0.0, 0.0]]
    for row in rows:
        table[row.accepted][row.approved] += row.weight / total
    value = kappa(
        [row.accepted for row in rows],
        [row.approved for row in rows],
        [row.weight for row in rows],
    )
    interval = kappa_ci95(table, _effective_size(rows)) if value is not None else None
    return value, interval


def _agreements(decisions: list[Decision]) -> Iterator[ReviewerAgreement]:
    """Yield the agreement of each two reviewers that have rows in common."""
    approvals: dict[str, dict[str, bool]] = defaultdict(dict)
    for decision in decisions:
        approvals[decision.reviewer][decision.id] = decision.approves
    for pair in combinations(sorted(approvals), 2):
        first, second = approvals[pair[0]], approvals[pair[1]]
        ids = sorted(first.keys() & second.keys())
        if not ids:
            continue
        rows = [_Weighted(first[id], second[id], 1.0) for id in ids]
        same = sum(row.accepted == row.approved for row in rows)
        yield ReviewerAgreement(
            pair,
            len(ids),
            share(same, len(ids)),
            wilson(same, len(ids)),
            *_weighted_kappa(rows),
        )
