"""What goes along with a job."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.recipe import load_recipe, parse_recipe
from bezoar_ray.runs.submit import Jobs, packed, runtime_env

PINS = Path(__file__).parents[2] / "cluster/requirements-gpu.txt"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with files that a recipe names."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "seeds/a.jsonl",
        "seeds/b.jsonl",
        "mine.py",
        "rubric.txt",
        "topics.txt",
        "chat.jinja",
        "other.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"content of {name}")
    return tmp_path


def test_the_files_that_a_recipe_names_go_along_and_no_others(folder):
    recipe = load_recipe(
        "tiny",
        [
            "seeds.dolly=[{source: seeds/*.jsonl}]",
            "generate.own={riddles: {function: mine.py:riddles}}",
            "filter.rubrics={lamini: rubric.txt}",
            "generate.lamini.topics=topics.txt",
            "chat_template=chat.jinja",
        ],
    )
    with packed(recipe) as sent:
        names = sorted(
            str(path.relative_to(sent)) for path in sent.rglob("*") if path.is_file()
        )
        assert names == [
            "chat.jinja",
            "mine.py",
            "recipe.yaml",
            "rubric.txt",
            "seeds/a.jsonl",
            "seeds/b.jsonl",
            "topics.txt",
        ]
        assert (
            parse_recipe(yaml.safe_load((sent / "recipe.yaml").read_text()), "sent")
            == recipe
        )
    assert not sent.exists()


@pytest.mark.parametrize(
    "setting", ["base.model=seeds", "seeds.dolly=[{source: ../outside.jsonl}]"]
)
def test_what_cannot_go_along_is_named_with_the_remedy(folder, setting):
    (folder.parent / "outside.jsonl").write_text("")
    with pytest.raises(
        RecipeError,
        match="cannot be uploaded with the job. Put it where all nodes see it",
    ):
        packed(load_recipe("tiny", [setting])).__enter__()


def test_no_key_is_in_what_ray_sets_up(folder, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with packed(load_recipe("tiny"), str(PINS)) as sent:
        found = runtime_env(sent)
        assert (
            "sk-secret" not in str(found)
            and (sent / "bezoar-requirements.txt").read_bytes() == PINS.read_bytes()
        )
    assert (
        found["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "30"
    )  # for training's last checkpoint
    assert found["py_modules"][0].endswith("bezoar_ray") and "uv" in found
    assert (
        len(str(found)) < 10_000
    )  # one environment variable, of at most 128 KiB, hands it on
    with packed(load_recipe("tiny")) as sent:
        assert "uv" not in runtime_env(sent)


def test_a_connection_that_is_lost_while_a_job_is_followed_is_told_with_the_remedy():
    class Lost:
        async def tail_job_logs(self, id):
            yield "generate 1/2\n"
            raise RuntimeError("WebSocket closed")

    jobs = Jobs.__new__(Jobs)
    jobs._client = Lost()
    with pytest.raises(
        BezoarError,
        match=r"lost the connection .* job one may .*: RuntimeError WebSocket closed.*--follow",
    ):
        jobs.follow("one")


def test_a_jobs_number_follows_the_last_ones_although_an_earlier_one_was_deleted():
    found = []
    jobs = Jobs.__new__(Jobs)
    jobs._client = SimpleNamespace(list_jobs=lambda: found)
    for wanted in ("-1", "-2", "-3", "-4"):
        id = jobs._next_id("tiny", "d")
        assert id.endswith(wanted)
        found.append(
            SimpleNamespace(submission_id=id, metadata={"bezoar_run_dir": "d"})
        )
        del found[:-1]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("run", ["run", "tiny"]),
        ("generate", ["run", "tiny", "--stages", "generate,filter"]),
        ("train", ["run", "tiny", "--stages", "sft,hh-sft,align"]),
        ("evaluate", ["run", "tiny", "--stages", "evaluate,report"]),
        ("serve", ["serve", "tiny"]),
    ],
)
def test_the_jobs_are_commands_of_ours(monkeypatch, name, arguments):
    called = []
    monkeypatch.setattr("bezoar_ray.cli.main", lambda given: called.append(given) or 0)
    monkeypatch.setattr("sys.argv", [f"{name}.py", "tiny"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(
            str(Path(__file__).parents[2] / f"jobs/{name}.py"), run_name="__main__"
        )
    assert ended.value.code == 0 and called == [arguments]


def test_an_address_where_nothing_answers_is_named():
    with pytest.raises(
        RecipeError, match="--address http://127.0.0.1:9: .*dashboard's address"
    ):
        Jobs("http://127.0.0.1:9")
    with pytest.raises(
        RecipeError,
        match=r"--address head:8265: expected the dashboard's URL, as in http://",
    ):
        Jobs("head:8265")
