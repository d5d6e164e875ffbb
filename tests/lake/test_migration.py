"""Building a lake again: what is removed, what stays, and the command that does it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import orjson
import pytest

from dicom_etl.lake.locks import LockHeldError
from dicom_etl.lake.migration import clear, is_outdated
from dicom_etl.lake.tables import Lake
from tests.corpus import Tree, tree_of

KEPT = ("outcomes/server/ds/sub-1.parquet", "outcomes/server/ds/.here", "withdrawn/ds.parquet", "locks/ds.lock")

CRAWLED = ("inventory/ds.parquet", "sheets/ds.parquet", "findings/crawl/ds/dataset.parquet")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Two subjects, built, with a ledger and a record of withdrawals as files of any content."""
    tree = tree_of(tmp_path)
    tree.write("sub-1/1.dcm")
    tree.write("sub-2/1.dcm", PatientID="P-2")
    tree.run()
    for name in KEPT[:2]:
        tree.lake.write_bytes(name, name.encode())
    return tree


def content(lake: Lake) -> dict[str, str]:
    root = Path(lake.root)
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def outdated(lake: Lake) -> Lake:
    """The same lake as an older version left it: with a folder that is no longer written."""
    lake.write_bytes("lake.json", orjson.dumps({"schema": 1}))
    lake.write_bytes("layouts/ds/sub-1.parquet", b"of schema 1")
    lake.write_bytes("headers/ds/sub-1.parquet", b"of schema 1")
    return lake


def test_an_outdated_lake_is_cleared_but_for_ledger_withdrawals_locks_inventory_and_sheets(tree: Tree) -> None:
    lake = outdated(tree.lake)
    lake.write_bytes("withdrawn/ds.parquet", b"a record")
    before = content(lake)
    assert is_outdated(lake)
    clear(lake, ["ds"])
    after = content(lake)
    assert set(after) == {*KEPT, *CRAWLED, "lake.json"}
    assert {name: after[name] for name in after if name != "lake.json"} == {
        name: before[name] for name in after if name != "lake.json"
    }
    assert orjson.loads(lake.read_bytes("lake.json") or b"") == {"schema": 2}
    assert not is_outdated(lake)


def test_a_cleared_lake_is_built_to_the_same_bytes(tree: Tree) -> None:
    before = content(tree.lake)
    lake = outdated(tree.lake)
    clear(lake, ["ds"])
    assert tree.run().units_made == 2
    assert content(lake) == before


def test_a_dataset_is_cleared_and_the_others_stay(tree: Tree, tmp_path: Path) -> None:
    other = tree_of(tmp_path, "other", lake=tree.lake)
    other.write("sub-1/1.dcm")
    other.run()
    before = content(tree.lake)
    clear(tree.lake, ["ds"])
    left = content(tree.lake)
    assert {name for name in before if "/other" in name} <= set(left)
    assert {name for name in left if "/ds" in name} == {*KEPT, *CRAWLED} - {"withdrawn/ds.parquet"}
    tree.run()
    assert content(tree.lake) == before


def test_a_dataset_that_is_being_written_is_not_cleared(tree: Tree) -> None:
    with tree.lake.lock("ds", "extract of ds"), pytest.raises(LockHeldError):
        clear(outdated(Lake(tree.lake.root, lock_wait=0)), ["ds"])
