"""A cap on a scheme's rows that prefers diverse instructions."""

from collections import Counter
from collections.abc import Iterable, Sequence

_MAX_CLUSTERS = 256
_FEATURES = 2**16


def choose_rows(
    instructions: Iterable[str], ratings: Sequence[float], cap: int
) -> list[bool]:
    """Decide which `cap` rows to keep, by clusters of similar instructions.

    The best rated row of each cluster is kept, then the second best of each, until
    there are enough. The first row wins a tie. The clusters are those of scikit-learn's
    k-means over hashed words.

    Args:
        instructions: The instruction of each row. It is read once.
        ratings: The rating of each row.
        cap: The number of rows to keep.

    Returns:
        Whether to keep each row, in order.
    """
    if len(ratings) <= cap:
        return [True] * len(ratings)
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(n_features=_FEATURES, alternate_sign=False)
    vectors = vectorizer.transform(instructions)
    # A fixed state, so that a rerun keeps the same rows.
    kmeans = MiniBatchKMeans(min(cap, _MAX_CLUSTERS), random_state=0, n_init=1)
    clusters = kmeans.fit_predict(vectors)

    # sorted() is stable, so rows with equal ratings stay in order.
    best_first = sorted(range(len(ratings)), key=lambda row: -ratings[row])
    taken: Counter[int] = Counter()
    ranked = []
    for row in best_first:
        rank_in_cluster = taken[clusters[row]]
        ranked.append((rank_in_cluster, -ratings[row], row))
        taken[clusters[row]] += 1
    kept = {row for _, _, row in sorted(ranked)[:cap]}
    return [row in kept for row in range(len(ratings))]
