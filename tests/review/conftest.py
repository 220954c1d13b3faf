"""A run directory with rows to review."""

from pathlib import Path

import pytest
import yaml

from bezoar_ray.data.schema import Sample, Verdict, row_id
from bezoar_ray.recipe import load_recipe
from bezoar_ray.store import Store
from tests.rows_on_disk import write_samples

ATTACK = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
"""The text of every response: it must be shown, and do nothing."""


def make_rows(accepted: int, rejected: int) -> list[Sample]:
    """Rows of one scheme that a judge accepted or rejected, and what it said."""
    rows = []
    for number in range(accepted + rejected):
        status = "accepted" if number < accepted else "rejected"
        verdict = Verdict(
            "tiny-judge", status, 5.0 if status == "accepted" else 2.0, "secret reason"
        )
        rows.append(
            Sample(
                id=row_id("review", number),
                scheme="lamini",
                operation="x",
                instruction=f"Task {number}",
                input="a, b, c" if number % 2 else "",
                response=f"Answer {number} {ATTACK}",
                status=status,
                reason="" if status == "accepted" else "judge",
                verdicts=[verdict],
            )
        )
    return rows


def write_run(folder: Path, rows: list[Sample], *overrides: str) -> Store:
    """A run directory with these rows, as the filter leaves it."""
    store = Store(folder)
    recipe = load_recipe("tiny", overrides)
    store.replace("recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json")))
    for status in ("accepted", "rejected"):
        some = [row for row in rows if row.status == status]
        write_samples(store, "lamini", status, some)
    return store


@pytest.fixture
def run_store(tmp_path: Path) -> Store:
    """A run with 6 accepted and 4 rejected rows."""
    return write_run(tmp_path / "run", make_rows(6, 4))
