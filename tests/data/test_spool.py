from dataclasses import dataclass

import pytest

from bezoar_ray.data.row import StageRow
from bezoar_ray.data.spool import SpoolWriter, spool_rows


@dataclass(frozen=True)
class Number(StageRow):
    id: str


def numbers(count):
    return [Number(str(number)) for number in range(count)]


@pytest.mark.parametrize("count", [1, 4, 5, 1000, 10_001])
@pytest.mark.parametrize("slots", [1, 16, 64])
def test_every_row_is_in_one_block_in_order(tmp_path, count, slots):
    spool = spool_rows(numbers(count), tmp_path / "rows.arrow", Number)
    assert list(spool) == numbers(count)
    blocks = [spool.read(block) for block in spool.blocks(slots)]
    assert [row for block in blocks for row in block] == numbers(count)


def test_small_runs_have_small_blocks_and_large_runs_have_few_blocks(tmp_path):
    sizes = {}
    for count in (300, 10_000, 100_000):
        spool = spool_rows(numbers(count), tmp_path / f"{count}.arrow", Number)
        blocks = spool.blocks(64)
        sizes[count] = len(blocks), len(spool.read(blocks[0]))
    assert sizes == {300: (75, 4), 10_000: (157, 64), 100_000: (1000, 100)}


def test_nothing_written_is_nothing_to_read(tmp_path):
    empty = SpoolWriter(tmp_path / "new folder/rows.arrow", Number).close()
    assert list(empty) == empty.blocks(64) == []
