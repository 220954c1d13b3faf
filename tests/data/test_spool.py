import pytest

from bezoar_ray.data.spool import ItemWriter, spool


def items(count):
    return [str(number).encode() for number in range(count)]


@pytest.mark.parametrize("count", [1, 4, 5, 1000, 10_001])
@pytest.mark.parametrize("slots", [1, 16, 64])
def test_every_item_is_in_one_cell_in_order(tmp_path, count, slots):
    spooled = spool(items(count), tmp_path / "items.arrow")
    assert list(spooled) == items(count)
    assert [
        item for cell in spooled.cells(slots) for item in spooled.read(cell)
    ] == items(count)


def test_cells_are_few_items_for_small_runs_and_few_cells_for_large_ones(tmp_path):
    sizes = {}
    for count in (300, 10_000, 100_000):
        spooled = spool(items(count), tmp_path / f"{count}.arrow")
        cells = spooled.cells(64)
        sizes[count] = len(cells), len(spooled.read(cells[0]))
    assert sizes == {300: (75, 4), 10_000: (157, 64), 100_000: (1000, 100)}


def test_nothing_written_is_nothing_to_read(tmp_path):
    empty = ItemWriter(tmp_path / "new folder/items.arrow").close()
    assert list(empty) == empty.cells(64) == []
