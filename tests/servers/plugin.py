"""The pytest plugin that gives tests their servers; loaded by ``tests/conftest.py``.

Session fixtures run once per xdist worker, a server of each FHIR version is wanted once per run. So the
process that controls the run (the only one, without xdist) makes a folder and hands its path to the workers.
The first worker that needs a server takes the version's lock in that folder, starts the server and writes down
where it is; the others read that. The controller stops it when all is done. How a server is built and started
belongs in its own module.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from filelock import FileLock

from tests.servers import hapi_server
from tests.servers.hapi_server import HapiServer, ServerUnavailableError

_WORKER_INPUT = "dicom_etl_servers"
_SHARED = ("R4", "R5")


@dataclass(frozen=True)
class _Run:
    """What the processes of one test run share: a folder, and who outlives all workers."""

    folder: Path
    controller: int


_RUN = pytest.StashKey[_Run]()


class HapiFactory(Protocol):
    """Starts a server that only this test sees; the flags are those of ``running_hapi``."""

    def __call__(
        self,
        *,
        version: str = "R4",
        strict: bool = True,
        wipe: bool = False,
        auth_token: str | None = None,
        client_ids: bool = True,
        db: Path | None = None,
    ) -> HapiServer: ...


def pytest_configure(config: pytest.Config) -> None:
    worker_input = getattr(config, "workerinput", None)  # xdist gives it to workers alone
    if worker_input is not None:
        folder, controller = worker_input[_WORKER_INPUT]
        config.stash[_RUN] = _Run(Path(folder), controller)
    else:
        config.stash[_RUN] = _Run(Path(tempfile.mkdtemp(prefix="dicom-etl-servers-")), os.getpid())


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """xdist is about to start a worker."""
    run = node.config.stash[_RUN]
    node.workerinput[_WORKER_INPUT] = (str(run.folder), run.controller)


def pytest_unconfigure(config: pytest.Config) -> None:
    run = config.stash.get(_RUN, None)
    if run is None or hasattr(config, "workerinput"):
        return
    for version in _SHARED:
        # The lock: a worker that was told to stop may still be starting the server.
        with FileLock(run.folder / f"{version}.lock"):
            state = _read_state(run.folder, version)
            if state is not None and "failure" not in state:
                hapi_server.stop(_server(state))
    shutil.rmtree(run.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def hapi(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> HapiServer:
    """The strict R4 server that all tests of the run share: use identifiers that no other test uses."""
    return _shared("R4", pytestconfig.stash[_RUN], tmp_path_factory)


@pytest.fixture(scope="session")
def hapi_r5(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> HapiServer:
    """The same in R5, started when a test asks for it: it takes 16 s and 1.4 GB more."""
    return _shared("R5", pytestconfig.stash[_RUN], tmp_path_factory)


@pytest.fixture
def hapi_factory(tmp_path: Path) -> Iterator[HapiFactory]:
    """Starts servers with flags of one's own (empty, R5, with a token, kept on disk) and stops them."""
    with ExitStack() as servers:

        def start(**flags: Any) -> HapiServer:
            folder = tmp_path / f"hapi-{len(list(tmp_path.glob('hapi-*')))}"
            with _plain_failure():
                return servers.enter_context(hapi_server.running_hapi(folder=folder, **flags))

        yield start


@contextmanager
def _plain_failure() -> Iterator[None]:
    """What is missing is said in a sentence; the way through this module would only hide it."""
    try:
        yield
    except ServerUnavailableError as error:
        pytest.fail(str(error), pytrace=False)


def _shared(version: str, run: _Run, tmp_path_factory: pytest.TempPathFactory) -> HapiServer:
    with FileLock(run.folder / f"{version}.lock"):
        state = _read_state(run.folder, version)
        if state is None:
            state = _start_shared(version, run, tmp_path_factory)
            _write_state(run.folder, version, state)
    if "failure" in state:
        pytest.fail(state["failure"], pytrace=False)
    return _server(state)


def _start_shared(version: str, run: _Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Start the server, or say why not: the other workers need not wait to fail in the same way."""
    try:
        server = hapi_server.start(tmp_path_factory.mktemp("hapi"), version=version, owner=run.controller)
    except ServerUnavailableError as error:
        return {"failure": str(error)}
    return {"base_url": server.base_url, "pid": server.pid, "log_path": str(server.log_path)}


def _server(state: dict[str, Any]) -> HapiServer:
    return HapiServer(state["base_url"], state["pid"], Path(state["log_path"]))


def _read_state(folder: Path, version: str) -> dict[str, Any] | None:
    path = folder / f"{version}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def _write_state(folder: Path, version: str, state: dict[str, Any]) -> None:
    (folder / f"{version}.json").write_text(json.dumps(state), encoding="utf-8")
