"""The path, columns and order of each table."""

import pyarrow as pa
import pytest

from dicom_etl.lake import schemas
from dicom_etl.lake.schemas import ENDPOINT_PATH, RESOURCE_PATH, Table, header_table, list_tables, make_path

TABLES = list_tables()


@pytest.mark.parametrize(
    ("table", "names", "path"),
    [
        (schemas.INVENTORY, {"dataset": "breast"}, "inventory/breast.parquet"),
        (schemas.SHEETS, {"dataset": "breast"}, "sheets/breast.parquet"),
        (schemas.TAG_PROFILES, {"dataset": "breast", "shard": 0}, "tag_profiles/breast/0000.parquet"),
        (schemas.FILES, {"dataset": ".", "shard": 12345}, "files/%2E/12345.parquet"),
        (header_table(), {"dataset": "my data/1", "shard": 63}, "headers/my%20data%2F1/0063.parquet"),
        (schemas.IDENTITIES, {"dataset": "breast"}, "identities/breast.parquet"),
        (
            schemas.FINDINGS,
            {"stage": "build", "dataset": "breast", "shard": 1},
            "findings/build/breast/0001.parquet",
        ),
        (schemas.DATASET_FINDINGS, {"stage": "build", "dataset": "breast"}, "findings/build/breast/dataset.parquet"),
        (schemas.FHIR_ELEMENTS, {"dataset": "breast", "shard": 2}, "fhir_elements/breast/0002.parquet"),
        (schemas.EXTRACT_COMMITS, {"dataset": "breast", "shard": 3}, "commits/extract/breast/0003.parquet"),
        (schemas.BUILD_COMMITS, {"dataset": "breast", "shard": 3}, "commits/build/breast/0003.parquet"),
        (schemas.ALL_FINDINGS, {"dataset": "breast"}, "quality/breast/findings.parquet"),
        (
            schemas.UPLOAD_LEDGER,
            {"server": "http://h/fhir", "dataset": "breast"},
            "upload_ledger/http%3A%2F%2Fh%2Ffhir/breast.parquet",
        ),
        (schemas.COMPLETENESS, {"dataset": "breast"}, "quality/breast/completeness.parquet"),
        (schemas.MEASURES, {"dataset": "breast"}, "quality/breast/measures.parquet"),
    ],
)
def test_the_path_of_a_table(table: Table, names: dict[str, str | int], path: str) -> None:
    assert table.path(**names) == path


def test_the_path_of_resources() -> None:
    assert make_path(RESOURCE_PATH, type="Patient", dataset="breast", shard=7) == "fhir/Patient/breast/0007.ndjson"
    assert make_path(ENDPOINT_PATH, dataset="breast") == "fhir/Endpoint/breast/0000.ndjson"


def test_which_tables_are_stored_in_shards() -> None:
    assert {table.name for table in TABLES if "{shard}" in table.path_template} == {
        "commits",
        "fhir_elements",
        "files",
        "findings",
        "headers",
        "tag_profiles",
    }


def test_the_name_of_a_dataset_cannot_lead_out_of_the_lake() -> None:
    assert schemas.INVENTORY.path(dataset="../../etc") == "inventory/%2E.%2F..%2Fetc.parquet"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.path_template)
def test_the_order_of_a_table_consists_of_its_columns(table: Table) -> None:
    assert set(table.order) <= set(table.schema.names)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.path_template)
def test_no_column_occurs_twice(table: Table) -> None:
    assert len(set(table.schema.names)) == len(table.schema.names)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.path_template)
def test_every_parquet_reader_supports_the_types_of_columns(table: Table) -> None:
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


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.path_template)
def test_every_table_and_column_has_a_description(table: Table) -> None:
    assert table.description.endswith(".")
    assert [column.name for column in table.columns if not column.description] == []


def test_a_header_row_has_the_location_of_its_file_then_its_tags() -> None:
    names = header_table().schema.names
    assert names[:8] == ["dataset", "unit", "subject", "sample", "role", "path", "duplicate", "tag_profile"]
    assert {"StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "PatientID", "Modality"} <= set(names)
