"""The record of withdrawals: by which key a subject is recognized, and what happens without it."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.schemas import WITHDRAWN
from dicom_etl.lake.tables import Lake, LakeError
from dicom_etl.withdrawal.record import WithdrawalRecord, WithdrawalRow, exclude_withdrawn, parse_pending_deletions
from tests.support.datasets import make_lake
from tests.withdrawal.old_records import DIGEST_OF_SCHEMA_2, NAMESPACE, record_path, write_old_record

OTHER = "https://other.example"
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
KEYED, DERIVED = ResourceIds.from_key(NAMESPACE, KEY), ResourceIds.from_key(NAMESPACE, None)
SCHEMAS = [(2, DIGEST_OF_SCHEMA_2, None), (3, KEYED.withdrawal_digest("ds", "sub-ada"), KEYED.key_fingerprint)]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return make_lake(tmp_path)


def make_record(*rows: WithdrawalRow, ids: ResourceIds | None) -> WithdrawalRecord:
    return WithdrawalRecord("ds", rows, ids)


def make_row(subject: str, ids: ResourceIds) -> WithdrawalRow:
    return WithdrawalRow("ds", NAMESPACE, ids.withdrawal_digest("ds", subject), ids.key_fingerprint)


@pytest.mark.parametrize("configured", [KEYED, ResourceIds.from_key(OTHER, KEY)], ids=["same", "another namespace"])
def test_a_subject_is_recognized_by_the_key_of_its_row(configured: ResourceIds) -> None:
    withdrawn = make_record(make_row("sub-ada", KEYED), ids=configured)
    assert [withdrawn.is_withdrawn(name) for name in ("sub-ada", "sub-bob", None)] == [True, False, False]
    assert withdrawn.find_row("sub-ada") is not None
    assert withdrawn.find_row("sub-bob") is None
    assert withdrawn.is_in_path("primary/sub-ada/1.dcm")


@pytest.mark.parametrize("configured", [None, DERIVED, KEYED, ResourceIds.from_key(OTHER, None)])
def test_a_withdrawal_without_a_key_is_recognized_under_any_key(configured: ResourceIds | None) -> None:
    withdrawn = make_record(make_row("sub-ada", DERIVED), ids=configured)
    assert [withdrawn.is_withdrawn(name) for name in ("sub-ada", "sub-bob")] == [True, False]


class TestFilesOfOlderVersions:
    """Records in the columns of schemas 2 and 3, written by hand."""

    @pytest.mark.parametrize(("schema", "digest", "id_key"), SCHEMAS, ids=["schema 2", "schema 3"])
    def test_a_withdrawal_still_counts(self, lake: Lake, schema: int, digest: str, id_key: str | None) -> None:
        write_old_record(lake, schema, [digest], id_key, pending='{"server": ["Patient/p"]}')

        record = WithdrawalRecord.read(lake, "ds", KEYED)

        assert [record.is_withdrawn(name) for name in ("sub-ada", "sub-bob")] == [True, False]
        [row] = record.rows
        assert (row.namespace, row.digest, row.id_key, row.files) == (NAMESPACE, digest, id_key, 3)
        assert parse_pending_deletions(row) == {"server": {"Patient/p"}}

    @pytest.mark.parametrize(("schema", "digest", "id_key"), SCHEMAS, ids=["schema 2", "schema 3"])
    def test_the_next_write_has_the_new_columns(self, lake: Lake, schema: int, digest: str, id_key: str | None) -> None:
        write_old_record(lake, schema, [digest], id_key)

        record = WithdrawalRecord.read(lake, "ds", KEYED)
        record.with_row(make_row("sub-bob", KEYED), "sub-bob").write(lake)

        assert pq.ParquetFile(record_path(lake)).schema_arrow.names == WITHDRAWN.schema.names
        record = WithdrawalRecord.read(lake, "ds", KEYED)
        assert [record.is_withdrawn(name) for name in ("sub-ada", "sub-bob", "sub-cyd")] == [True, True, False]
        assert [row.digest for row in record.without_row("sub-bob").rows] == [digest]

    def test_a_withdrawn_dataset_stays_withdrawn(self, lake: Lake) -> None:
        write_old_record(lake, 3, [None], None)
        assert WithdrawalRecord.read(lake, "ds").is_dataset_withdrawn
        assert exclude_withdrawn(lake, {"ds": 1, "other": 2}) == {"other": 2}


@pytest.mark.parametrize("content", [b"PAR1 cut off", b""])
def test_a_damaged_record_is_refused(lake: Lake, content: bytes) -> None:
    lake.write_bytes("withdrawn/ds.parquet", content)
    with pytest.raises(LakeError, match=r"withdrawn/ds.parquet is damaged .* restore this file from a backup"):
        WithdrawalRecord.read(lake, "ds", KEYED)


@pytest.mark.parametrize("configured", [None, DERIVED, ResourceIds.from_key(NAMESPACE, OTHER_KEY)])
def test_under_another_key_every_question_is_refused(configured: ResourceIds | None) -> None:
    withdrawn = make_record(make_row("sub-ada", KEYED), ids=configured)
    for ask in (withdrawn.is_withdrawn, withdrawn.find_row, withdrawn.is_in_path, withdrawn.without_row):
        with pytest.raises(LakeError) as refused:
            ask("sub-bob")
        assert str(refused.value) == (
            f"the withdrawals from ds are recorded under the id key {KEYED.key_fingerprint} (fingerprint), which "
            "is not the configured one: set DICOM_ETL_ID_KEY or id_key_file to that key; or remove the files of its "
            "withdrawn subjects from its folder, then withdrawn/ds.parquet from the lake"
        )


def test_the_row_of_a_whole_dataset_needs_no_key() -> None:
    withdrawn = make_record(WithdrawalRow("ds", NAMESPACE, None, None), ids=None)
    assert withdrawn.is_dataset_withdrawn
    assert not withdrawn.is_withdrawn("sub-ada")
    assert withdrawn.without_row(None).rows == []
