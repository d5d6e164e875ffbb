"""A lake and the shared server for each test of a withdrawal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_etl.lake.fingerprints import compute_fingerprint
from tests.servers.hapi_server import HapiServer
from tests.support.datasets import make_lake
from tests.support.proxy import run_proxy
from tests.withdrawal.withdrawal_case import (
    WithdrawalCase,
)


@pytest.fixture
def case(tmp_path: Path, hapi: HapiServer, request: pytest.FixtureRequest) -> Iterator[WithdrawalCase]:
    with run_proxy(hapi.base_url) as server:
        namespace = f"https://site-{compute_fingerprint(request.node.name)[:16]}"
        yield WithdrawalCase(tmp_path, namespace, server, make_lake(tmp_path))
