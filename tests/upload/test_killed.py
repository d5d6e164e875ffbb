"""Uploads of two lakes of one namespace that are killed again and again; `make soak` does the same for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers.hapi_server import HapiServer
from tests.upload.soak.kill_soak import Size, scenario
from tests.upload.soak.killed_uploads import AT_COMMIT, AT_REQUEST

# `make soak` has 300 changed and 300 new studies, and kills among the first 120 requests
SMALL = Size(changed=20, new=20, kills=15, most_requests=24)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_killed_uploads_leave_nothing_lost_duplicated_or_open(
    database: str, hapi: HapiServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    ledger_url = request.getfixturevalue("postgres_url") if database == "postgresql" else None

    counts = scenario(31 if ledger_url else 30, hapi.base_url, tmp_path, SMALL, ledger_url)

    kinds = {kind: counts[f"A {kind}"] for kind in (*AT_REQUEST, *AT_COMMIT, "time")}
    assert sum(kinds.values()) == SMALL.kills
    assert len([kind for kind, number in kinds.items() if number]) >= 4
