"""A bucket: its lock, its faults."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bezoar_ray.errors import BezoarError, RecipeError, RunLocked
from bezoar_ray.store import Store
from bezoar_ray.store.bucket import Bucket
from tests.s3 import failing

HOLD = """
import sys, time
from bezoar_ray.store import Store
with Store(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(url):
    """Another process that holds the run directory."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_told_who_holds_the_run(url, holder):
    with (
        pytest.raises(RunLocked, match=f"in use by process {holder.pid} on host"),
        Store(url).lock(),
    ):
        pass


def test_the_lock_of_a_process_that_died_here_is_free_at_once(url, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with Store(url).lock():
        assert Store(url).exists("lock")
    assert not Store(url).exists("lock")


def test_the_lock_of_another_host_is_free_once_it_has_been_silent_for_long(
    url, monkeypatch
):
    monkeypatch.setattr("bezoar_ray.store.bucket._STALE_AFTER", 2.0)
    store = Store(url)
    store.replace(
        "lock",
        '{"id": "x", "holder": "process 1 on host far", "host": "far", "pid": 1, "started": 0}',
    )
    with pytest.raises(RunLocked, match="process 1 on host far"), store.lock():
        pass
    time.sleep(3.5)
    with store.lock():
        pass


def test_a_living_holder_shows_it_and_one_that_lost_the_lock_ends(url, monkeypatch):
    code = "import bezoar_ray.store.bucket as b; b._RENEW_INTERVAL = 0.2\n" + HOLD
    with subprocess.Popen(
        [sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        store = Store(url)
        first = store._files.head("lock")["last_modified"]
        time.sleep(1.5)
        assert store._files.head("lock")["last_modified"] > first
        store.replace("lock", '{"id": "thief"}')
        assert "was taken over by another command" in process.stdout.readline()
        assert process.wait(10) == 3


def test_a_lock_whose_holder_ends_while_one_looks_at_it_is_free(url, monkeypatch):
    store, read = Store(url), Bucket.read

    def ended(bucket, name):
        monkeypatch.setattr(Bucket, "read", read)
        bucket.remove(name)
        return read(bucket, name)

    store.replace("lock", "{}")
    monkeypatch.setattr(Bucket, "read", ended)
    with store.lock():
        assert store.exists("lock")


def test_a_lock_that_another_command_took_over_is_left_to_it(url):
    store = Store(url)
    with store.lock():
        store.replace("lock", '{"id": "another"}')
    assert store.read("lock") == b'{"id": "another"}'


def test_a_holder_outlives_an_outage(cloud, url, at, monkeypatch):
    monkeypatch.setattr("bezoar_ray.store.bucket._RENEW_INTERVAL", 0.1)
    monkeypatch.setattr("bezoar_ray.store.bucket._RETRIES", {"max_retries": 0})
    with failing(cloud.address, faulty=0.0) as proxy:
        at(cloud, proxy.address)
        store = Store(url)
        with store.lock():
            proxy.faulty = 1.0
            time.sleep(1)
            proxy.faulty = 0.0
            before = store._files.head("lock")["last_modified"]
            time.sleep(2.5)
            assert store._files.head("lock")["last_modified"] > before


def test_faults_of_the_provider_are_outlived(cloud, url, at):
    with failing(cloud.address, faulty=0.3) as proxy:
        at(cloud, proxy.address)
        store = Store(url)
        for n in range(30):
            store.replace(f"a/{n:02}.txt", str(n) * 1000)
        assert [store.read(name) for name in store.list("a")] == [
            (str(n) * 1000).encode() for n in range(30)
        ]
        with store.lock():
            assert len(list(store.path("a").iterdir())) == 30
        store.remove("a")
        assert proxy.faults > 20 and not store.exists("a")


def test_no_bucket_and_no_key_are_named_with_the_remedy(url, monkeypatch):
    kind = url.partition("://")[0]
    said = f"cannot write {kind}://no-such-bucket/run/.probe.*Check credentials"
    with (
        pytest.raises(RecipeError, match=said),
        Store(f"{kind}://no-such-bucket/run").lock(),
    ):
        pass
    for other in ("ftp://host/run", "file:///run", "memory:///run"):
        with pytest.raises(RecipeError, match="not a folder, s3:// or gs:// address"):
            Store(other)


def test_an_outage_is_told_in_our_words(cloud, url, at, monkeypatch):
    at(cloud, "http://127.0.0.1:9")
    monkeypatch.setattr("bezoar_ray.store.bucket._RETRIES", {"max_retries": 1})
    with pytest.raises(BezoarError, match="cannot read (s3|gs)://"):
        Store(url).read("x")


def test_copies_are_this_users_own(url):
    store = Store(url)
    store.replace("a", "1")
    assert f"bezoar_ray-{os.getuid()}" in str(store.path("a"))


def test_workers_of_a_node_that_want_the_same_object_fetch_it_once(url, monkeypatch):
    store, download, fetched = Store(url), Bucket._download, []
    store.replace("model/weights", b"w" * 1000)

    def slowly(bucket, name, file):
        fetched.append(name)
        time.sleep(0.3)
        download(bucket, name, file)

    monkeypatch.setattr(Bucket, "_download", slowly)
    with ThreadPoolExecutor(8) as workers:
        found = list(
            workers.map(
                lambda _: (Store(url).path("model") / "weights").read_bytes(), range(8)
            )
        )
    assert found == [b"w" * 1000] * 8 and fetched == ["model/weights"]
