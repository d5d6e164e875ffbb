"""The PostgreSQL test server: the properties on which other tests rely."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from tests.servers import postgres_server
from tests.servers.postgres_server import PostgresServer, ServerUnavailableError
from tests.servers.server_process import connects

REPOSITORY = Path(__file__).parents[2]


def execute(url: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements in a new connection; returns the rows of the last one."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            result = [connection.execute(text(statement)) for statement in statements][-1]
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        engine.dispose()


def port_of(server: PostgresServer) -> int:
    port = make_url(server.url).port
    assert port is not None
    return port


def test_a_table_survives_a_reconnect(postgres_url: str) -> None:
    execute(postgres_url, "CREATE TABLE study (uid text)", "INSERT INTO study VALUES ('2.25.1')")

    assert execute(postgres_url, "SELECT uid FROM study") == [("2.25.1",)]


@pytest.mark.parametrize("attempt", range(2))
def test_each_test_has_its_own_empty_database(postgres_url: str, attempt: int) -> None:
    assert execute(postgres_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []
    execute(postgres_url, "CREATE TABLE study (uid text)")


def test_a_database_with_open_connections_is_dropped(postgres: PostgresServer) -> None:
    with postgres_server.fresh_database(postgres) as url:
        connection = create_engine(url).connect()
        name = make_url(url).database

    assert execute(postgres.url, f"SELECT 1 FROM pg_database WHERE datname = '{name}'") == []
    connection.invalidate()


def test_text_is_utf_8(postgres_url: str) -> None:
    assert execute(postgres_url, "SHOW server_encoding") == [("UTF8",)]


def test_it_listens_only_on_127_0_0_1_and_a_unix_socket(postgres: PostgresServer) -> None:
    port = port_of(postgres)

    assert connects("127.0.0.1", port)
    assert not connects("127.0.0.2", port)
    assert not connects("::1", port)
    socket_url = f"postgresql+psycopg://postgres@/postgres?host={postgres.folder}&port={port}"
    assert execute(socket_url, "SELECT 1") == [(1,)]


def test_stopping_two_servers_frees_their_ports_and_folders() -> None:
    with postgres_server.run_postgres() as first, postgres_server.run_postgres() as second:
        execute(first.url, "CREATE TABLE only_in_the_first (uid text)")
        with pytest.raises(Exception, match="only_in_the_first"):
            execute(second.url, "SELECT * FROM only_in_the_first")
        connection = create_engine(first.url).connect()  # an open connection does not prevent the stop

    connection.invalidate()
    for server in (first, second):
        assert not connects("127.0.0.1", port_of(server))
        assert not server.folder.exists()


def test_a_server_ends_with_its_owner_and_removes_its_folder() -> None:
    owner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    script = "from tests.servers import postgres_server as p; s = p.start(owner={}); print(s.url, s.folder)"
    url, folder = subprocess.run(
        [sys.executable, "-c", script.format(owner.pid)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert execute(url, "SELECT 1") == [(1,)]  # the process that started it has ended

    owner.communicate()
    deadline = time.monotonic() + 20
    while Path(folder).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(folder).exists()
    port = make_url(url).port
    assert port is not None
    assert not connects("127.0.0.1", port)


def test_another_port_is_used_if_the_first_is_taken(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = [port_of(postgres), postgres_server.find_free_port()]
    monkeypatch.setattr(postgres_server, "find_free_port", lambda: ports.pop(0))

    with postgres_server.run_postgres() as server:
        assert execute(server.url, "SELECT 1") == [(1,)]
    assert ports == []


def test_the_error_names_missing_binaries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(postgres_server, "DEBIAN_VERSIONS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ServerUnavailableError, match=r"server binaries\. `make setup-test` installs"):
        postgres_server.start()
