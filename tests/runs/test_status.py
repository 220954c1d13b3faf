"""How far a run is."""

import pytest

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.runs.status import render
from bezoar_ray.store import Store


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (None, RecipeError, "has no summary.json"),
        ("{}", RecipeError, "has no summary.json"),
        ('{"run": ', BezoarError, "summary.json is not valid JSON"),
    ],
)
def test_a_folder_without_a_run_is_named(tmp_path, text, error, says):
    if text:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(error, match=says):
        render(Store(tmp_path))
