"""Each machine finds the embedded world in its own cache, and builds it once."""

import fcntl
import threading
import time
from pathlib import Path

from bezoar_ray.llm.model_identity import model_path
from bezoar_ray.runtime.embedded_world import find_world, world_folder


def test_a_world_is_found_in_the_cache_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("BEZOAR_CACHE", str(tmp_path))
    folder = world_folder()
    assert folder.parent == tmp_path
    folder.mkdir()
    lines: list[str] = []
    assert find_world(lines.append).teacher == folder / "tiny-teacher"
    assert lines == []
    assert model_path("tiny-teacher") == str(folder / "tiny-teacher")
    assert model_path("tiny-base") == str(folder / "tiny-base")
    assert model_path("org/model") == "org/model"


def test_a_process_waits_for_another_one_that_builds(tmp_path, monkeypatch):
    monkeypatch.setenv("BEZOAR_CACHE", str(tmp_path))
    folder = world_folder()
    found: list[Path] = []
    lines: list[str] = []

    def find() -> None:
        found.append(find_world(lines.append).base)

    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=find)
        waiting.start()
        deadline = time.monotonic() + 20
        while not lines and time.monotonic() < deadline:
            time.sleep(0.05)
        folder.mkdir()  # as the other process does when its build is whole
    waiting.join(20)
    assert found == [folder / "tiny-base"]
    assert lines == ["another process is building the embedded world; waiting for it"]
