"""Starts and stops a PostgreSQL server of the system's package, in a temporary folder of its own.

Nothing here knows pytest: the fixtures are in ``plugin.py``.
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

__all__ = ["PostgresServer", "fresh_database", "running_postgres", "start", "stop"]

NAME = "PostgreSQL test server"
DEBIAN_VERSIONS = Path("/usr/lib/postgresql")
BUILD_TIMEOUT = 120.0  # initdb takes a second
START_TIMEOUT = 60.0
START_ATTEMPTS = 5
READY = "database system is ready to accept connections"
ADDRESS_IN_USE = "could not bind IPv4 address"

# Its data need not outlive the power: writes are not waited for.
OPTIONS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "listen_addresses=127.0.0.1")

# PostgreSQL has no option to end with another process, so a shell waits for the end of the owner ($1) or of the
# server ($2) and removes the folder ($3) afterwards: a killed run leaves nothing behind. An ended server that its
# parent has not reaped yet is still there for kill -0, but without its postmaster.pid.
GUARD = """
runs() { kill -0 "$1" && [ -e "$2/data/postmaster.pid" ]; }
while kill -0 "$1" && runs "$2" "$3"; do sleep 0.5; done
kill -INT "$2"
while runs "$2" "$3"; do sleep 0.1; done
rm -rf "$3"
"""


@dataclass(frozen=True)
class PostgresServer:
    """A server whose database ``postgres`` is at ``url`` (``postgresql+psycopg://postgres@127.0.0.1:<port>/postgres``).

    ``folder`` has its data, its log and its Unix socket.
    """

    url: str
    pid: int
    folder: Path


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """A server of one's own, stopped at the end."""
    server = start()
    try:
        yield server
    finally:
        stop(server)


def start(*, owner: int | None = None) -> PostgresServer:
    """Make an empty cluster and start a server on it, on a free port of 127.0.0.1; returns when it answers.

    Everybody on this machine may connect as ``postgres``, without a password. The server ends by itself when the
    process ``owner`` does, which is this process unless told otherwise.
    """
    binaries = _find_binaries()
    # Not below pytest's folders: those of root are closed to the user that the server runs as.
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
    """The folder of the newest server: Debian installs each version beside the others, and none on the PATH."""
    installed = [path.parent for path in DEBIAN_VERSIONS.glob("*/bin/postgres")]
    if installed:
        return max(installed, key=lambda folder: float(folder.parent.name))
    on_path = shutil.which("postgres")
    if on_path is None:
        raise ServerUnavailableError(f"The {NAME} needs PostgreSQL's server binaries. `make setup-test` installs them.")
    return Path(on_path).resolve().parent


def _server_user() -> str | None:
    """The user to run it as, where this is root, as which PostgreSQL refuses to run."""
    if os.getuid() != 0:
        return None
    return "postgres" if any(user.pw_name == "postgres" for user in pwd.getpwall()) else "nobody"


def _launch(binaries: Path, folder: Path, options: dict[str, object]) -> tuple[subprocess.Popen[bytes], int]:
    """Start the server; the port is free when looked for, and may be lost to another process before it is used."""
    log_path = folder / "server.log"
    settings = [f"-c{option}" for option in (*OPTIONS, f"unix_socket_directories={folder}")]
    for attempt in range(1, START_ATTEMPTS + 1):
        port = _free_port()
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


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _guard(owner: int, pid: int, folder: Path) -> None:
    subprocess.Popen(
        ["sh", "-c", GUARD, "postgres-guard", str(owner), str(pid), str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # an interrupt of the owner's terminal does not end it
    )


def stop(server: PostgresServer) -> None:
    """End the server and remove its folder; a server that has ended already is no error."""
    # SIGINT disconnects clients, SIGTERM waits for them (PostgreSQL, "Shutting Down the Server").
    server_process.stop(server.pid, str(server.folder), number=signal.SIGINT)
    shutil.rmtree(server.folder, ignore_errors=True)


@contextmanager
def fresh_database(server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database of one's own, which is dropped at the end."""
    name = f"test_{uuid.uuid4().hex}"
    _execute(server, f"CREATE DATABASE {name}")
    try:
        yield server.url.removesuffix("/postgres") + f"/{name}"
    finally:
        _execute(server, f"DROP DATABASE {name} WITH (FORCE)")  # tests may have left connections open


def _execute(server: PostgresServer, statement: str) -> None:
    with psycopg.connect(server.url.replace("+psycopg", "", 1), autocommit=True) as connection:
        connection.execute(statement)
