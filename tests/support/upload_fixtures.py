"""Fixtures of tests that upload: a factory of datasets, an empty lake, and the shared server behind a proxy."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_etl.lake.fingerprints import compute_fingerprint
from dicom_etl.lake.tables import Lake
from tests.servers.hapi_server import HapiServer
from tests.support.proxy import Proxy, run_proxy
from tests.support.upload_lakes import DatasetFactory, new_lake

__all__ = ["factory", "lake", "server"]


@pytest.fixture
def factory(request: pytest.FixtureRequest) -> DatasetFactory:
    """A factory of datasets with ids that no other test on the shared server has."""
    return DatasetFactory(f"test-{compute_fingerprint(request.node.nodeid)[:16]}")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake."""
    return new_lake(tmp_path / "lake")


@pytest.fixture
def server(hapi: HapiServer) -> Iterator[Proxy]:
    """The shared server behind a proxy that records every request."""
    with run_proxy(hapi.base_url) as recording:
        yield recording
