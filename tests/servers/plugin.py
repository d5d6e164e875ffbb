"""The pytest plugin that gives tests their servers; loaded by ``tests/conftest.py``.

Session fixtures run once per xdist worker, a server of each kind is wanted once per run. So the process that
controls the run (the only one, without xdist) makes a folder and hands its path to the workers. The first worker
that needs a server takes the kind's lock in that folder, starts the server and writes down where it is; the others
read that. The controller stops it when all is done. How a server is built and started belongs in its own module.
"""

import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from filelock import FileLock

from tests.servers import hapi_server, medplum_server, postgres_server
from tests.servers.hapi_server import HapiServer
from tests.servers.medplum_server import MedplumServer
from tests.servers.postgres_server import PostgresServer
from tests.servers.server_process import ServerUnavailableError

_WORKER_INPUT = "dicom_etl_servers"


@dataclass(frozen=True)
class _Kind:
    """How a server that the run shares is started (in a folder, until the process `owner` ends) and stopped."""

    start: Callable[[Path, int], Any]
    stop: Callable[[Any], None]


_SHARED = {
    "hapi-r4": _Kind(lambda folder, owner: hapi_server.start(folder, owner=owner), hapi_server.stop),
    "hapi-r5": _Kind(lambda folder, owner: hapi_server.start(folder, version="R5", owner=owner), hapi_server.stop),
    "medplum": _Kind(lambda folder, owner: medplum_server.start(folder, owner=owner), medplum_server.stop),
    "postgres": _Kind(lambda _, owner: postgres_server.start(owner=owner), postgres_server.stop),
}


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


class MedplumFactory(Protocol):
    """Starts an empty server that only this test sees; the flag is that of ``running_medplum``."""

    def __call__(self, *, client_ids: bool = True) -> MedplumServer: ...


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
    for name, kind in _SHARED.items():
        # The lock: a worker that was told to stop may still be starting the server.
        with FileLock(run.folder / f"{name}.lock"):
            server = _read_state(run.folder, name)
            if server is not None and not isinstance(server, str):
                kind.stop(server)
    shutil.rmtree(run.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def hapi(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> HapiServer:
    """The strict R4 server that all tests of the run share: use identifiers that no other test uses."""
    return _shared("hapi-r4", pytestconfig, tmp_path_factory)


@pytest.fixture(scope="session")
def hapi_r5(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> HapiServer:
    """The same in R5, started when a test asks for it: it takes 16 s and 1.4 GB more."""
    return _shared("hapi-r5", pytestconfig, tmp_path_factory)


@pytest.fixture(scope="session")
def medplum(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> MedplumServer:
    """The Medplum server (R4) that all tests of the run share: use identifiers that no other test uses."""
    return _shared("medplum", pytestconfig, tmp_path_factory)


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> PostgresServer:
    """The PostgreSQL server that all tests of the run share; `postgres_url` gives a test its own database on it."""
    return _shared("postgres", pytestconfig, tmp_path_factory)


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """The SQLAlchemy URL of an empty PostgreSQL database that only this test sees."""
    with postgres_server.fresh_database(postgres) as url:
        yield url


@pytest.fixture
def hapi_factory(tmp_path: Path) -> Iterator[HapiFactory]:
    """Starts servers with flags of one's own (empty, R5, with a token, kept on disk) and stops them."""
    with ExitStack() as servers:

        def start(**flags: Any) -> HapiServer:
            folder = tmp_path / f"hapi-{len(list(tmp_path.glob('hapi-*')))}"
            with _plain_failure():
                return servers.enter_context(hapi_server.running_hapi(folder=folder, **flags))

        yield start


@pytest.fixture
def medplum_factory(tmp_path: Path) -> Iterator[MedplumFactory]:
    """Starts Medplum servers of one's own (empty, without client ids) and stops them."""
    with ExitStack() as servers:

        def start(**flags: Any) -> MedplumServer:
            folder = tmp_path / f"medplum-{len(list(tmp_path.glob('medplum-*')))}"
            with _plain_failure():
                return servers.enter_context(medplum_server.running_medplum(folder=folder, **flags))

        yield start


@contextmanager
def _plain_failure() -> Iterator[None]:
    """What is missing is said in a sentence; the way through this module would only hide it."""
    try:
        yield
    except ServerUnavailableError as error:
        pytest.fail(str(error), pytrace=False)


def _shared(name: str, config: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = config.stash[_RUN]
    with FileLock(run.folder / f"{name}.lock"):
        server = _read_state(run.folder, name)
        if server is None:
            server = _start_shared(_SHARED[name], tmp_path_factory.mktemp(name), run.controller)
            (run.folder / f"{name}.pickle").write_bytes(pickle.dumps(server))
    if isinstance(server, str):
        pytest.fail(server, pytrace=False)
    return server


def _start_shared(kind: _Kind, folder: Path, owner: int) -> Any:
    """The started server, or why there is none: the other workers need not wait to fail in the same way."""
    try:
        return kind.start(folder, owner)
    except ServerUnavailableError as error:
        return str(error)


def _read_state(folder: Path, name: str) -> Any:
    """The server that a process of this run started, why it could not, or None."""
    path = folder / f"{name}.pickle"
    return pickle.loads(path.read_bytes()) if path.exists() else None
