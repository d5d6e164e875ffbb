"""The tables of the lake: the path of each, its columns, the order of its rows.

What passes between stages is a table described here. `lake.tables.Lake` writes a table only if it fits its
description. `docs/architecture.md` explains the columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import pyarrow as pa

from dicom_etl.headers.catalogue import catalogue
from dicom_etl.identity.name_encoding import encode_name

SCHEMA_VERSION = 4
STRING, COUNT, FLAG = pa.string(), pa.int64(), pa.bool_()
# Whole microseconds: what pandas, Spark and DuckDB all read as they are.
INSTANT = pa.timestamp("us", tz="UTC")


_SOUGHT = (
    "path",
    "unit",
    "subject",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "StudyDate",
    "code",
    "level",
    "group_by",
    "tag",
)


@dataclass(frozen=True)
class Table:
    """One kind of table: the template of its path, its columns and the order of its rows.

    A table that has `{shard}` in its path holds the rows of many units (`lake.shards`).
    """

    name: str
    place: str
    fields: tuple[tuple[str, pa.DataType], ...]
    order: tuple[str, ...]
    is_synced: bool = True  # each write lasts through a loss of power
    row_group: int = 100_000  # rows; of tables in shards the units decide (`lake.shards.row_groups`)

    @property
    def sought(self) -> tuple[str, ...]:
        """The columns by which queries choose rows: they have statistics."""
        names = {name for name, _ in self.fields}
        return tuple(name for name in _SOUGHT if name in names)

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns."""
        return pa.schema(self.fields)

    def path(self, **names: str | int) -> str:
        """The path of one table below the lake's root; names are encoded."""
        return make_path(self.place, **names)


def make_path(template: str, **names: str | int) -> str:
    """`template` filled with encoded names: the one function that makes the paths of the lake.

    A shard is a number, written with four digits.
    """
    texts = {key: f"{name:04d}" if isinstance(name, int) else encode_name(name) for key, name in names.items()}
    return template.format(**texts)


INVENTORY = Table(
    "inventory",
    "inventory/{dataset}.parquet",
    (
        ("dataset", STRING),
        ("unit", STRING),
        ("subject", STRING),
        ("sample", STRING),
        ("role", STRING),
        ("path", STRING),
        ("size", COUNT),
        ("mtime", INSTANT),
    ),
    ("unit", "path"),
)

SHEETS = Table(
    "sheets",
    "sheets/{dataset}.parquet",
    (
        ("dataset", STRING),
        ("sheet", STRING),
        ("path", STRING),
        ("row", pa.int32()),
        ("subject", STRING),
        ("sample", STRING),
        ("field", STRING),
        ("value", STRING),
    ),
    ("sheet", "path", "row", "field"),
)

TAG_PROFILES = Table(
    "tag_profiles",
    "tag_profiles/{dataset}/{shard}.parquet",
    (("tag_profile", COUNT), ("tag", STRING), ("creator", STRING), ("status", pa.int8())),
    ("tag_profile", "tag", "creator"),
)

FILES = Table(
    "files",
    "files/{dataset}/{shard}.parquet",
    (
        ("dataset", STRING),
        ("unit", STRING),
        ("subject", STRING),
        ("path", STRING),
        ("size", COUNT),
        ("mtime", INSTANT),
        ("kind", STRING),
        ("reason", STRING),
        ("message", STRING),
        ("sha256", STRING),
    ),
    ("unit", "path"),
)

_HEADER_PLACE: tuple[tuple[str, pa.DataType], ...] = (
    ("dataset", STRING),
    ("unit", STRING),
    ("subject", STRING),
    ("sample", STRING),
    ("role", STRING),
    ("path", STRING),
    ("duplicate", STRING),
    ("tag_profile", COUNT),
)


@cache
def header_table() -> Table:
    """The header table: where a file is stored, then the columns of the catalogue."""
    tags = tuple((column.name, column.arrow_type) for column in catalogue())
    return Table("headers", "headers/{dataset}/{shard}.parquet", _HEADER_PLACE + tags, ("unit", "path"))


_FINDING: tuple[tuple[str, pa.DataType], ...] = (
    ("code", STRING),
    ("severity", STRING),
    ("stage", STRING),
    ("dataset", STRING),
    ("unit", STRING),
    ("subject", STRING),
    ("sample", STRING),
    ("study_uid", STRING),
    ("series_uid", STRING),
    ("sop_uid", STRING),
    ("path", STRING),
    ("tag", STRING),
    ("value", STRING),
    ("message", STRING),
    ("count", COUNT),
)
_FINDING_ORDER = tuple(name for name, _ in _FINDING if name != "count")
_UNIT_FIRST = ("unit", *(name for name in _FINDING_ORDER if name != "unit"))
FINDINGS = Table("findings", "findings/{stage}/{dataset}/{shard}.parquet", _FINDING, _UNIT_FIRST)
DATASET_FINDINGS = Table("findings", "findings/{stage}/{dataset}/dataset.parquet", _FINDING, _FINDING_ORDER)
ALL_FINDINGS = Table("findings", "quality/{dataset}/findings.parquet", _FINDING, _FINDING_ORDER)

IDENTITIES = Table(
    "identities",
    "identities/{dataset}.parquet",
    (
        ("dataset", STRING),
        ("unit", STRING),
        ("subject", STRING),
        ("study_uid", STRING),
        ("system", STRING),
        ("value", STRING),
        ("rule", STRING),
        ("state", STRING),
        ("reason", STRING),
        ("building_unit", STRING),
        ("patient", STRING),
    ),
    ("study_uid", "unit"),
)

# The upload ledger as a table, for people who query it; written after each run and never read back.
UPLOAD_LEDGER = Table(
    "upload_ledger",
    "upload_ledger/{server}/{dataset}.parquet",
    (
        ("server", STRING),
        ("dataset", STRING),
        ("unit", STRING),  # null: datasets share it
        ("subject", STRING),
        ("type", STRING),
        ("id", STRING),
        ("business_key", STRING),
        ("server_id", STRING),  # null: not on the server
        ("is_external", FLAG),
        ("hash", STRING),
        ("version", STRING),
        ("state", STRING),
        ("reason", STRING),
        ("reason_text", STRING),
        ("http_status", pa.int32()),
        ("attempts", pa.int32()),
        ("time", INSTANT),
    ),
    ("type", "id"),
)

COMPLETENESS = Table(
    "completeness",
    "quality/{dataset}/completeness.parquet",
    (
        ("dataset", STRING),
        ("level", STRING),
        ("group_by", STRING),
        ("group", STRING),
        ("tag", STRING),
        ("keyword", STRING),
        ("creator", STRING),
        ("requirement", STRING),
        ("n_applicable", COUNT),
        ("n_unknown", COUNT),
        ("n_absent", COUNT),
        ("n_empty", COUNT),
        ("n_unusable", COUNT),
        ("n_filled", COUNT),
        ("n_partial", COUNT),
    ),
    ("level", "group_by", "group", "tag", "creator"),
)

MEASURES = Table(
    "measures",
    "quality/{dataset}/measures.parquet",
    (
        ("dataset", STRING),
        ("check", STRING),
        ("category", STRING),
        ("level", STRING),
        ("group_by", STRING),
        ("group", STRING),
        ("tag", STRING),
        ("n_applicable", COUNT),
        ("n_pass", COUNT),
        ("n_fail", COUNT),
        ("reason", STRING),
        ("result", STRING),
    ),
    ("check", "level", "group_by", "group", "tag", "reason"),
)

# Who was withdrawn, as a digest under the key of the fingerprint `id_key`; `time` says when. Not remade from anything:
# this and the ledger alone read the clock.
WITHDRAWN = Table(
    "withdrawn",
    "withdrawn/{dataset}.parquet",
    (
        ("dataset", STRING),
        ("namespace", STRING),
        ("digest", STRING),
        ("id_key", STRING),
        ("files", COUNT),
        ("studies", COUNT),
        ("patients", COUNT),
        ("imaging_studies", COUNT),
        ("endpoints", COUNT),
        ("servers", STRING),
        ("pending_deletions", STRING),
        ("time", INSTANT),
    ),
    ("digest", "namespace"),
)

# Which elements the resources have that depend on data: what FHIR readiness counts.
FHIR_ELEMENTS = Table(
    "fhir_elements",
    "fhir_elements/{dataset}/{shard}.parquet",
    (
        ("dataset", STRING),
        ("unit", STRING),
        ("level", STRING),  # study, series, patient
        ("study_uid", STRING),  # of studies and series
        ("series_uid", STRING),  # of series
        ("patient", STRING),  # the id of a Patient
        ("started", FLAG),
        ("started_time", FLAG),
        ("accession", FLAG),
        ("description", FLAG),
        ("body_site", FLAG),
        ("laterality", FLAG),
        ("birth_date", FLAG),
        ("gender", FLAG),
    ),
    ("unit", "level", "study_uid", "series_uid", "patient"),
)

# One row per unit. What a stage takes over and what it does again is decided from its commits alone.
EXTRACT_COMMITS = Table(
    "commits",
    "commits/extract/{dataset}/{shard}.parquet",
    (
        ("unit", STRING),
        ("fingerprint", STRING),  # of the reader and the unit's part of the inventory; null: never read
        ("rows", COUNT),  # of the header table
        ("files", COUNT),  # rows of the table of files
        ("to_retry", FLAG),
        ("duplicates", STRING),  # digest of its marks of duplicates, null where it has none
    ),
    ("unit",),
)
# Where the lines of a unit are in the NDJSON files of the shard: bytes, number of lines, and their digest.
UNIT_RESOURCE_TYPES = ("Patient", "ImagingStudy")
_LINES = (("offset", COUNT), ("length", COUNT), ("lines", COUNT), ("digest", STRING))
BUILD_COMMITS = Table(
    "commits",
    "commits/build/{dataset}/{shard}.parquet",
    (
        ("unit", STRING),
        ("fingerprint", STRING),  # of all that its resources are made from; null: never built
        ("to_retry", FLAG),
        *((f"{kind}_{name}", type_) for kind in UNIT_RESOURCE_TYPES for name, type_ in _LINES),
    ),
    ("unit",),
)
COMMITS = {"extract": EXTRACT_COMMITS, "build": BUILD_COMMITS}

RESOURCE_PATH = "fhir/{type}/{dataset}/{shard}.ndjson"
ENDPOINT_PATH = "fhir/Endpoint/{dataset}/0000.ndjson"  # one per dataset
RESOURCE_TYPES = ("Patient", "Endpoint", "ImagingStudy")


def make_report_path(dataset: str, file: str) -> str:
    """The path of a file of a dataset's report; its name is ours and stays as it is."""
    return f"quality/{encode_name(dataset)}/{file}"
