"""The record of withdrawals: by which key a subject is recognized, and what happens without it.

The digest of schema 2 was computed with `printf '["https://site.example","ds","sub-ada"]' | sha256sum`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.schemas import WITHDRAWN
from dicom_etl.lake.tables import Lake, LakeError
from dicom_etl.lake.withdrawn import Withdrawn
from tests.support.datasets import make_lake

NAMESPACE, OTHER = "https://site.example", "https://other.example"
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
KEYED, DERIVED = ResourceIds.from_key(NAMESPACE, KEY), ResourceIds.from_key(NAMESPACE, None)
OF_SCHEMA_2 = "d367ce64b6acc1867bfe78274476603d79c53f75a98e6539c279d1295244dde0"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return make_lake(tmp_path)


def row(digest: str | None, id_key: str | None) -> dict[str, Any]:
    """A row of the record."""
    counts = dict.fromkeys(("files", "studies", "patients", "imaging_studies", "endpoints"), 0)
    return {"dataset": "ds", "namespace": NAMESPACE, "digest": digest, "id_key": id_key, **counts}


def record(*rows: dict[str, Any], ids: ResourceIds | None) -> Withdrawn:
    return Withdrawn("ds", rows, ids)


def row_of(subject: str, ids: ResourceIds) -> dict[str, Any]:
    return row(ids.withdrawal_digest("ds", subject), ids.key_fingerprint)


@pytest.mark.parametrize("configured", [KEYED, ResourceIds.from_key(OTHER, KEY)], ids=["same", "another namespace"])
def test_a_subject_is_recognized_by_the_key_of_its_row(configured: ResourceIds) -> None:
    withdrawn = record(row_of("sub-ada", KEYED), ids=configured)
    assert [withdrawn.has(name) for name in ("sub-ada", "sub-bob", None)] == [True, False, False]
    assert withdrawn.row("sub-ada") is not None
    assert withdrawn.row("sub-bob") is None
    assert withdrawn.lies_in("primary/sub-ada/1.dcm")


@pytest.mark.parametrize("configured", [None, DERIVED, KEYED, ResourceIds.from_key(OTHER, None)])
def test_a_subject_that_was_withdrawn_without_a_key_is_recognized_under_any(configured: ResourceIds | None) -> None:
    withdrawn = record(row_of("sub-ada", DERIVED), ids=configured)
    assert [withdrawn.has(name) for name in ("sub-ada", "sub-bob")] == [True, False]


def test_a_subject_that_a_lake_of_schema_2_has_is_recognized(lake: Lake) -> None:
    former = WITHDRAWN.schema.remove(WITHDRAWN.schema.get_field_index("id_key"))
    lake.write_rows(WITHDRAWN, [row(OF_SCHEMA_2, None)], dataset="ds")
    file = Path(lake.root, Withdrawn.path_of("ds"))
    pq.write_table(pq.ParquetFile(file).read().select(former.names), file)
    withdrawn = Withdrawn.of(lake, "ds", KEYED)
    assert [withdrawn.has(name) for name in ("sub-ada", "sub-bob")] == [True, False]
    withdrawn.with_row(row_of("sub-bob", KEYED), "sub-bob").write(lake)
    withdrawn = Withdrawn.of(lake, "ds", KEYED)
    assert [withdrawn.has(name) for name in ("sub-ada", "sub-bob", "sub-cyd")] == [True, True, False]
    assert [one["id_key"] for one in withdrawn.without_row("sub-ada").rows] == [KEYED.key_fingerprint]


@pytest.mark.parametrize("configured", [None, DERIVED, ResourceIds.from_key(NAMESPACE, OTHER_KEY)])
def test_under_another_key_nobody_is_taken_for_present(configured: ResourceIds | None) -> None:
    withdrawn = record(row_of("sub-ada", KEYED), ids=configured)
    for ask in (withdrawn.has, withdrawn.row, withdrawn.lies_in, withdrawn.without_row):
        with pytest.raises(LakeError) as refused:
            ask("sub-bob")
        assert str(refused.value) == (
            f"who was withdrawn from ds is recorded under the id key {KEYED.key_fingerprint} (fingerprint), which "
            "is not the configured one: set DICOM_ETL_ID_KEY or id_key_file to that key; or remove the files of its "
            "withdrawn subjects from its folder, then withdrawn/ds.parquet from the lake"
        )


def test_the_row_of_a_whole_dataset_needs_no_key() -> None:
    withdrawn = record(row(None, None), ids=None)
    assert withdrawn.whole is not None
    assert not withdrawn.has("sub-ada")
    assert withdrawn.without_row(None).rows == []
