"""A cache into which nothing can be written is named before any work, with who says where it is and what to do."""

from pathlib import Path

import pytest

from bezoar_ray.cli import main
from bezoar_ray.recipe import load_recipe
from bezoar_ray.runs import doctor
from bezoar_ray.runs.preflight import check
from bezoar_ray.runtime.caches import hub_cache, unwritable
from bezoar_ray.runtime.embedded_world import is_world_missing
from bezoar_ray.stages import working_stages

VARIABLES = (
    "BEZOAR_CACHE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "XDG_CACHE_HOME",
    "RAY_ADDRESS",
)
HUB = ["base.model=org/base", "seeds.dolly=[]"]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a cache, and with a home of its own."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file, where a folder is expected: not even root can write below it."""
    (tmp_path / "file").write_text("x")
    return tmp_path / "file"


def test_a_cache_that_can_be_made_is_no_problem_and_is_not_made(tmp_path):
    assert list(unwritable(True, True, True)) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "a/b"])
def test_a_variable_that_names_a_file_is_named(file, monkeypatch, below):
    monkeypatch.setenv("BEZOAR_CACHE", str(file / below))
    (problem,) = unwritable(embedded=True, hub=True, datasets=True)
    assert problem == (
        f"the cache {file / below} (named by BEZOAR_CACHE) cannot be written: {file}: Not a directory. Fix that, or "
        "set BEZOAR_CACHE to a folder on a disk with free space"
    )


def test_the_default_is_named_as_such(tmp_path):
    (tmp_path / ".cache").write_text("x")
    embedded, hub, datasets = unwritable(True, True, True)
    assert f"the cache {tmp_path}/.cache/bezoar_ray (the default) cannot" in embedded
    assert (
        f"the cache {tmp_path}/.cache/huggingface/hub (the default) cannot" in hub
        and "set HF_HUB_CACHE" in hub
    )
    assert (
        "huggingface/datasets (the default) cannot" in datasets
        and "set HF_DATASETS_CACHE" in datasets
    )


@pytest.mark.parametrize("name", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_each_variable_that_leads_to_the_hubs_cache_is_named(file, monkeypatch, name):
    monkeypatch.setenv(name, str(file))
    (problem,) = unwritable(hub=True)
    assert (
        f"the cache {hub_cache()} (named by {name}) cannot be written: {file}: Not a directory"
        in problem
    )


def test_a_link_to_nowhere_and_a_file_system_that_takes_nothing_are_found(
    tmp_path, monkeypatch
):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for folder in (tmp_path / "link", Path("/proc/bezoar")):
        monkeypatch.setenv("BEZOAR_CACHE", str(folder))
        (problem,) = unwritable(embedded=True)
        assert (
            f"the cache {folder} (named by BEZOAR_CACHE) cannot be written: " in problem
        )


def test_a_full_disk_is_found(monkeypatch, tmp_path):
    """As a limit on the size of files, which a full disk's error resembles."""
    import resource
    import signal

    before, handler = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        problems = list(unwritable(embedded=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (
        len(problems) == 1
        and f"cannot be written: {tmp_path}: File too large" in problems[0]
    )


def test_a_run_is_refused_before_anything_is_written(
    file, monkeypatch, capsys, tmp_path
):
    monkeypatch.setenv("BEZOAR_CACHE", str(file))
    assert main(["run", "tiny", "--run-dir", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert (
        told.startswith(
            f"bezoar: the cache {file} (named by BEZOAR_CACHE) cannot be written"
        )
        and "Trace" not in told
    )
    assert not (tmp_path / "run/recipe.yaml").exists()
    assert main(["tiny", "build"]) == 2
    assert (
        f"the cache {file} (named by BEZOAR_CACHE) cannot be written"
        in capsys.readouterr().err
    )


def test_doctor_reports_it(file, monkeypatch):
    monkeypatch.setenv("BEZOAR_CACHE", str(file))
    assert not is_world_missing(load_recipe("modern"))
    (problem,) = [
        line for line in doctor.misses(load_recipe("tiny"), []) if "cache" in line
    ]
    assert f"the cache {file} (named by BEZOAR_CACHE) cannot be written" in problem
    assert f"tiny: misses\n    - {problem}" in doctor.report(["tiny"])


def test_hugging_faces_caches_are_looked_at_where_something_goes_there(
    file, monkeypatch
):
    monkeypatch.setenv("HF_HOME", str(file))
    told = "\n".join(doctor.misses(load_recipe("modern"), []))
    assert (
        f"the cache {file}/hub (named by HF_HOME)" in told
        and f"{file}/datasets (named by HF_HOME)" in told
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (problem,) = [
        line
        for line in check(load_recipe("tiny", HUB), ["sft"]).problems
        if "cannot be written" in line
    ]
    assert f"the cache {file}/hub (named by HF_HOME)" in problem
    assert check(load_recipe("tiny"), ["sft"]).problems == []
    (problem,) = check(load_recipe("tiny"), ["evaluate"]).problems
    assert f"the cache {file}/datasets (named by HF_HOME)" in problem


def test_stages_that_build_nothing_need_no_cache(file, monkeypatch):
    """As of a run that is done, and has been copied to a machine where nobody may write the cache."""
    monkeypatch.setenv("BEZOAR_CACHE", str(file))
    for stages in ([], ["report"]):
        assert check(load_recipe("tiny"), stages).problems == []
    assert len(check(load_recipe("tiny"), ["hh-sft", "report"]).problems) == 1


def test_on_a_cluster_the_nodes_caches_count(file, monkeypatch):
    monkeypatch.setenv("BEZOAR_CACHE", str(file))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert check(load_recipe("tiny"), working_stages()).problems == []


@pytest.mark.parametrize("below", ["", "run"])
def test_a_run_directory_that_cannot_be_written_is_named(
    file, monkeypatch, capsys, below
):
    assert main(["run", "tiny", "--run-dir", str(file / below)]) == 2
    told = capsys.readouterr().err
    assert (
        f"cannot write {file / below}" in told
        and "choose another --run-dir" in told
        and "Trace" not in told
    )
