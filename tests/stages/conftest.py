"""A site, a lake and the server for each test of what is sent."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_etl.lake.fingerprints import fingerprint
from dicom_etl.lake.tables import Lake
from tests.servers.hapi_server import HapiServer
from tests.support.proxy import Proxy, run_proxy
from tests.support.upload_lakes import (
    Site,
    new_lake,
)


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Site:
    """A site of this test alone: no id of another test on the shared server."""
    return Site(f"site-{fingerprint(request.node.nodeid)[:16]}")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return new_lake(tmp_path / "lake")


@pytest.fixture
def server(hapi: HapiServer) -> Iterator[Proxy]:
    """The shared server, with every request counted."""
    with run_proxy(hapi.base_url) as counted:
        yield counted
