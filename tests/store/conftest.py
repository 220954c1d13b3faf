from collections.abc import Iterator

import pytest

from bezoar_ray.store import Store
from tests import s3


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """moto's S3 server."""
    with s3.s3() as found:
        yield found


@pytest.fixture
def url(address, monkeypatch) -> str:
    """A run directory's URL in a new bucket."""
    for name, value in s3.environment(address).items():
        monkeypatch.setenv(name, value)
    return s3.new_bucket(address)


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path, url) -> Store:
    """A run directory of each kind."""
    return Store(tmp_path / "run" if request.param == "folder" else url)
