"""Workers whose rows do not come out even make equally many passes, and train what one worker would."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bezoar_ray.recipe import Recipe
from bezoar_ray.train.packing import Layout
from bezoar_ray.train.pass_size import PassSize
from tests.cluster.nodes import free_port
from tests.train.test_passes import trained

ROWS, BATCH = (
    7,
    4,
)  # the last step has three rows: two for one worker, one for the other
SIZES = {
    "a row": PassSize(rows=1),
    "tokens": PassSize(tokens=100),
    "all": PassSize(rows=4),
}
METHODS = ("sft", "dpo", "orpo", "ratings", "preferences")


def cases() -> list[tuple[str, str]]:
    return [(method, size) for method in METHODS for size in SIZES]


def train_all(recipe: Recipe, folder: Path, workers: int) -> dict[tuple[str, str], Any]:
    """Losses and adapter of each case, on this worker."""
    return {
        (method, size): trained(
            recipe,
            folder / "work",
            method,
            SIZES[size],
            Layout("flat"),
            rows=ROWS,
            batch=BATCH,
            workers=workers,
        )
        for method, size in cases()
    }


def main() -> None:
    """A worker of two, started by the test."""
    import datetime

    import torch.distributed as dist

    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", timeout=datetime.timedelta(seconds=60)
    )  # a worker that waits alone fails
    recipe = Recipe.model_validate_json((folder / "recipe.json").read_text())
    found = train_all(recipe, folder, workers=2)
    torch.save(found, folder / f"rank-{dist.get_rank()}.pt")


@pytest.fixture(scope="module")
def found(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one worker trains, and each of two."""
    folder = tmp_path_factory.mktemp("workers")
    (folder / "recipe.json").write_text(recipe.model_dump_json())
    together = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.test_several_workers", str(folder)],
            env=os.environ | together | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    one = train_all(recipe, folder, workers=1)
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors[-3000:]
    return {"one": one} | {
        str(rank): torch.load(folder / f"rank-{rank}.pt") for rank in range(2)
    }


@pytest.mark.parametrize(("method", "size"), cases())
def test_two_workers_train_what_one_does(
    found: dict[str, Any], method: str, size: str
) -> None:
    losses, adapter = found["one"][method, size]
    assert len(losses) == 4 and len(set(losses)) == 4
    for rank in ("0", "1"):
        others, other = found[rank][method, size]
        assert others == (pytest.approx(losses, abs=1e-4) if rank == "0" else others)
        for name, weight in adapter.items():
            assert torch.allclose(other[name], weight, atol=1e-4), name


if __name__ == "__main__":
    main()
