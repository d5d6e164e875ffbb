"""Rebuilding a lake: what is removed, what stays, and how records of older versions are read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest

from dicom_etl.lake.description import LakeDescription
from dicom_etl.lake.locks import LockHeldError
from dicom_etl.lake.migration import clear_datasets, needs_rebuild
from dicom_etl.lake.schemas import INVENTORY, WITHDRAWN
from dicom_etl.lake.tables import Lake, LakeError
from tests.support.command import RunCommand
from tests.support.datasets import Tree, make_tree
from tests.withdrawal.old_records import write_old_record

KEPT = ("ledger.sqlite", "upload_ledger/server/ds.parquet", "withdrawn/ds.parquet", "locks/ds.lock")

CRAWLED = ("inventory/ds.parquet", "sheets/ds.parquet", "findings/crawl/ds/dataset.parquet")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Two subjects, built, with a ledger as files of any hash_files."""
    tree = make_tree(tmp_path)
    tree.write("sub-1/1.dcm")
    tree.write("sub-2/1.dcm", PatientID="P-2")
    tree.run()
    for name in KEPT[:2]:
        tree.lake.write_bytes(name, name.encode())
    return tree


def hash_files(lake: Lake) -> dict[str, str]:
    root = Path(lake.root)
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_a_lake_with_ledgers_of_an_older_version_is_refused(tree: Tree) -> None:
    lake = make_outdated(tree.lake)
    for path in ("outcomes/server/shared.parquet", "outcomes/server/ds/sub-1.parquet"):
        lake.write_bytes(path, b"of schema 1")
        before = hash_files(lake)
        for rebuild in (False, True):
            with pytest.raises(LakeError, match="has schema version 1 and upload ledgers") as refused:
                Lake(lake.root).open(rebuild=rebuild)
            assert "delete its resources from the FHIR server" in str(refused.value)
        assert hash_files(lake) == before
        lake.remove(path)
    assert Lake(lake.root).open(rebuild=True).describe().is_outdated


def make_outdated(lake: Lake) -> Lake:
    """The same lake as an older version left it: with folders that are no longer written."""
    lake.write_bytes("lake.json", orjson.dumps({"schema": 1}))
    lake.write_bytes(".pieces/extract/ds/0123456789ab.headers", b"of schema 3")
    lake.write_bytes("layouts/ds/sub-1.parquet", b"of schema 1")
    lake.write_bytes("headers/ds/sub-1.parquet", b"of schema 1")
    return lake


def set_key(lake: Lake, id_key: str) -> Lake:
    """The same lake as if it had been created with a key of this fingerprint."""
    lake.write_bytes("lake.json", LakeDescription.new(id_key, lake.lake_id).dump())
    return lake


def test_an_outdated_lake_is_cleared_except_for_what_must_stay(tree: Tree) -> None:
    lake = make_outdated(tree.lake)
    write_old_record(lake, 3, ["digest"], "key")
    before = hash_files(lake)
    assert needs_rebuild(lake, None)
    clear_datasets(lake, ["ds"], "aaaa")
    after = hash_files(lake)
    assert set(after) == {*KEPT, *CRAWLED, "lake.json"}
    rewritten = {"lake.json", "withdrawn/ds.parquet"}
    assert {name: after[name] for name in after.keys() - rewritten} == {
        name: before[name] for name in after.keys() - rewritten
    }
    [record] = pq.read_table(Path(lake.root, "withdrawn/ds.parquet")).to_pylist()
    assert (record["namespace"], record["digest"]) == ("https://site.example", "digest")
    description = lake.describe()
    assert (description.schema, description.lake_id, description.id_key) == (4, lake.lake_id, "aaaa")
    assert not needs_rebuild(lake, "aaaa")


def test_a_lake_of_another_key_is_cleared_and_keeps_its_id(tree: Tree, tmp_path: Path) -> None:
    other = make_tree(tmp_path, "other", lake=tree.lake)
    other.write("sub-1/1.dcm")
    other.run()
    lake = set_key(tree.lake, "aaaa")
    identity = lake.lake_id
    assert [needs_rebuild(lake, id_key) for id_key in (None, "aaaa", "bbbb")] == [False, False, True]
    clear_datasets(lake, ["ds", "other"], "bbbb")
    assert {name for name in hash_files(lake) if "/other" in name or "/ds" in name} == {
        KEPT[1],
        *CRAWLED,
        *(name.replace("ds", "other") for name in CRAWLED),
        "locks/ds.lock",
        "locks/other.lock",
    }
    assert Lake(lake.root).open(id_key="bbbb").lake_id == identity


def test_clearing_datasets_keeps_the_key_of_the_lake(tree: Tree) -> None:
    lake = set_key(tree.lake, "aaaa")
    before = lake.describe()
    clear_datasets(lake, ["ds"], "aaaa")
    clear_datasets(lake, ["ds"])
    assert lake.describe() == before


def test_a_partly_cleared_lake_is_still_refused(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = set_key(tree.lake, "aaaa")
    removed: list[str] = []

    def remove(_: Lake, path: str) -> None:
        removed.append(path)
        if len(removed) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Lake, "remove_folder", remove)
    with pytest.raises(KeyboardInterrupt):
        clear_datasets(lake, ["ds"], "bbbb")
    assert Lake(lake.root).describe().id_key == "aaaa"


def test_a_cleared_lake_is_rebuilt_to_the_same_bytes(tree: Tree) -> None:
    before = hash_files(tree.lake)
    lake = make_outdated(tree.lake)
    clear_datasets(lake, ["ds"])
    assert tree.run().units_processed == 2
    assert hash_files(lake) | {"lake.json": ""} == before | {"lake.json": ""}


def test_clearing_a_dataset_keeps_the_others(tree: Tree, tmp_path: Path) -> None:
    other = make_tree(tmp_path, "other", lake=tree.lake)
    other.write("sub-1/1.dcm")
    other.run()
    before = hash_files(tree.lake)
    clear_datasets(tree.lake, ["ds"])
    left = hash_files(tree.lake)
    assert {name for name in before if "/other" in name} <= set(left)
    assert {name for name in left if "/ds" in name} == {*KEPT, *CRAWLED} - {"ledger.sqlite", "withdrawn/ds.parquet"}
    assert left["ledger.sqlite"] == before["ledger.sqlite"]
    tree.run()
    assert hash_files(tree.lake) == before


def test_a_dataset_that_is_being_written_is_not_cleared(tree: Tree) -> None:
    with tree.lake.lock("ds", "extract of ds"), pytest.raises(LockHeldError):
        clear_datasets(make_outdated(Lake(tree.lake.root, lock_wait=0)), ["ds"])


class TestWithdrawals:
    @pytest.mark.parametrize("schema", [2, 3])
    def test_a_rebuild_of_an_old_lake_excludes_withdrawn_subjects(
        self, tree: Tree, run_command: RunCommand, schema: int
    ) -> None:
        lake = make_outdated(tree.lake)
        lake.write_bytes("lake.json", orjson.dumps({"schema": schema}))
        lake.remove("ledger.sqlite")
        digest = hashlib.sha256(b'["https://site.example","ds","sub-1"]').hexdigest()
        write_old_record(lake, schema, [digest], None)
        write_old_record(lake, schema, [None], None, dataset="all")
        (tree.root.parent / "all").mkdir()

        code, out, err = run_command("run", tree.root, f"all={tree.root}", "--lake", lake.root, "--rebuild")

        assert code == 0, out + err
        assert "dataset all was withdrawn" in " ".join((out + err).split())
        assert set(lake.read(INVENTORY, dataset="ds")["unit"].to_pylist()) == {"sub-2"}
        assert lake.list_names("inventory") == ["ds.parquet"]
        for dataset, expected in (("ds", digest), ("all", None)):
            file = pq.ParquetFile(Path(lake.root, "withdrawn", f"{dataset}.parquet"))
            assert file.schema_arrow.names == WITHDRAWN.schema.names
            [row] = file.read().to_pylist()
            assert (row["namespace"], row["digest"], row["files"]) == ("https://site.example", expected, 3)

    def test_a_damaged_record_stops_a_rebuild_before_it_removes(self, tree: Tree) -> None:
        lake = make_outdated(tree.lake)
        lake.write_bytes("withdrawn/other.parquet", b"damaged")
        before = hash_files(lake)
        with pytest.raises(LakeError, match=r"withdrawn/other.parquet is damaged"):
            clear_datasets(lake, ["ds"], "aaaa")
        assert hash_files(lake) == before
