"""Reading whole sources: files of each kind, malformed rows, the hub, the real data."""

import gzip
import os

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bezoar_ray import sources
from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import SourceSection
from bezoar_ray.sources import hub_rows

ROWS = [
    {
        "instruction": f"Say {n}",
        "context": "",
        "response": str(n),
        "category": "open_qa",
    }
    for n in range(5)
]
LINES = b"".join(orjson.dumps(row) + b"\n" for row in ROWS)


def part(path, **fields) -> SourceSection:
    return SourceSection(source=str(path), **fields)


def test_jsonl_gz_and_parquet_hold_the_same_seeds(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        loaded = sources.read([part(tmp_path / name, license="CC0")], "dolly")
        assert [seed.instruction for seed in loaded.rows] == [
            row["instruction"] for row in ROWS
        ]
        assert {seed.license for seed in loaded.rows} == {"CC0"}
        assert loaded.failed == []


def test_a_malformed_row_is_named_by_file_and_line_and_the_others_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        LINES + b'{"instruction": ""}\n\n{"instruction": "torn\n[1, 2]\n' + LINES
    )
    loaded = sources.read([part(path)], "dolly")
    assert len(loaded.rows) == 10
    assert [message.partition(": ")[0] for message in loaded.failed] == [
        f"{path}:{line}" for line in (6, 8, 9)
    ]
    assert "empty `instruction`" in loaded.failed[0]
    assert "not valid JSON" in loaded.failed[1]
    assert "expected an object" in loaded.failed[2]


def test_a_glob_reads_files_in_order_and_limit_is_a_sources_own(tmp_path):
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_bytes(LINES)
    loaded = sources.read(
        [part(tmp_path / "*.jsonl", limit=7), part(tmp_path / "b.jsonl", limit=2)],
        "dolly",
    )
    names = [seed.source.removeprefix(f"{tmp_path.name}/") for seed in loaded.rows]
    assert names == ["a.jsonl"] * 5 + ["b.jsonl"] * 2 + ["b.jsonl#2"] * 2
    assert len({seed.id for seed in loaded.rows}) == 9


def test_files_of_one_name_in_several_folders_keep_their_ids_apart(tmp_path):
    for folder in ("a/train", "b/train"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.jsonl").write_bytes(LINES)
    loaded = sources.read([part(tmp_path / "**/x.jsonl")], "dolly")
    assert len({seed.id for seed in loaded.rows}) == len(loaded.rows) == 10


def test_ids_stay_when_the_data_moves(tmp_path):
    for place in ("here", "there"):
        (tmp_path / place / "dolly").mkdir(parents=True)
        (tmp_path / place / "dolly" / "a.jsonl").write_bytes(LINES)
    here, there = (
        sources.read([part(tmp_path / place / "dolly/a.jsonl")], "dolly")
        for place in ("here", "there")
    )
    assert here == there


def test_a_missing_file_names_field_value_and_remedy(tmp_path):
    with pytest.raises(
        RecipeError, match=r"seeds\.flan: no file '.*none\.jsonl'.*Give a path or glob"
    ):
        sources.read([part(tmp_path / "none.jsonl")], "flan")


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(LINES)[:-20])
    (tmp_path / "no.parquet").write_text("x")
    for name in ("a.csv", "torn.jsonl.gz", "no.parquet"):
        with pytest.raises(RecipeError, match=rf"seeds\.dolly: cannot read '.*{name}'"):
            sources.read([part(tmp_path / name)], "dolly")


def test_a_hub_source_wants_a_revision():
    with pytest.raises(RecipeError, match="needs `revision`"):
        sources.read([part("hub:databricks/databricks-dolly-15k")], "dolly")


def test_a_hub_that_does_not_answer_is_an_error_with_a_remedy(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        RecipeError, match=r"seeds\.dolly: cannot read 'hub:no/such'.*give local files"
    ):
        sources.read([part("hub:no/such", revision="0" * 40)], "dolly")


def test_hub_rows_are_streamed_up_to_the_limit(tmp_path, monkeypatch):
    """`datasets` reads a folder of that name as it reads the hub; what comes after the limit would be an error."""
    card = "---\nconfigs: [{config_name: c, data_files: [{split: train, path: [0.jsonl, 1.jsonl]}]}]\n---\n"
    (tmp_path / "a/b").mkdir(parents=True)
    for name, content in (
        ("README.md", card.encode()),
        ("0.jsonl", LINES[: LINES.index(b"\n") + 1] * 3),
    ):
        (tmp_path / "a/b" / name).write_bytes(content)
    (tmp_path / "a/b/1.jsonl").write_bytes(b"{broken")
    monkeypatch.chdir(tmp_path)
    real = hub_rows._stream

    def watched(name, config, source):
        assert (name, config, source.revision) == ("a/b", "c", "1")
        return real(name, config, source)

    monkeypatch.setattr(hub_rows, "_stream", watched)
    loaded = sources.read([part("hub:a/b:c", revision="1", limit=3)], "dolly")
    assert [seed.source for seed in loaded.rows] == ["hub:a/b:c"] * 3
    assert len({seed.id for seed in loaded.rows}) == 3


def test_the_embedded_world_knows_its_licence(tiny_world):
    for loaded in (
        sources.read([part("tiny")], "dolly"),
        sources.read([part("tiny")], "flan"),
    ):
        assert loaded.failed == []
        assert {(seed.source, seed.license) for seed in loaded.rows} == {
            ("tiny", "Apache-2.0 (embedded)")
        }
    pairs = sources.read_pairs([part("tiny")])
    assert pairs.failed == [] and len(pairs.rows) > 100


def test_real_dolly_flan_and_hh_rlhf(real_data):
    dolly = sources.read([part(real_data / "dolly/*.jsonl")], "dolly")
    assert (len(dolly.rows), dolly.failed) == (120, [])
    flan = sources.read(
        [part(real_data / "flan/cot.jsonl"), part(real_data / "flan/t0.jsonl")], "flan"
    )
    assert (len(flan.rows), len(flan.failed)) == (1400 + 1276 - 84, 84)
    assert all("empty `targets`" in message for message in flan.failed)
    assert {seed.task_source for seed in flan.rows} == {"CoT", "T0"}
    pairs = sources.read_pairs([part(real_data / "hh-rlhf/*.jsonl.gz")])
    assert len(pairs.rows) + len(pairs.failed) == 1800
    assert (
        len(pairs.failed) == 9
    )  # empty answers, two answers in a row, sides that part earlier
    assert all(
        pair.prompt[-1]["role"] == "user" and pair.chosen != pair.rejected
        for pair in pairs.rows
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_first_row_is_read_whatever_windows_puts_before_it(tmp_path, encoding, end):
    text = "".join(
        orjson.dumps(row | {"response": "é日"}).decode() + end for row in ROWS
    )
    (tmp_path / "a.jsonl").write_bytes(text.encode(encoding))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode(encoding)))
    for name in ("a.jsonl", "a.jsonl.gz"):
        loaded = sources.read([part(tmp_path / name)], "dolly")
        assert [seed.instruction for seed in loaded.rows] == [
            row["instruction"] for row in ROWS
        ]
        assert {seed.response for seed in loaded.rows} == {"é日"} and not loaded.failed


def test_utf16_without_a_mark_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES.decode().encode("utf-16-le"))
    with pytest.raises(
        RecipeError, match="zero bytes, as UTF-16 has them: save it as UTF-8"
    ):
        sources.read([part(tmp_path / "a.jsonl")], "dolly")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_are_null(tmp_path, number):
    (tmp_path / "a.jsonl").write_text(
        f'{{"instruction": "Q", "context": {number}, "response": "A"}}\n'
    )
    (seed,) = sources.read([part(tmp_path / "a.jsonl")], "dolly").rows
    assert (seed.input, seed.response) == ("", "A")


@pytest.mark.parametrize(
    "name", ["data[1].jsonl", "what?.jsonl", "a*.jsonl", "{b}.jsonl"]
)
def test_a_files_own_name_is_no_pattern(tmp_path, name):
    (tmp_path / name).write_bytes(LINES)
    assert len(sources.read([part(tmp_path / name)], "dolly").rows) == 5


def test_a_name_that_is_no_utf8_is_shown_as_well_as_it_can_be(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/a.jsonl", "wb") as file:
        file.write(LINES + b"{}\n")
    loaded = sources.read([part(f"{tmp_path}/caf*/a.jsonl")], "dolly")
    assert {seed.source for seed in loaded.rows} == {"caf\ufffd/a.jsonl"} and len(
        loaded.rows
    ) == 5
    assert orjson.dumps(loaded.failed)


def test_a_pandas_frame_is_read_with_its_numbers_and_gaps(tmp_path):
    rows = [{"instruction": "Q", "context": None, "response": "A", "category": 3}]
    text = pa.large_string()
    columns = [
        ("instruction", text),
        ("context", pa.float64()),
        ("response", text),
        ("category", pa.int64()),
    ]
    table = pa.Table.from_pylist(rows, schema=pa.schema(columns))
    pq.write_table(table, tmp_path / "a.parquet")
    (seed,) = sources.read([part(tmp_path / "a.parquet")], "dolly").rows
    assert (seed.input, seed.category) == ("", "3")


def test_half_a_character_beside_a_nan_is_a_malformed_row(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"instruction": "Sum \\ud83d up", "context": NaN}\n'
    )
    loaded = sources.read([part(tmp_path / "a.jsonl")], "dolly")
    assert not loaded.rows and "not valid JSON" in loaded.failed[0]


def test_places_in_a_list_are_no_marks_of_citations(tmp_path):
    (tmp_path / "code.jsonl").write_text(
        '{"instruction": "Why?", "context": "x = a[0] + a[1]"}\n'
    )
    (seed,) = sources.read([part(tmp_path / "code.jsonl")], "dolly").rows
    assert seed.input == "x = a[0] + a[1]"
