"""The tables of the lake: where each lies, its columns, its order.

What passes between stages is a table described here. `lake.tables.Lake` writes a table only if it fits its
description. `docs/architecture.md` explains the columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import pyarrow as pa

from dicom_etl.headers.catalogue import catalogue
from dicom_etl.identity.names import encode_name

SCHEMA_VERSION = 1
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
    """One kind of table: its place as a template of names, its columns and the order of its rows."""

    name: str
    place: str
    fields: tuple[tuple[str, pa.DataType], ...]
    order: tuple[str, ...]
    row_group: int = 100_000  # rows

    @property
    def sought(self) -> tuple[str, ...]:
        """The columns by which queries choose rows: they have statistics."""
        names = {name for name, _ in self.fields}
        return tuple(name for name in _SOUGHT if name in names)

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns."""
        return pa.schema(self.fields)

    def path(self, **names: str) -> str:
        """The path of one table below the lake's root; names are encoded."""
        return place(self.place, **names)


def place(template: str, **names: str) -> str:
    """`template` filled with encoded names: the one function that makes the paths of the lake."""
    return template.format(**{key: encode_name(name) for key, name in names.items()})


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
    "tag_profiles/{dataset}/{unit}.parquet",
    (("tag_profile", COUNT), ("tag", STRING), ("creator", STRING), ("status", pa.int8())),
    ("tag_profile", "tag", "creator"),
)

FILES = Table(
    "files",
    "files/{dataset}/{unit}.parquet",
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
    ("path",),
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
def headers() -> Table:
    """The header table: where a file lies, then the columns of the catalogue."""
    tags = tuple((column.name, column.arrow_type) for column in catalogue())
    # a row takes 1 to 2 KB: small groups keep the memory of those small that write and read a large unit piece by piece
    return Table("headers", "headers/{dataset}/{unit}.parquet", _HEADER_PLACE + tags, ("path",), row_group=20_000)


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
FINDINGS = Table("findings", "findings/{stage}/{dataset}/{unit}.parquet", _FINDING, _FINDING_ORDER)
DATASET_FINDINGS = Table("findings", "findings/{stage}/{dataset}.parquet", _FINDING, _FINDING_ORDER)
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
        ("owner", STRING),
        ("patient", STRING),
    ),
    ("study_uid", "unit"),
)

_OUTCOME: tuple[tuple[str, pa.DataType], ...] = (
    ("dataset", STRING),
    ("unit", STRING),
    ("subject", STRING),
    ("type", STRING),
    ("key", STRING),
    ("id", STRING),
    ("id_on_server", STRING),
    ("linked", FLAG),
    ("hash", STRING),
    ("tried", STRING),
    ("version", STRING),
    ("state", STRING),
    ("status", pa.int32()),
    ("attempts", pa.int32()),
    ("error", STRING),
    ("time", INSTANT),
    ("content", STRING),
    ("tried_content", STRING),
    ("replaced", STRING),
)
OUTCOMES = Table("outcomes", "outcomes/{server}/{dataset}/{unit}.parquet", _OUTCOME, ("type", "id"))
SHARED_OUTCOMES = Table("outcomes", "outcomes/{server}/shared.parquet", _OUTCOME, ("type", "id"))

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
        ("n_some", COUNT),
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
        ("status", STRING),
    ),
    ("check", "level", "group_by", "group", "tag", "reason"),
)

# Who was withdrawn, as a digest; `time` says when. Not remade from anything: this and the ledger alone read the clock.
WITHDRAWN = Table(
    "withdrawn",
    "withdrawn/{dataset}.parquet",
    (
        ("dataset", STRING),
        ("site", STRING),
        ("digest", STRING),
        ("files", COUNT),
        ("studies", COUNT),
        ("patients", COUNT),
        ("imaging_studies", COUNT),
        ("endpoints", COUNT),
        ("servers", STRING),
        ("left", STRING),
        ("time", INSTANT),
    ),
    ("digest", "site"),
)

RESOURCES = "fhir/{type}/{dataset}/{unit}.ndjson"
RESOURCE_TYPES = ("Patient", "Endpoint", "ImagingStudy")


def report_file(dataset: str, file: str) -> str:
    """The path of a file of a dataset's report; its name is ours and stays as it is."""
    return f"quality/{encode_name(dataset)}/{file}"
