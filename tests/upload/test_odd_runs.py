"""The upload under answers that no server should give; `make soak` runs more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers.hapi_server import HapiServer
from tests.upload.soak.odd_answers_soak import run_seed
from tests.upload.support.odd_answers import FIXED

SEEDS = 40


@pytest.mark.parametrize("seed", range(SEEDS))
def test_odd_answers_lose_nothing_and_the_next_run_completes(hapi: HapiServer, tmp_path: Path, seed: int) -> None:
    """Every tenth run is the command in its own process: no traceback, and less than 300 MB."""
    assert run_seed(hapi.base_url, tmp_path, seed, is_command=seed % 10 == 0)


def test_answers_of_any_size_take_little_memory(hapi: HapiServer, tmp_path: Path) -> None:
    for name in ("large", "gzip bomb", "endless"):
        made = run_seed(hapi.base_url, tmp_path, 0, is_command=True, only=name)
        assert made
        assert all(name in text for text in made)


def test_the_large_answers_are_large() -> None:
    assert len(FIXED["large"]()) > 60_000_000
