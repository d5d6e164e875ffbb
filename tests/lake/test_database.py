"""The database of a lake: its location and how it is opened."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_etl.lake import database
from dicom_etl.lake.database import (
    DatabaseError,
    database_url,
    detect_file_system,
    is_postgresql,
    is_shared_file_system,
)
from dicom_etl.lake.tables import Lake

ROOT = Path(__file__).parents[2]


def read_refusal(lake: Lake) -> str:
    """The error message for the address of a lake's database."""
    with pytest.raises(DatabaseError) as refused:
        database_url(lake)
    return str(refused.value)


@pytest.fixture
def file_system(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The type of file system that is reported for every folder."""
    kind = ["ext4"]
    monkeypatch.setattr(database, "detect_file_system", lambda _folder: kind[0])
    return kind


class TestAddress:
    def test_by_default_it_is_a_file_in_the_lake(self, tmp_path: Path, file_system: list[str]) -> None:
        url = database_url(Lake(str(tmp_path / "lake")))
        assert (url.drivername, url.database) == ("sqlite", str(tmp_path / "lake" / "ledger.sqlite"))

    def test_a_relative_lake_has_an_absolute_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert database_url(Lake("lake")).database == str(tmp_path / "lake" / "ledger.sqlite")

    def test_a_lake_on_an_object_store_needs_a_setting(self) -> None:
        lake = Lake("s3://bucket/lake")
        assert read_refusal(lake) == (
            "the lake s3://bucket/lake is on an object store, which cannot contain the upload ledger: set ledger_url "
            "to a PostgreSQL database, or to sqlite:////path of a file on a local disk"
        )
        assert not database.has_database(lake)

    def test_a_lake_on_an_object_store_may_have_a_local_database(self, tmp_path: Path, file_system: list[str]) -> None:
        lake = Lake("s3://bucket/lake", ledger_url=f"sqlite:///{tmp_path}/l.sqlite")
        assert database_url(lake).database == f"{tmp_path}/l.sqlite"
        assert not database.has_database(lake)
        with database.open_engine(lake).connect():
            assert database.has_database(lake)

    @pytest.mark.parametrize(
        "kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "fuse", "ceph", "lustre", "glusterfs"]
    )
    def test_a_lake_on_a_shared_file_system_needs_a_setting(
        self, tmp_path: Path, file_system: list[str], kind: str
    ) -> None:
        file_system[0] = kind
        assert read_refusal(Lake(str(tmp_path))) == (
            f"the lake {tmp_path} is on a shared file system ({kind}), where SQLite could lose the upload ledger: set "
            "ledger_url to a PostgreSQL database, or to sqlite:////path of a file on a local disk"
        )
        assert read_refusal(Lake(str(tmp_path), ledger_url=f"sqlite:///{tmp_path}/l.sqlite")) == (
            f"the file in ledger_url is on a shared file system ({kind}): choose a local disk"
        )
        assert is_postgresql(Lake(str(tmp_path), ledger_url="postgresql://h/name"))

    @pytest.mark.parametrize("kind", ["", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuseblk", "apfs"])
    def test_a_lake_on_a_local_disk_needs_no_setting(self, tmp_path: Path, file_system: list[str], kind: str) -> None:
        file_system[0] = kind
        assert database_url(Lake(str(tmp_path))).get_backend_name() == "sqlite"
        assert not is_shared_file_system(kind)

    @pytest.mark.parametrize(
        "text",
        [
            "postgresql://user:pw@host:5433/name",
            "postgres://user:pw@host:5433/name",
            "postgresql+psycopg://user:pw@host:5433/name",
            "postgresql+psycopg2://user:pw@host:5433/name",
            "postgresql+asyncpg://user:pw@host:5433/name",
        ],
    )
    def test_every_spelling_of_postgresql_uses_psycopg(self, text: str) -> None:
        lake = Lake("s3://bucket/lake", ledger_url=text)
        url = database_url(lake)
        assert (url.drivername, url.username, url.password) == ("postgresql+psycopg", "user", "pw")
        assert (url.host, url.port, url.database) == ("host", 5433, "name")
        assert is_postgresql(lake)
        assert database.has_database(lake)

    def test_options_of_a_postgresql_address_are_kept(self) -> None:
        url = database_url(Lake("lake", ledger_url="postgresql://h/name?sslmode=verify-full&options=-csearch_path%3Dx"))
        assert dict(url.query) == {"sslmode": "verify-full", "options": "-csearch_path=x"}

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("ledger.sqlite", "ledger_url is not the address of a database, such as postgresql://user@host/name"),
            ("/path/ledger.sqlite", "ledger_url is not the address of a database, such as postgresql://user@host/name"),
            (
                "postgresql://user:geheim@host:port/name",
                "ledger_url is not the address of a database, such as postgresql://user@host/name",
            ),
            ("sqlite://", "ledger_url contains no file: set it to sqlite:////path/to/ledger.sqlite"),
            ("sqlite:///:memory:", "ledger_url contains no file: set it to sqlite:////path/to/ledger.sqlite"),
            (
                "mysql://user:geheim@h/n",
                "ledger_url is the address of a mysql database; only sqlite and postgresql are supported",
            ),
            ("http://h/n", "ledger_url is the address of a http database; only sqlite and postgresql are supported"),
        ],
    )
    def test_other_addresses_are_refused_with_a_sentence(self, text: str, sentence: str) -> None:
        lake = Lake("lake", ledger_url=text)
        assert read_refusal(lake) == sentence
        with pytest.raises(DatabaseError) as refused:
            is_postgresql(lake)
        assert str(refused.value) == sentence

    @pytest.mark.parametrize("name", ["file::memory:?uri=true", "l.sqlite?uri=true&mode=memory", "l.sqlite?timeout=0"])
    def test_a_ledger_is_never_in_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.chdir(tmp_path)
        engine = database.open_engine(Lake("lake", ledger_url=f"sqlite:///{name}"))
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE t (c)")
            assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000
        with engine.begin() as connection:  # another connection
            assert connection.exec_driver_sql("SELECT count(*) FROM t").scalar() == 0

    def test_an_empty_setting_means_none(self, tmp_path: Path, file_system: list[str]) -> None:
        lake = Lake(str(tmp_path), ledger_url="")
        assert not is_postgresql(lake)
        assert database_url(lake).database == str(tmp_path / "ledger.sqlite")

    def test_the_error_of_a_missing_driver_has_the_install_command(self) -> None:
        code = (
            "import sys; sys.modules['psycopg'] = None\n"
            "from dicom_etl.lake import database\n"
            "from dicom_etl.lake.tables import Lake\n"
            "try: database.open_engine(Lake('lake', ledger_url='postgresql://u:geheim@h/n'))\n"
            "except database.DatabaseError as error: print(error)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout == "ledger_url needs the driver of PostgreSQL: pip install 'dicom-etl[postgres]'\n"


class TestConnection:
    def test_a_database_that_answers_passes_the_check(self, tmp_path: Path, postgres_url: str) -> None:
        database.check_connection(Lake(str(tmp_path)))
        database.check_connection(Lake(str(tmp_path), ledger_url=postgres_url))

    def test_the_error_of_an_unreachable_server_has_no_password(self) -> None:
        lake = Lake("lake", ledger_url="postgresql://user:geheim@127.0.0.1:1/name")
        with pytest.raises(DatabaseError) as failure:
            database.check_connection(lake)
        text = str(failure.value)
        assert text.startswith("the upload ledger cannot be used: connection failed: ")
        assert text.endswith("; check ledger_url, and that PostgreSQL is running")
        assert "geheim" not in text
        assert "\n" not in text

    def test_the_error_of_a_missing_database_is_that_of_the_server(self, postgres_url: str) -> None:
        with pytest.raises(DatabaseError, match='database "missing" does not exist'):
            database.check_connection(Lake("lake", ledger_url=postgres_url.rpartition("/")[0] + "/missing"))

    def test_the_error_of_an_unknown_option_is_a_sentence(self, postgres_url: str) -> None:
        with pytest.raises(
            DatabaseError, match=r'^the upload ledger cannot be used: invalid connection option "nonsense"'
        ):
            database.check_connection(Lake("lake", ledger_url=f"{postgres_url}?nonsense=1"))

    def test_the_error_of_a_read_only_file_is_a_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        lake = Lake(str(tmp_path), ledger_url=f"sqlite:///{tmp_path}/folder")
        with pytest.raises(DatabaseError) as refused:
            database.open_engine(lake)
        assert str(refused.value) == (f"the upload ledger {tmp_path}/folder cannot be written: Is a directory")

    def test_only_the_owner_can_read_folder_and_file(self, tmp_path: Path) -> None:
        file, before = tmp_path / "a" / "b" / "ledger.sqlite", os.umask(0)
        try:
            with database.open_engine(Lake("lake", ledger_url=f"sqlite:///{file}")).connect():
                pass
        finally:
            os.umask(before)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700

    def test_reading_takes_no_write_lock(self, tmp_path: Path) -> None:
        lake = Lake(str(tmp_path))
        with database.open_engine(lake).begin() as writer:
            writer.exec_driver_sql("CREATE TABLE t (c)")
            with database.open_engine(lake, to_write=False).begin() as reader:  # else it would wait for the writer
                assert reader.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar() == 0

    def test_only_the_first_line_of_a_driver_message_is_used(self) -> None:
        def failure(text: str) -> sa.exc.SQLAlchemyError:
            return sa.exc.OperationalError("INSERT INTO t", {"a": "Mustermann"}, Exception(text), hide_parameters=True)

        words = "duplicate key value\nDETAIL: Key (id)=(Mustermann) already exists."
        assert database.describe_database_error(failure(words)) == "duplicate key value"
        assert database.describe_database_error(failure("  \n")) == "Exception"


MOUNTS = """\
/dev/sda1 / ext4 rw,relatime 0 0
server:/export /data nfs4 rw,vers=4.2 0 0
/dev/sdb1 /data/local xfs rw 0 0
//server/share /mnt/with\\040blank cifs rw 0 0
sshfs /mnt/日本\\040x fuse.sshfs rw 0 0
/dev/sdc1 /mnt/ntfs fuseblk rw 0 0
server:/a /mnt/back\\134slash nfs rw 0 0
/dev/sdd1 /mnt/twice ext4 rw 0 0
server:/b /mnt/twice nfs rw 0 0
server:/c /mnt/line\u2028separator\x85x smb3 rw 0 0
"""


class TestFileSystem:
    @pytest.mark.parametrize(
        ("folder", "kind"),
        [
            ("/", "ext4"),
            ("/home/me/lake", "ext4"),
            ("/data", "nfs4"),
            ("/data/lake", "nfs4"),
            ("/database", "ext4"),  # not below /data
            ("/data/local/lake", "xfs"),
            ("/data/local/../lake", "nfs4"),
            ("/mnt/with blank/lake", "cifs"),
            ("/mnt/日本 x/lake", "fuse.sshfs"),
            ("/mnt/ntfs/lake", "fuseblk"),
            ("/mnt/back\\slash/lake", "nfs"),
            ("/mnt/twice/lake", "nfs"),  # the later mount hides the first
            ("/mnt/line\u2028separator\x85x/lake", "smb3"),
        ],
    )
    def test_the_file_system_of_a_folder_is_that_of_its_nearest_mount(
        self, tmp_path: Path, folder: str, kind: str
    ) -> None:
        mounts = tmp_path / "mounts"
        mounts.write_text(MOUNTS, encoding="utf-8")
        assert detect_file_system(Path(folder), mounts) == kind

    def test_the_target_of_a_link_decides(self, tmp_path: Path) -> None:
        mounts, link = tmp_path / "mounts", tmp_path / "link"
        mounts.write_text(f"none / ext4 rw 0 0\nserver:/x {tmp_path}/far nfs rw 0 0\n", encoding="utf-8")
        link.symlink_to(tmp_path / "far")
        assert detect_file_system(link / "lake", mounts) == "nfs"

    def test_it_is_unknown_without_a_list_of_mounts(self, tmp_path: Path) -> None:
        assert detect_file_system(tmp_path, tmp_path / "missing") == ""

    def test_mount_points_that_are_not_utf_8_are_accepted(self, tmp_path: Path) -> None:
        mounts = tmp_path / "mounts"
        mounts.write_bytes(b"none / ext4 rw 0 0\nserver:/x /mnt/\xff nfs rw 0 0\n")
        assert detect_file_system(Path("/mnt/a"), mounts) == "ext4"
        assert detect_file_system(Path("/mnt/\udcff/lake"), mounts) == "nfs"
