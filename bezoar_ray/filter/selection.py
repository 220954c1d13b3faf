"""A cap on a scheme's rows that prefers diverse instructions: rows are taken in turn from clusters of like wording."""

from collections import Counter
from collections.abc import Iterable, Sequence

_CLUSTERS = 256
_FEATURES = 2**16


def choose(tasks: Iterable[str], ratings: Sequence[float], cap: int) -> list[bool]:
    """Which rows to keep, `cap` of them: of each cluster of instructions the best rated, then the second best of each,
    until there are enough. The first row wins a tie. Clusters are scikit-learn's k-means over hashed words."""
    if len(ratings) <= cap:
        return [True] * len(ratings)
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.feature_extraction.text import HashingVectorizer

    vectors = HashingVectorizer(n_features=_FEATURES, alternate_sign=False).transform(
        tasks
    )
    clusters = MiniBatchKMeans(
        min(cap, _CLUSTERS), random_state=0, n_init=1
    ).fit_predict(vectors)
    taken: Counter[int] = Counter()
    ranked = []
    for row in sorted(
        range(len(ratings)), key=lambda row: -ratings[row]
    ):  # stable: ties stay in order
        ranked.append((taken[clusters[row]], -ratings[row], row))
        taken[clusters[row]] += 1
    kept = {row for _, _, row in sorted(ranked)[:cap]}
    return [row in kept for row in range(len(ratings))]
