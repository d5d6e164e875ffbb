"""A PostgreSQL server of the system's package in a temporary folder: start and stop.

This module does not use pytest: the fixtures are in ``plugin.py``.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.servers import server_process
from tests.servers.server_process import ServerUnavailableError, launch, run_build, wait_until_ready

__all__ = ["PostgresServer", "fresh_database", "run_postgres", "start", "stop"]

NAME = "PostgreSQL test server"
DEBIAN_VERSIONS = Path("/usr/lib/postgresql")
BUILD_TIMEOUT = 120.0  # initdb takes a second
START_TIMEOUT = 60.0
START_ATTEMPTS = 5
READY = "database system is ready to accept connections"
ADDRESS_IN_USE = "could not bind IPv4 address"

# Faster, since the data need not survive a power failure.
OPTIONS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "listen_addresses=127.0.0.1")

# PostgreSQL has no option to end with another process. So a shell waits for the end of the owner ($1) or of the
# server ($2) and then removes the folder ($3), also after a killed run. kill -0 also finds a server that has ended and
# was not waited for by its parent, but then there is no postmaster.pid.
GUARD = """
runs() { kill -0 "$1" && [ -e "$2/data/postmaster.pid" ]; }
while kill -0 "$1" && runs "$2" "$3"; do sleep 0.5; done
kill -INT "$2"
while runs "$2" "$3"; do sleep 0.1; done
rm -rf "$3"
"""


@dataclass(frozen=True)
class PostgresServer:
    """A running server.

    Attributes:
        url: of its database ``postgres`` (``postgresql+psycopg://postgres@127.0.0.1:<port>/postgres``).
        pid: its process id.
        folder: of its data, its log and its Unix socket.
    """

    url: str
    pid: int
    folder: Path


@contextmanager
def run_postgres() -> Iterator[PostgresServer]:
    """Run a separate server until the end of the block."""
    server = start()
    try:
        yield server
    finally:
        stop(server)


def start(*, owner: int | None = None) -> PostgresServer:
    """Create an empty cluster and start its server on a free port of 127.0.0.1; returns when it answers.

    Any user of this machine may connect as ``postgres`` without a password.

    Args:
        owner: process with which the server ends; default: this process.
    """
    binaries = _find_binaries()
    # Not in a folder of pytest: the user of the server has no access to those of root.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        user = _server_user()
        if user is not None:
            shutil.chown(folder, user=user)
        options = {"user": user, "extra_groups": [] if user else None, "cwd": folder}
        initdb = [str(binaries / "initdb"), "--pgdata", str(folder / "data"), "--username=postgres", "--auth=trust"]
        initdb += ["--encoding=UTF8", "--locale=C", "--no-sync"]
        run_build(NAME, initdb, timeout=BUILD_TIMEOUT, **options)
        process, port = _launch(binaries, folder, options)
        _guard(owner or os.getpid(), process.pid, folder)
    except BaseException:
        shutil.rmtree(folder)
        raise
    return PostgresServer(f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres", process.pid, folder)


def _find_binaries() -> Path:
    """The folder of the newest server; Debian installs several versions, and none of them on the PATH."""
    installed = [path.parent for path in DEBIAN_VERSIONS.glob("*/bin/postgres")]
    if installed:
        return max(installed, key=lambda folder: float(folder.parent.name))
    on_path = shutil.which("postgres")
    if on_path is None:
        raise ServerUnavailableError(f"The {NAME} needs PostgreSQL's server binaries. `make setup-test` installs them.")
    return Path(on_path).resolve().parent


def _server_user() -> str | None:
    """The user of the server if this process is root, since PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return None
    return "postgres" if any(user.pw_name == "postgres" for user in pwd.getpwall()) else "nobody"


def _launch(binaries: Path, folder: Path, options: dict[str, object]) -> tuple[subprocess.Popen[bytes], int]:
    """Start the server on a free port; repeats that if another process takes the port first."""
    log_path = folder / "server.log"
    settings = [f"-c{option}" for option in (*OPTIONS, f"unix_socket_directories={folder}")]
    for attempt in range(1, START_ATTEMPTS + 1):
        port = find_free_port()
        command = [str(binaries / "postgres"), "-D", str(folder / "data"), "-p", str(port), *settings]
        process = launch(command, log_path, **options)
        try:
            wait_until_ready(NAME, process, log_path, lambda log: READY if READY in log else None, START_TIMEOUT)
        except ServerUnavailableError as error:
            if ADDRESS_IN_USE not in str(error) or attempt == START_ATTEMPTS:
                raise
        else:
            break
    return process, port


def find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _guard(owner: int, pid: int, folder: Path) -> None:
    subprocess.Popen(
        ["sh", "-c", GUARD, "postgres-guard", str(owner), str(pid), str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # not ended by Ctrl-C in the owner's terminal
    )


def stop(server: PostgresServer) -> None:
    """End the server and remove its folder; does nothing if it has ended already."""
    # SIGINT disconnects clients, SIGTERM waits for them (PostgreSQL, "Shutting Down the Server").
    server_process.stop(server.pid, str(server.folder), number=signal.SIGINT)
    shutil.rmtree(server.folder, ignore_errors=True)


@contextmanager
def fresh_database(server: PostgresServer) -> Iterator[str]:
    """The URL of a new, empty database, which is dropped at the end of the block."""
    name = f"test_{uuid.uuid4().hex}"
    _execute(server, f"CREATE DATABASE {name}")
    try:
        yield server.url.removesuffix("/postgres") + f"/{name}"
    finally:
        _execute(server, f"DROP DATABASE {name} WITH (FORCE)")  # tests may have left connections open


def _execute(server: PostgresServer, statement: str) -> None:
    with psycopg.connect(server.url.replace("+psycopg", "", 1), autocommit=True) as connection:
        connection.execute(statement)
