from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from bezoar_ray.store import Store
from tests import gcs, s3


@dataclass(frozen=True)
class Cloud:
    """A provider of buckets, at an address on this machine."""

    address: str
    environment: Callable[[str], dict[str, str]]
    new_bucket: Callable[[str], str]


@pytest.fixture(scope="session")
def clouds() -> Iterator[dict[str, Cloud]]:
    """Each provider's server."""
    with s3.s3() as amazon, gcs.gcs() as google:
        yield {
            "s3": Cloud(amazon, s3.environment, s3.new_bucket),
            "gs": Cloud(google, gcs.environment, gcs.new_bucket),
        }


@pytest.fixture(params=["s3", "gs"])
def cloud(request, clouds) -> Cloud:
    """One provider."""
    return clouds[request.param]


@pytest.fixture
def at(monkeypatch) -> Callable[[Cloud, str], None]:
    """Have this process find a provider at an address."""

    def go(cloud: Cloud, address: str) -> None:
        for name, value in cloud.environment(address).items():
            monkeypatch.setenv(name, value)

    return go


@pytest.fixture
def url(cloud, at) -> str:
    """A run directory's URL in a new bucket."""
    at(cloud, cloud.address)
    return cloud.new_bucket(cloud.address)


@pytest.fixture(params=["folder", "s3", "gs"])
def store(request, tmp_path, clouds, at) -> Store:
    """A run directory of each kind."""
    if request.param == "folder":
        return Store(tmp_path / "run")
    cloud = clouds[request.param]
    at(cloud, cloud.address)
    return Store(cloud.new_bucket(cloud.address))
