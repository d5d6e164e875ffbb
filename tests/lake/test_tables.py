"""The lake: writes are atomic, deterministic and of the described schema; only its owner can read it."""

import errno
import hashlib
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dicom_etl.lake.description import LakeDescription
from dicom_etl.lake.row_groups import SchemaError
from dicom_etl.lake.schemas import FILES, INVENTORY, SHEETS, TAG_PROFILES, Column, Table
from dicom_etl.lake.tables import Lake, LakeError
from tests.support.datasets import make_lake

ROOT = Path(__file__).parents[2]
LAKE_ID = "6f0d6a62-6a3c-4f0e-9a57-0d4d6d4f6a11"
CONTENT = orjson.dumps({"schema": 4, "lake_id": LAKE_ID, "id_key": None})


def cell(row: int, field: str = "sex", value: str | None = "Female") -> dict[str, Any]:
    """A row of the sheets table."""
    return {
        "dataset": "ds",
        "sheet": "subjects",
        "path": "subjects.csv",
        "row": row,
        "subject": f"sub-{row}",
        "sample": None,
        "field": field,
        "value": value,
    }


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return make_lake(tmp_path)


def table_path(lake: Lake, table: Table = SHEETS, **names: str | int) -> Path:
    return Path(lake.root) / table.path(**(names or {"dataset": "ds"}))


class TestLake:
    def test_a_new_lake_records_schema_id_and_key(self, tmp_path: Path) -> None:
        lake = Lake(str(tmp_path / "a" / "lake")).open(id_key="0123456789abcdef")
        content = (tmp_path / "a" / "lake" / "lake.json").read_text()
        assert re.fullmatch(r'\{"schema":4,"lake_id":"[0-9a-f-]{36}","id_key":"0123456789abcdef"\}', content)
        assert content[23:59] == lake.lake_id
        assert uuid.UUID(lake.lake_id).version == 4

    def test_only_the_owner_can_open_a_new_lake(self, tmp_path: Path) -> None:
        before = os.umask(0o022)
        try:
            Lake(str(tmp_path / "lake")).open()
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "lake").stat().st_mode) == 0o700

    def test_only_the_owner_can_open_a_folder_with_files(self, tmp_path: Path) -> None:
        (tmp_path / "lake").mkdir(mode=0o755)
        lake = Lake(str(tmp_path / "lake")).open()
        with lake.lock("ds", "a test"):
            lake.write_rows(SHEETS, [cell(1)], dataset="ds")
            lake.write_rows(TAG_PROFILES, [], dataset="ds", shard=1)
            folders = {path.parent for path in (tmp_path / "lake").rglob("*") if path.is_file()} - {tmp_path / "lake"}
        modes = {folder.relative_to(tmp_path).as_posix(): stat.S_IMODE(folder.stat().st_mode) for folder in folders}
        assert modes == {"lake/sheets": 0o700, "lake/tag_profiles/ds": 0o700, "lake/locks": 0o700}

    def test_an_empty_folder_becomes_a_lake(self, tmp_path: Path) -> None:
        assert Lake(str(tmp_path)).open().exists("lake.json")

    def test_a_lake_can_be_opened_again(self, lake: Lake) -> None:
        lake.write_rows(SHEETS, [cell(1)], dataset="ds")
        assert Lake(lake.root).open().read(SHEETS, dataset="ds").num_rows == 1

    def test_a_folder_with_other_files_is_refused_and_unchanged(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.docx").write_text("mine")
        with pytest.raises(LakeError, match="is not empty and is not a lake: choose an empty or a new folder"):
            Lake(str(tmp_path)).open()
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]

    def test_a_file_instead_of_a_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "lake").write_text("mine")
        with pytest.raises(LakeError, match="is not a lake"):
            Lake(str(tmp_path / "lake")).open()
        assert (tmp_path / "lake").read_text() == "mine"

    def test_a_lake_is_created_after_a_killed_creation(self, tmp_path: Path) -> None:
        (tmp_path / "locks").mkdir()
        (tmp_path / ".lake.json.4711.tmp").write_bytes(b'{"sch')
        assert Lake(str(tmp_path)).open().describe().schema == 4

    def test_a_lake_that_another_run_creates_meanwhile_is_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        exists, paths = Lake.exists, []

        def create_meanwhile(lake: Lake, path: str) -> bool:
            paths.append(path)
            if len(paths) > 1:
                return exists(lake, path)
            (tmp_path / "lake.json").write_bytes(CONTENT)  # after the first look
            return False

        monkeypatch.setattr(Lake, "exists", create_meanwhile)
        assert Lake(str(tmp_path)).open().lake_id == LAKE_ID
        assert paths[:2] == ["lake.json", "lake.json"]

    def test_a_lake_that_another_run_creates_just_before_is_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def create_meanwhile(id_key: str | None) -> LakeDescription:
            (tmp_path / "lake.json").write_bytes(CONTENT)
            return LakeDescription(4, "another", id_key)

        monkeypatch.setattr(LakeDescription, "new", create_meanwhile)
        assert Lake(str(tmp_path)).open().lake_id == LAKE_ID
        assert [path.name for path in tmp_path.iterdir()] == ["lake.json"]

    def test_a_lake_can_be_created_without_hard_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: Path, __: Path) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
        lake = Lake(str(tmp_path)).open()
        assert Lake(str(tmp_path)).open().lake_id == lake.lake_id
        assert [path.name for path in tmp_path.iterdir()] == ["lake.json"]

    def test_processes_that_create_a_lake_together_agree_on_its_id(self, tmp_path: Path) -> None:
        code = (
            "import sys, time\n"
            "from dicom_etl.lake.tables import Lake\n"
            "print('ready', flush=True)\n"
            "for line in sys.stdin:\n"
            "    print(Lake(line.strip()).open().lake_id, flush=True)\n"
        )
        command = [sys.executable, "-c", code]
        creators = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            for _ in range(4)
        ]
        streams = [(creator.stdin, creator.stdout) for creator in creators]
        try:
            for _, answers in streams:
                assert answers is not None
                assert answers.readline() == "ready\n"
            for number in range(50):
                for asked, _ in streams:
                    assert asked is not None
                    asked.write(f"{tmp_path}/{number}\n")
                for asked, _ in streams:
                    assert asked is not None
                    asked.flush()
                ids = {answers.readline().strip() for _, answers in streams if answers is not None}
                assert ids == {Lake(f"{tmp_path}/{number}").lake_id}
        finally:
            for creator in creators:
                creator.communicate(timeout=10)

    def test_workers_and_object_stores_have_the_id_of_the_lake(self, tmp_path: Path) -> None:
        for root in (str(tmp_path / "lake"), "memory://test-tables/with-id"):
            lake = Lake(root).open()
            assert pickle.loads(pickle.dumps(lake)).lake_id == lake.lake_id == Lake(root).open().lake_id
        assert Lake(str(tmp_path / "other")).open().lake_id != Lake(str(tmp_path / "lake")).open().lake_id

    def test_a_lake_of_another_key_is_refused_with_advice(self, tmp_path: Path) -> None:
        root = tmp_path / "lake"
        Lake(str(root)).open(id_key="aaaa")
        before = (root / "lake.json").read_bytes()
        with pytest.raises(LakeError) as refused:
            Lake(str(root)).open(id_key="bbbb")
        assert str(refused.value) == (
            f"the resource ids of the lake {root} were made with the key aaaa, not with the configured key bbbb "
            "(fingerprints): set DICOM_ETL_ID_KEY or id_key_file to the key of the lake (without either, the key is "
            "derived from `namespace`). Or rebuild all of its datasets with the configured key: `dicom-etl run "
            "--rebuild`; resources on a FHIR server keep their old ids, so delete them there first"
        )
        assert Lake(str(root)).open().open(id_key="aaaa").open(id_key="bbbb", rebuild=True).describe().id_key == "aaaa"
        assert (root / "lake.json").read_bytes() == before

    def test_a_lake_without_a_key_accepts_any(self, tmp_path: Path) -> None:
        before = Lake(str(tmp_path)).open().describe()
        assert before.id_key is None
        assert Lake(str(tmp_path)).open(id_key="aaaa").open(id_key="bbbb").describe() == before

    @pytest.mark.parametrize("version", [5, "3", "4"])
    def test_an_unknown_schema_version_is_refused_with_advice(self, tmp_path: Path, version: object) -> None:
        (tmp_path / "lake.json").write_bytes(orjson.dumps({"schema": version}))
        with pytest.raises(LakeError) as refused:
            Lake(str(tmp_path)).open()
        assert str(refused.value) == (
            f"the lake {tmp_path} has schema version {version}, and this version of dicom-etl writes 4: use the "
            "version that wrote it, or choose another lake"
        )

    @pytest.mark.parametrize("version", [0, 1, 2, 3])
    def test_an_older_schema_is_refused_with_the_command_to_rebuild(self, tmp_path: Path, version: int) -> None:
        (tmp_path / "lake.json").write_bytes(orjson.dumps({"schema": version}))
        with pytest.raises(LakeError) as refused:
            Lake(str(tmp_path)).open()
        assert str(refused.value) == (
            f"the lake {tmp_path} has schema version {version}, older than 4, which this version of dicom-etl writes: "
            "run `dicom-etl run --rebuild` with all of its datasets to rebuild its tables from the source files"
        )
        lake = Lake(str(tmp_path)).open(rebuild=True, id_key="aaaa")
        assert lake.describe().schema == version
        with pytest.raises(LakeError, match="has no id"):
            _ = lake.lake_id

    @pytest.mark.parametrize("rebuild", [False, True])
    @pytest.mark.parametrize("ledger", ["server/shared.parquet", "server/ds/sub-1.parquet"])
    @pytest.mark.parametrize("store", ["local", "memory"])
    def test_an_older_schema_with_ledgers_is_refused_with_advice(
        self, tmp_path: Path, rebuild: bool, ledger: str, store: str
    ) -> None:
        root = str(tmp_path) if store == "local" else f"memory://ledgers/{rebuild}/{ledger}"
        lake = Lake(root)
        lake.root_path.mkdir(parents=True, exist_ok=True)
        lake.write_bytes("lake.json", b'{"schema":2}')
        lake.resolve("outcomes/server/ds").mkdir(parents=True)
        assert Lake(root).open(rebuild=True).describe().is_outdated
        lake.write_bytes(f"outcomes/{ledger}", b"a ledger")
        with pytest.raises(LakeError) as refused:
            Lake(root).open(rebuild=rebuild, id_key="aaaa")
        assert str(refused.value) == (
            f"the lake {root} has schema version 2 and upload ledgers of that version, and this version of dicom-etl "
            "makes other resource ids. First delete its resources from the FHIR server: run `dicom-etl forget` with "
            "the version of dicom-etl that wrote the lake, or empty the server. Then remove the folder "
            f"{lake.resolve('outcomes')} and run `dicom-etl run --rebuild`"
        )

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"[]", b"{}", b"null", b'{"schema":4}', b'{"schema":4,"lake_id":"a","id_key":7}'],
    )
    def test_a_damaged_description_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "lake.json").write_bytes(content)
        with pytest.raises(LakeError, match=r"lake\.json cannot be read: restore it, or choose another lake"):
            Lake(str(tmp_path)).open()


GROUPED = replace(SHEETS, row_group_size=10)  # row groups of ten rows


def make_batches(*sizes: int) -> list[pa.Table]:
    """Rows 0, 1, 2, ... of the sheets table, cut into batches."""
    table = pa.Table.from_pylist([cell(row, value=None) for row in range(sum(sizes))], schema=SHEETS.schema)
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [table.slice(start, size) for start, size in zip(starts, sizes, strict=True)]


_PATH = Column("path", pa.string(), "a path")


PATHS = Table("paths", "paths/{dataset}.parquet", "Paths.", (_PATH,), ("path",), row_group_size=3)


class TestTable:
    def test_rows_are_read_as_written_in_the_order_of_the_table(self, lake: Lake) -> None:
        rows = [cell(2), cell(1, "sex"), cell(1, "age", None)]
        lake.write_rows(SHEETS, rows, dataset="ds")
        assert lake.read(SHEETS, dataset="ds").to_pylist() == [cell(1, "age", None), cell(1, "sex"), cell(2)]

    def test_only_some_columns_can_be_read(self, lake: Lake) -> None:
        lake.write_rows(SHEETS, [cell(1)], dataset="ds")
        assert lake.read(SHEETS, ["subject", "value"], dataset="ds").to_pylist() == [
            {"subject": "sub-1", "value": "Female"}
        ]

    def test_a_missing_table_is_empty_with_its_columns(self, lake: Lake) -> None:
        assert lake.read(SHEETS, dataset="none").equals(SHEETS.schema.empty_table())
        assert lake.read(SHEETS, ["value"], dataset="none").column_names == ["value"]
        assert lake.count_rows(SHEETS, dataset="none") == 0

    def test_a_table_without_rows_is_written(self, lake: Lake) -> None:
        lake.write_rows(SHEETS, [], fingerprint="f", dataset="ds")
        assert lake.read(SHEETS, dataset="ds").equals(SHEETS.schema.empty_table())
        assert lake.read_fingerprint(SHEETS, dataset="ds") == "f"

    def test_rows_are_counted(self, lake: Lake) -> None:
        lake.write_rows(SHEETS, [cell(1), cell(2)], dataset="ds")
        assert lake.count_rows(SHEETS, dataset="ds") == 2

    def test_the_fingerprint_is_in_the_footer(self, lake: Lake) -> None:
        lake.write_rows(SHEETS, [cell(1)], fingerprint="abc", dataset="ds")
        assert pq.read_metadata(table_path(lake)).metadata[b"dicom_etl.fingerprint"] == b"abc"
        assert lake.read_fingerprint(SHEETS, dataset="ds") == "abc"

    def test_a_missing_table_has_no_fingerprint(self, lake: Lake) -> None:
        assert lake.read_fingerprint(SHEETS, dataset="ds") is None

    def test_rows_in_another_order_give_the_same_bytes(self, lake: Lake, tmp_path: Path) -> None:
        rows = [cell(number, field) for number in range(50) for field in ("age", "sex")]
        lake.write_rows(SHEETS, rows, fingerprint="f", dataset="ds")
        other = make_lake(tmp_path / "other")
        other.write_rows(SHEETS, rows[::-1], fingerprint="f", dataset="ds")
        assert table_path(lake).read_bytes() == table_path(other).read_bytes()

    def test_columns_in_another_order_give_the_same_bytes(self, lake: Lake, tmp_path: Path) -> None:
        table = pa.Table.from_pylist([cell(1), cell(2)], schema=SHEETS.schema)
        lake.write(SHEETS, table, dataset="ds")
        chunks = pa.concat_tables([table.slice(1), table.slice(0, 1)]).select(SHEETS.schema.names[::-1])
        other = make_lake(tmp_path / "other")
        other.write(SHEETS, chunks, dataset="ds")
        assert table_path(lake).read_bytes() == table_path(other).read_bytes()

    @pytest.mark.parametrize("sizes", [(25,), (10, 15), (3, 4, 0, 18), (1,) * 25, (20, 5), (24, 1)])
    def test_batches_of_any_size_give_the_same_bytes(self, lake: Lake, tmp_path: Path, sizes: tuple[int, ...]) -> None:
        lake.write(GROUPED, make_batches(25)[0], fingerprint="f", dataset="ds")
        other = make_lake(tmp_path / "other")
        other.write_batches(GROUPED, make_batches(*sizes), fingerprint="f", dataset="ds")
        assert table_path(other).read_bytes() == table_path(lake).read_bytes()
        metadata = pq.read_metadata(table_path(other))
        assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [10, 10, 5]

    def test_no_batches_give_an_empty_table(self, lake: Lake, tmp_path: Path) -> None:
        lake.write_rows(SHEETS, [], dataset="ds")
        other = make_lake(tmp_path / "other")
        other.write_batches(SHEETS, [], dataset="ds")
        assert table_path(other).read_bytes() == table_path(lake).read_bytes()

    def test_a_column_that_only_a_later_batch_fills_is_written(self, lake: Lake, tmp_path: Path) -> None:
        first, second = make_batches(12)[0], pa.Table.from_pylist([cell(12, value="late")], schema=SHEETS.schema)
        lake.write(GROUPED, pa.concat_tables([first, second]), dataset="ds")
        other = make_lake(tmp_path / "other")
        other.write_batches(GROUPED, [first, second], dataset="ds")
        assert table_path(other).read_bytes() == table_path(lake).read_bytes()

    def test_a_batch_out_of_order_is_refused_and_the_table_unchanged(self, lake: Lake) -> None:
        lake.write_rows(SHEETS, [cell(1)], dataset="ds")
        before = table_path(lake).read_bytes()
        with pytest.raises(SchemaError, match="sheets: a batch begins before the end of the previous one"):
            lake.write_batches(SHEETS, make_batches(3, 4)[::-1], dataset="ds")
        assert table_path(lake).read_bytes() == before
        assert [path.name for path in table_path(lake).parent.iterdir()] == ["ds.parquet"]

    def test_a_batch_with_other_columns_is_refused(self, lake: Lake) -> None:
        with pytest.raises(SchemaError, match="missing or unknown columns: value"):
            lake.write_batches(SHEETS, [make_batches(3)[0].drop_columns("value")], dataset="ds")
        assert not table_path(lake).exists()

    @pytest.mark.parametrize(
        ("first", "last", "expected"),
        [("b", "b", ["b"]), ("c", "f", ["c", "d", "e", "f"]), ("", "a/z", ["a"]), ("x", "z", []), ("aa", "ab", [])],
    )
    def test_rows_between_two_values_are_found(self, lake: Lake, first: str, last: str, expected: list[str]) -> None:
        lake.write_rows(PATHS, [{"path": path} for path in "abcdefgh"], dataset="ds")
        assert lake.read_between(PATHS, {"path": (first, last)}, dataset="ds")["path"].to_pylist() == expected

    def test_only_row_groups_that_may_contain_the_rows_are_read(
        self, lake: Lake, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lake.write_rows(PATHS, [{"path": path} for path in "abcdefgh"], dataset="ds")
        groups: list[int] = []
        read = pq.ParquetFile.read_row_group

        def record_group(file: pq.ParquetFile, group: int, *args: Any, **options: Any) -> Any:
            groups.append(group)
            return read(file, group, *args, **options)

        monkeypatch.setattr(pq.ParquetFile, "read_row_group", record_group)
        lake.read_between(PATHS, {"path": ("e", "e")}, dataset="ds")
        lake.read_between(PATHS, {"path": ("f", "g")}, dataset="ds")
        assert groups == [1, 1, 2]

    def test_no_rows_are_found_in_a_missing_table(self, lake: Lake) -> None:
        assert lake.read_between(PATHS, {"path": ("a", "z")}, dataset="none").equals(PATHS.schema.empty_table())

    def test_row_groups_have_100_000_rows(self, lake: Lake) -> None:
        count = 100_001
        columns = {
            "tag_profile": range(count),
            "tag": ["00080060"] * count,
            "creator": [None] * count,
            "status": [2] * count,
        }
        lake.write(TAG_PROFILES, pa.table(columns, schema=TAG_PROFILES.schema), dataset="ds", shard=0)
        metadata = pq.read_metadata(table_path(lake, TAG_PROFILES, dataset="ds", shard=0))
        assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [100_000, 1]

    def test_other_programs_read_a_table_with_plain_types(self, lake: Lake) -> None:
        lake.write_rows(SHEETS, [cell(1)], dataset="ds")
        path = str(table_path(lake))
        assert pd.read_parquet(path)["subject"].tolist() == ["sub-1"]
        assert duckdb.sql(f"SELECT row, value, sample FROM read_parquet('{path}')").fetchall() == [(1, "Female", None)]


class TestSchemaCheck:
    def test_a_missing_column_is_refused(self, lake: Lake) -> None:
        rows = pa.Table.from_pylist([cell(1)], schema=SHEETS.schema).drop_columns(["value"])
        with pytest.raises(SchemaError, match="sheets: missing or unknown columns: value"):
            lake.write(SHEETS, rows, dataset="ds")

    def test_an_unknown_column_is_refused(self, lake: Lake) -> None:
        rows = pa.Table.from_pylist([cell(1)], schema=SHEETS.schema).append_column("colour", pa.array(["red"]))
        with pytest.raises(SchemaError, match="sheets: missing or unknown columns: colour"):
            lake.write(SHEETS, rows, dataset="ds")

    def test_a_column_of_another_type_is_refused(self, lake: Lake) -> None:
        rows = pa.Table.from_pylist([cell(1)], schema=SHEETS.schema)
        wrong = rows.set_column(3, "row", pa.array([1], pa.int64()))
        with pytest.raises(SchemaError, match=r"sheets\.row is int64 and should be int32"):
            lake.write(SHEETS, wrong, dataset="ds")

    def test_a_column_of_nulls_fits_any_type(self, lake: Lake) -> None:
        rows = pa.Table.from_pylist([cell(1)], schema=SHEETS.schema)
        lake.write(SHEETS, rows.set_column(7, "value", pa.nulls(1)), dataset="ds")
        assert lake.read(SHEETS, dataset="ds").schema.field("value").type == pa.string()

    def test_a_refused_table_leaves_the_old_one(self, lake: Lake) -> None:
        lake.write_rows(SHEETS, [cell(1)], fingerprint="old", dataset="ds")
        with pytest.raises(SchemaError):
            lake.write(SHEETS, pa.table({"value": ["x"]}), fingerprint="new", dataset="ds")
        assert lake.read_fingerprint(SHEETS, dataset="ds") == "old"


class _DiskFullError(OSError):
    pass


_KILLED_WRITER = """
import os, signal, sys
import pyarrow.parquet as pq
from dicom_etl.lake.schemas import SHEETS
from dicom_etl.lake.tables import Lake
lake = Lake(sys.argv[1])
write = pq.ParquetWriter.write_table
def write_half(self, *args, **more):
    write(self, *args, **more)
    os.kill(os.getpid(), signal.SIGKILL)
pq.ParquetWriter.write_table = write_half
lake.write_rows(SHEETS, [], fingerprint="new", dataset="ds")
"""


def run_killed_writer(lake: Lake) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED_WRITER, lake.root], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL


class TestAtomicWrites:
    def test_a_failed_write_leaves_only_the_old_table(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        lake.write_rows(SHEETS, [cell(1)], fingerprint="old", dataset="ds")

        def raise_disk_full(*_args: object, **_more: object) -> None:
            raise _DiskFullError

        monkeypatch.setattr(pq.ParquetWriter, "write_table", raise_disk_full)
        with pytest.raises(_DiskFullError):
            lake.write_rows(SHEETS, [cell(2)], fingerprint="new", dataset="ds")
        assert lake.read(SHEETS, dataset="ds").to_pylist() == [cell(1)]
        assert [path.name for path in table_path(lake).parent.iterdir()] == ["ds.parquet"]

    def test_a_killed_writer_leaves_the_old_table(self, lake: Lake) -> None:
        lake.write_rows(SHEETS, [cell(1)], fingerprint="old", dataset="ds")
        before = hashlib.sha256(table_path(lake).read_bytes()).hexdigest()
        run_killed_writer(lake)
        assert hashlib.sha256(table_path(lake).read_bytes()).hexdigest() == before
        assert lake.list_names("sheets", ".parquet") == ["ds"]

    def test_temporary_files_of_a_killed_writer_are_removed(self, lake: Lake) -> None:
        lake.write_rows(SHEETS, [cell(1)], dataset="ds")
        run_killed_writer(lake)
        assert len(list(table_path(lake).parent.iterdir())) == 2
        lake.remove_temporary_files("sheets")
        assert [path.name for path in table_path(lake).parent.iterdir()] == ["ds.parquet"]

    def test_removal_in_a_missing_folder_is_no_error(self, lake: Lake) -> None:
        lake.remove_temporary_files("headers/none")
        assert not lake.exists("headers")


class TestOtherFiles:
    def test_bytes_are_read_as_written(self, lake: Lake) -> None:
        lake.write_bytes("fhir/Patient/ds/u.ndjson", b"{}\n")
        assert lake.read_bytes("fhir/Patient/ds/u.ndjson") == b"{}\n"
        assert lake.exists("fhir/Patient/ds/u.ndjson")

    def test_a_missing_file_has_no_bytes(self, lake: Lake) -> None:
        assert lake.read_bytes("fhir/Patient/ds/u.ndjson") is None
        assert not lake.exists("fhir/Patient/ds/u.ndjson")

    def test_a_missing_file_can_be_removed(self, lake: Lake) -> None:
        lake.write_bytes("x/y", b"")
        lake.remove("x/y")
        lake.remove("x/y")
        assert not lake.exists("x/y")

    def test_names_with_a_suffix_are_listed_in_order(self, lake: Lake) -> None:
        for name in ("b.parquet", "a.parquet", "c.ndjson", ".d.parquet.1.tmp"):
            lake.write_bytes(f"files/ds/{name}", b"")
        assert lake.list_names("files/ds", ".parquet") == ["a", "b"]
        assert lake.list_names("files/none", ".parquet") == []

    def test_an_object_store_can_be_a_lake(self) -> None:
        lake = Lake("memory://test-tables/lake").open()
        lake.write_rows(FILES, [], fingerprint="f", dataset="ds", shard=1)
        lake.write_rows(INVENTORY, [], dataset="ds")
        assert Lake("memory://test-tables/lake").open().read_fingerprint(FILES, dataset="ds", shard=1) == "f"
        assert lake.list_names("files/ds", ".parquet") == ["0001"]
        assert lake.read(INVENTORY, dataset="ds").num_rows == 0
        lake.remove(FILES.path(dataset="ds", shard=1))
        assert lake.read_fingerprint(FILES, dataset="ds", shard=1) is None
