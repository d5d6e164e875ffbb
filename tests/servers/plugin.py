"""The pytest plugin with the fixtures of the test servers; loaded by ``tests/conftest.py``.

Session fixtures run once per xdist worker, but a server of each kind is needed once per run. So the controlling process
of the run (the only one without xdist) creates a folder and passes its path to the workers. The first worker that needs
a server takes the lock of its kind in that folder, starts the server and writes its state to a file, which the others
read. The controller stops the server at the end. The modules of the servers build and start them.
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
    """A kind of shared server: functions that start it (in a folder, until the process `owner` ends) and stop it."""

    start: Callable[[Path, int], Any]
    stop: Callable[[Any], None]


_SHARED = {
    "hapi-r4": _Kind(lambda folder, owner: hapi_server.start(folder, owner=owner), hapi_server.stop),
    "hapi-r5": _Kind(lambda folder, owner: hapi_server.start(folder, version="R5", owner=owner), hapi_server.stop),
    "hapi-assigning": _Kind(
        lambda folder, owner: hapi_server.start(folder, client_ids=False, owner=owner), hapi_server.stop
    ),
    "medplum": _Kind(lambda folder, owner: medplum_server.start(folder, owner=owner), medplum_server.stop),
    "medplum-assigning": _Kind(
        lambda folder, owner: medplum_server.start(folder, client_ids=False, owner=owner), medplum_server.stop
    ),
    "postgres": _Kind(lambda _, owner: postgres_server.start(owner=owner), postgres_server.stop),
}


@dataclass(frozen=True)
class _Run:
    """The shared folder of a test run, and the process that outlives all its workers."""

    folder: Path
    controller: int


_RUN = pytest.StashKey[_Run]()


class HapiFactory(Protocol):
    """Starts a server for one test; the flags are those of ``run_hapi``."""

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
    """Starts an empty server for one test; the flag is that of ``run_medplum``."""

    def __call__(self, *, client_ids: bool = True) -> MedplumServer: ...


def pytest_configure(config: pytest.Config) -> None:
    worker_input = getattr(config, "workerinput", None)  # only workers of xdist have it
    if worker_input is not None:
        folder, controller = worker_input[_WORKER_INPUT]
        config.stash[_RUN] = _Run(Path(folder), controller)
    else:
        config.stash[_RUN] = _Run(Path(tempfile.mkdtemp(prefix="dicom-etl-servers-")), os.getpid())


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the run to a worker that xdist is about to start."""
    run = node.config.stash[_RUN]
    node.workerinput[_WORKER_INPUT] = (str(run.folder), run.controller)


def pytest_unconfigure(config: pytest.Config) -> None:
    run = config.stash.get(_RUN, None)
    if run is None or hasattr(config, "workerinput"):
        return
    for name, kind in _SHARED.items():
        # The lock: a worker that is being stopped may still be starting the server.
        with FileLock(run.folder / f"{name}.lock"):
            server = _read_state(run.folder, name)
            if server is not None and not isinstance(server, str):
                kind.stop(server)
    shutil.rmtree(run.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def hapi(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> HapiServer:
    """The strict R4 server, shared by all tests of the run: use identifiers that no other test uses."""
    return _get_shared("hapi-r4", pytestconfig, tmp_path_factory)


@pytest.fixture(scope="session")
def hapi_r5(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> HapiServer:
    """The same in R5; its start takes 16 s, and it needs 1.4 GB more."""
    return _get_shared("hapi-r5", pytestconfig, tmp_path_factory)


@pytest.fixture(scope="session")
def hapi_assigning(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> HapiServer:
    """The R4 server that assigns all ids, shared by all tests of the run: use identifiers that no other test uses."""
    return _get_shared("hapi-assigning", pytestconfig, tmp_path_factory)


@pytest.fixture(scope="session")
def medplum(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> MedplumServer:
    """The Medplum server (R4), shared by all tests of the run: use identifiers that no other test uses."""
    return _get_shared("medplum", pytestconfig, tmp_path_factory)


@pytest.fixture(scope="session")
def medplum_assigning(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> MedplumServer:
    """The Medplum server that assigns all ids, shared by all tests of the run."""
    return _get_shared("medplum-assigning", pytestconfig, tmp_path_factory)


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> PostgresServer:
    """The PostgreSQL server, shared by all tests of the run; `postgres_url` is a database of it for one test."""
    return _get_shared("postgres", pytestconfig, tmp_path_factory)


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """The SQLAlchemy URL of an empty PostgreSQL database for one test."""
    with postgres_server.fresh_database(postgres) as url:
        yield url


@pytest.fixture(scope="session")
def _wiped_hapi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HapiServer]:
    with _fail_in_one_sentence(), hapi_server.run_hapi(wipe=True, folder=tmp_path_factory.mktemp("hapi")) as server:
        yield server


@pytest.fixture
def empty_hapi(_wiped_hapi: HapiServer) -> HapiServer:
    """An R4 server that no other test uses meanwhile, and that is empty: the tests of a worker take turns."""
    hapi_server.wipe(_wiped_hapi)
    return _wiped_hapi


@pytest.fixture
def hapi_factory(tmp_path: Path) -> Iterator[HapiFactory]:
    """Starts servers with flags (empty, R5, with a token, with data on disk), and stops them after the test."""
    with ExitStack() as servers:

        def start(**flags: Any) -> HapiServer:
            folder = tmp_path / f"hapi-{len(list(tmp_path.glob('hapi-*')))}"
            with _fail_in_one_sentence():
                return servers.enter_context(hapi_server.run_hapi(folder=folder, **flags))

        yield start


@pytest.fixture
def medplum_factory(tmp_path: Path) -> Iterator[MedplumFactory]:
    """Starts Medplum servers (empty, without client ids), and stops them after the test."""
    with ExitStack() as servers:

        def start(**flags: Any) -> MedplumServer:
            folder = tmp_path / f"medplum-{len(list(tmp_path.glob('medplum-*')))}"
            with _fail_in_one_sentence():
                return servers.enter_context(medplum_server.run_medplum(folder=folder, **flags))

        yield start


@contextmanager
def _fail_in_one_sentence() -> Iterator[None]:
    """Turn a missing server into a failure without a traceback, since its message says what is missing."""
    try:
        yield
    except ServerUnavailableError as error:
        pytest.fail(str(error), pytrace=False)


def _get_shared(name: str, config: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = config.stash[_RUN]
    with FileLock(run.folder / f"{name}.lock"):
        server = _read_state(run.folder, name)
        if server is None:
            server = _start_get_shared(_SHARED[name], tmp_path_factory.mktemp(name), run.controller)
            (run.folder / f"{name}.pickle").write_bytes(pickle.dumps(server))
    if isinstance(server, str):
        pytest.fail(server, pytrace=False)
    return server


def _start_get_shared(kind: _Kind, folder: Path, owner: int) -> Any:
    """The started server, or the text of the error, so that other workers fail at once with the same text."""
    try:
        return kind.start(folder, owner)
    except ServerUnavailableError as error:
        return str(error)


def _read_state(folder: Path, name: str) -> Any:
    """The server that a process of this run started, or the text of its error; None before that."""
    path = folder / f"{name}.pickle"
    return pickle.loads(path.read_bytes()) if path.exists() else None
