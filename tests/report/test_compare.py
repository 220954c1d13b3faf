"""What a user sees of runs side by side."""

import tracemalloc

import orjson
import pytest

from bezoar_ray.cli import main
from bezoar_ray.data.sample_io import ROWS_PER_FILE, SampleFiles, read_samples
from bezoar_ray.recipe import load_recipe
from bezoar_ray.report import preview
from bezoar_ray.report.compare import as_page, as_text, compare
from bezoar_ray.report.content import gather
from bezoar_ray.store import Store
from tests.report.test_report_stage import sample, summary
from tests.rows_on_disk import write_samples


def run(folder, beta: float, dpo: float):
    """A run directory whose recipe and results are known."""
    store, recipe = Store(folder), load_recipe("tiny", [f"align.beta={beta}"])
    write_samples(
        store,
        "lamini",
        "accepted",
        [sample("lamini", number, "accepted", "") for number in range(12)],
    )
    found = summary()
    found["train"]["dpo"]["heldout_accuracy"] = dpo
    store.replace_json("summary.json", found)
    store.replace("recipe.yaml", recipe.model_dump_json())
    return folder.name, recipe, store


def peak(work) -> int:
    """Bytes that it holds at most."""
    tracemalloc.start()
    work()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


@pytest.mark.parametrize("status", ["accepted", "rejected"])
def test_report_comparison_and_preview_hold_a_part_of_the_rows_at_a_time(
    tmp_path, status
):
    name, recipe, store = run(tmp_path / "many", 0.1, 0.81)
    rows = [
        sample("lamini", number, status, "judge" if status == "rejected" else "")
        for number in range(20_000)
    ]
    files = SampleFiles(store, ["lamini"], [status])
    for start in range(0, len(rows), ROWS_PER_FILE):
        files.write(rows[start : start + ROWS_PER_FILE])
    del rows
    whole = peak(lambda: read_samples(store, "lamini", status))
    for show in (
        lambda: gather(recipe, store),
        lambda: compare([(name, recipe, store), ("again", recipe, store)]),
        lambda: preview.show(store, recipe.schemes),
    ):
        show()  # what it imports
        assert peak(show) < whole / 10


@pytest.fixture
def runs(tmp_path):
    return [run(tmp_path / "weak", 0.1, 0.81), run(tmp_path / "strong", 0.5, 0.93)]


def test_only_what_differs_in_the_recipes_is_shown(runs):
    assert compare(runs).differences == [("align.beta", ["0.1", "0.5"])]


def test_results_stand_side_by_side_and_what_is_missing_is_a_dash(runs):
    _, _, weak = runs[0]
    found = weak.read_json("summary.json")
    found["train"]["dpo"]["heldout_ci95"] = [0.7222, 0.8749]
    weak.replace_json("summary.json", found)
    _, _, store = runs[1]  # of an earlier version, without intervals
    found = store.read_json("summary.json")
    del found["train"]["sft"]
    store.replace_json("summary.json", found)
    results = compare(runs).results
    assert dict(results["held-out pair accuracy, 95 % interval"])["dpo"] == [
        "81.0 % (72.2 to 87.5)",
        "93.0 %",
    ]
    assert dict(results["held-out pair accuracy, 95 % interval"])["sft"][1] == "–"
    assert dict(results["rows accepted"])["lamini"] == ["12 of 29", "12 of 29"]
    assert dict(results["dollars"])["teacher"] == ["1.25", "1.25"]
    assert (
        dict(results["MT-Bench, 95 % interval"])["dpo"][0]
        == "5.00 (4.50 to 5.50; flips 13 %; longer wins 68 %)"
    )
    assert dict(results["served as"])["dpo"] == ["joined", "joined"]


@pytest.mark.parametrize(
    ("ids", "name"),
    [
        ([range(81, 161)] * 2, "MT-Bench"),
        ([range(1, 4)] * 2, "embedded questions (3, in MT-Bench's form)"),
        ([range(81, 161), range(1, 4)], "graded answers"),
    ],
)
def test_grades_stand_under_the_name_of_their_questions(runs, ids, name):
    for asked, (_, _, store) in zip(ids, runs, strict=True):
        lines = b"".join(orjson.dumps({"question_id": id}) + b"\n" for id in asked)
        store.replace("eval/mt_bench/question.jsonl", lines)
    assert f"{name}, 95 % interval" in compare(runs).results


def test_metrics_that_enter_no_mean_stand_side_by_side_with_their_direction(runs):
    for value, (_, _, store) in zip((0.9, 0.8), runs, strict=True):
        found = store.read_json("summary.json")
        bits = {"value": value, "stderr": None, "higher_is_better": False}
        found["eval"]["harness"]["dpo"]["tiny_choice"] = {
            "acc": {"value": 0.5, "stderr": 0.1},
            "bits_per_byte": bits,
        }
        store.replace_json("summary.json", found)
    lines = dict(compare(runs).results["harness, other metrics"])
    assert lines["dpo: tiny_choice bits_per_byte, lower is better"] == [
        "0.900",
        "0.800",
    ]


def test_metrics_of_bias_stand_side_by_side_with_their_ideal(runs):
    for value, (_, _, store) in zip((0.7, 0.5), runs, strict=True):
        found = store.read_json("summary.json")
        found["eval"]["harness"]["dpo"]["tiny_askers"] = {
            "acc": {"value": value, "stderr": 0.1}
        }
        store.replace_json("summary.json", found)
    results = compare(runs).results
    assert dict(results["social bias"])["dpo: tiny_askers acc, ideal 0.5"] == [
        "0.700 ± 0.100",
        "0.500 ± 0.100",
    ]


def test_the_command_prints_a_table_and_writes_a_page(runs, tmp_path, capsys):
    page = tmp_path / "side.html"
    assert (
        main(
            [
                "compare",
                str(tmp_path / "weak"),
                str(tmp_path / "strong"),
                "--page",
                str(page),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "align.beta" in printed and "93.0 %" in printed and str(page) in printed
    assert "<td>align.beta</td><td>0.1</td><td>0.5</td>" in page.read_text()


def test_text_of_runs_is_escaped(runs):
    name, recipe, store = runs[0]
    page = as_page(compare([("<script>x</script>", recipe, store), runs[1]]))
    assert "<script>" not in page
    assert "weak" not in as_text(compare(runs[1:]))


def test_a_folder_that_is_no_run_is_named(tmp_path, capsys):
    assert main(["compare", str(tmp_path)]) == 2
    assert f"{tmp_path} is not a run directory" in capsys.readouterr().err
