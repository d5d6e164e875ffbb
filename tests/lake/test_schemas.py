"""Where each table lies, and that what is written is what the description says."""

import pyarrow as pa
import pytest

from dicom_etl.lake import schemas
from dicom_etl.lake.schemas import RESOURCES, Table, headers, place

TABLES = [value for value in vars(schemas).values() if isinstance(value, Table)] + [headers()]


@pytest.mark.parametrize(
    ("table", "names", "path"),
    [
        (schemas.INVENTORY, {"dataset": "breast"}, "inventory/breast.parquet"),
        (schemas.SHEETS, {"dataset": "breast"}, "sheets/breast.parquet"),
        (schemas.TAG_PROFILES, {"dataset": "breast", "unit": "sub-1"}, "tag_profiles/breast/sub-1.parquet"),
        (schemas.FILES, {"dataset": "breast", "unit": "."}, "files/breast/%2E.parquet"),
        (headers(), {"dataset": "my data", "unit": "sub/1"}, "headers/my%20data/sub%2F1.parquet"),
        (schemas.IDENTITIES, {"dataset": "breast"}, "identities/breast.parquet"),
        (
            schemas.FINDINGS,
            {"stage": "build", "dataset": "breast", "unit": "sub-1"},
            "findings/build/breast/sub-1.parquet",
        ),
        (schemas.DATASET_FINDINGS, {"stage": "build", "dataset": "breast"}, "findings/build/breast.parquet"),
        (schemas.ALL_FINDINGS, {"dataset": "breast"}, "quality/breast/findings.parquet"),
        (
            schemas.OUTCOMES,
            {"server": "http://h/fhir", "dataset": "breast", "unit": "sub-1"},
            "outcomes/http%3A%2F%2Fh%2Ffhir/breast/sub-1.parquet",
        ),
        (schemas.SHARED_OUTCOMES, {"server": "s"}, "outcomes/s/shared.parquet"),
        (schemas.COMPLETENESS, {"dataset": "breast"}, "quality/breast/completeness.parquet"),
        (schemas.MEASURES, {"dataset": "breast"}, "quality/breast/measures.parquet"),
    ],
)
def test_the_path_of_a_table(table: Table, names: dict[str, str], path: str) -> None:
    assert table.path(**names) == path


def test_the_path_of_resources() -> None:
    path = place(RESOURCES, type="Patient", dataset="breast", unit="sub-1")
    assert path == "fhir/Patient/breast/sub-1.ndjson"


def test_a_dataset_cannot_climb_out_of_the_lake() -> None:
    assert schemas.INVENTORY.path(dataset="../../etc") == "inventory/%2E.%2F..%2Fetc.parquet"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.place)
def test_a_table_is_ordered_by_its_own_columns(table: Table) -> None:
    assert set(table.order) <= set(table.schema.names)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.place)
def test_no_column_stands_twice(table: Table) -> None:
    assert len(set(table.schema.names)) == len(table.schema.names)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.place)
def test_columns_have_types_that_every_reader_of_parquet_knows(table: Table) -> None:
    plain = {
        pa.string(),
        pa.int8(),
        pa.int32(),
        pa.int64(),
        pa.float64(),
        pa.bool_(),
        pa.date32(),
        pa.timestamp("us", tz="UTC"),
        pa.list_(pa.float64()),
    }
    assert {field.type for field in table.schema} <= plain


def test_a_header_row_says_where_its_file_lies_and_then_its_tags() -> None:
    names = headers().schema.names
    assert names[:8] == ["dataset", "unit", "subject", "sample", "role", "path", "duplicate", "tag_profile"]
    assert {"StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "PatientID", "Modality"} <= set(names)
