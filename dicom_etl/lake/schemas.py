"""The tables of the lake: the path of each, its columns with their types and meaning, and the order of its rows.

Stages pass data to each other only in these tables. `lake.tables.Lake` refuses to write a table that does not have
these columns. The reference of tables in the documentation is generated from this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import pyarrow as pa

from dicom_etl.headers.catalogue import catalogue
from dicom_etl.identity.name_encoding import encode_name

SCHEMA_VERSION = 4
STRING, COUNT, FLAG = pa.string(), pa.int64(), pa.bool_()
# Whole microseconds: pandas, Spark and DuckDB all read them without conversion.
INSTANT = pa.timestamp("us", tz="UTC")

# Columns that queries filter by: they have statistics in each row group.
_FILTER_COLUMNS = (
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


class Column(NamedTuple):
    """A column of a table. The description is shown in the documentation."""

    name: str
    type: pa.DataType
    description: str


@dataclass(frozen=True)
class Table:
    """One kind of table: the template of its path, its columns, and the columns that its rows are sorted by.

    A table whose path contains `{shard}` holds the rows of many units (`lake.shards`).
    """

    name: str
    path_template: str
    description: str
    columns: tuple[Column, ...]
    order: tuple[str, ...]
    is_synced: bool = True  # each write survives a loss of power
    row_group_size: int = 100_000  # rows; in shards it depends on the units (`lake.shards.choose_row_groups`)

    @property
    def statistics_columns(self) -> tuple[str, ...]:
        """The columns that have statistics, since queries filter by them."""
        names = {column.name for column in self.columns}
        return tuple(name for name in _FILTER_COLUMNS if name in names)

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns as an Arrow schema."""
        return pa.schema([(column.name, column.type) for column in self.columns])

    def path(self, **names: str | int) -> str:
        """The path of one table below the root of the lake; names are encoded."""
        return make_path(self.path_template, **names)


def make_path(template: str, **names: str | int) -> str:
    """Fill a template with encoded names; every path of the lake is made by this function.

    Args:
        template: a path below the root of the lake, such as `headers/{dataset}/{shard}.parquet`.
        names: dataset, server, stage, resource type; a shard is a number, written with four digits.
    """
    texts = {key: f"{name:04d}" if isinstance(name, int) else encode_name(name) for key, name in names.items()}
    return template.format(**texts)


_DATASET = Column("dataset", STRING, "name of the dataset")
_UNIT = Column("unit", STRING, "unit of processing: the subject, or `.` for files outside the folders of subjects")
_SUBJECT = Column("subject", STRING, "name of the subject, from its folder or a file list; null where there is none")
_SAMPLE = Column("sample", STRING, "name of the sample, from its folder; null where there is none")
_PATH = Column("path", STRING, "path below the folder of the dataset; `a.zip!/b.dcm` is a member of an archive")
_STUDY_UID = Column("study_uid", STRING, "StudyInstanceUID")
_SERIES_UID = Column("series_uid", STRING, "SeriesInstanceUID")
_RETRY = Column("to_retry", FLAG, "the next run processes the unit again, since something in it failed")

INVENTORY = Table(
    "inventory",
    "inventory/{dataset}.parquet",
    "The files of a dataset that could be DICOM, listed by the crawl without opening them.",
    (
        _DATASET,
        _UNIT,
        _SUBJECT,
        _SAMPLE,
        Column("role", STRING, "`primary`, `derivative` or `source`: the SDS folder that contains the file"),
        _PATH,
        Column("size", COUNT, "size of the file in bytes"),
        Column("mtime", INSTANT, "time of the last modification of the file"),
    ),
    ("unit", "path"),
)

SHEETS = Table(
    "sheets",
    "sheets/{dataset}.parquet",
    "The filled cells of the SDS metadata sheets of a dataset.",
    (
        _DATASET,
        Column("sheet", STRING, "kind of sheet, such as `subjects` or `samples`"),
        Column("path", STRING, "path of the sheet below the folder of the dataset"),
        Column("row", pa.int32(), "row in the sheet, counted from 1"),
        Column("subject", STRING, "subject that the row describes; null where it describes none"),
        Column("sample", STRING, "sample that the row describes; null where it describes none"),
        Column("field", STRING, "header of the column, in lower case with blanks for underscores"),
        Column("value", STRING, "content of the cell as text"),
    ),
    ("sheet", "path", "row", "field"),
)

TAG_PROFILES = Table(
    "tag_profiles",
    "tag_profiles/{dataset}/{shard}.parquet",
    "The tag profiles of header rows: which elements a header contains. An element that is not listed is absent.",
    (
        Column("tag_profile", COUNT, "id of the tag profile, a hash of its content"),
        Column("tag", STRING, "tag as eight hexadecimal digits"),
        Column("creator", STRING, "private creator (PS3.5 7.8.1); null for standard elements"),
        Column("status", pa.int8(), "1: the element is empty; 2: it has a value"),
    ),
    ("tag_profile", "tag", "creator"),
)

FILES = Table(
    "files",
    "files/{dataset}/{shard}.parquet",
    "The files that were opened, and for each file without a header row the reason.",
    (
        _DATASET,
        _UNIT,
        _SUBJECT,
        _PATH,
        Column("size", COUNT, "size of the file in bytes"),
        Column("mtime", INSTANT, "time of the last modification of the file when it was read"),
        Column("kind", STRING, "`dicom`, `dicomdir`, `other` (not DICOM) or `unreadable`"),
        Column("reason", STRING, "finding code that explains the kind; null where nothing is wrong"),
        Column("message", STRING, "details of the reason"),
        Column("sha256", STRING, "SHA-256 of the content; null where no other file has the same SOPInstanceUID"),
    ),
    ("unit", "path"),
)

_FILE_COLUMNS = (
    _DATASET,
    _UNIT,
    _SUBJECT,
    _SAMPLE,
    Column("role", STRING, "role of the folder, as in the inventory"),
    _PATH,
    Column("duplicate", STRING, "`identical` or `conflict`: another file of this SOPInstanceUID is used; else null"),
    Column("tag_profile", COUNT, "id of the tag profile of the header (table `tag_profiles`)"),
)


@cache
def header_table() -> Table:
    """The header table: the location of a file, then the columns of the catalogue."""
    tags = tuple(Column(column.name, column.arrow_type, column.used_for) for column in catalogue())
    return Table(
        "headers",
        "headers/{dataset}/{shard}.parquet",
        "One row for each DICOM file: its location, then values of its header.",
        _FILE_COLUMNS + tags,
        ("unit", "path"),
    )


_FINDING_COLUMNS = (
    Column("code", STRING, "code of the finding, see the catalogue of findings"),
    Column("severity", STRING, "`error`: not loaded; `warning`: loaded, but check it; `info`"),
    Column("stage", STRING, "stage that detected it"),
    _DATASET,
    _UNIT,
    _SUBJECT,
    _SAMPLE,
    _STUDY_UID,
    _SERIES_UID,
    Column("sop_uid", STRING, "SOPInstanceUID"),
    _PATH,
    Column("tag", STRING, "keyword or tag of the attribute that it is about"),
    Column("value", STRING, "the value; masked where the tag can identify a person"),
    Column("message", STRING, "what is wrong"),
    Column("count", COUNT, "number of equal findings that this row represents"),
)
_FINDING_ORDER = tuple(column.name for column in _FINDING_COLUMNS if column.name != "count")
FINDINGS = Table(
    "findings",
    "findings/{stage}/{dataset}/{shard}.parquet",
    "The findings of the stages `extract` and `build` about units.",
    _FINDING_COLUMNS,
    ("unit", *(name for name in _FINDING_ORDER if name != "unit")),
)
DATASET_FINDINGS = Table(
    "findings",
    "findings/{stage}/{dataset}/dataset.parquet",
    "The findings of a stage about the dataset as a whole.",
    _FINDING_COLUMNS,
    _FINDING_ORDER,
)
ALL_FINDINGS = Table(
    "findings",
    "quality/{dataset}/findings.parquet",
    "The findings of all stages, collected by the stage `measure`.",
    _FINDING_COLUMNS,
    _FINDING_ORDER,
)

IDENTITIES = Table(
    "identities",
    "identities/{dataset}.parquet",
    "Which patient each study of a unit belongs to, and by which rule.",
    (
        _DATASET,
        _UNIT,
        _SUBJECT,
        _STUDY_UID,
        Column("system", STRING, "system of the identifier of the patient"),
        Column("value", STRING, "value of the identifier of the patient"),
        Column(
            "rule", STRING, "origin of the identifier: `crosswalk`, `authority`, `patient-id`, `subject` or `study`"
        ),
        Column("state", STRING, "`ok`, or `held`: no resource is built until it is decided"),
        Column("reason", STRING, "finding code that explains the state or the rule"),
        Column("building_unit", STRING, "unit that builds the study where several units have a part of it"),
        Column("patient", STRING, "id of the Patient resource"),
    ),
    ("study_uid", "unit"),
)

# A copy of the ledger for queries; it is written after each run and never read back.
UPLOAD_LEDGER = Table(
    "upload_ledger",
    "upload_ledger/{server}/{dataset}.parquet",
    "The upload ledger of a server: what was sent, and with what result.",
    (
        Column("server", STRING, "name of the server, from its address"),
        _DATASET,
        Column("unit", STRING, "unit of processing; null for resources that datasets share"),
        _SUBJECT,
        Column("type", STRING, "resource type"),
        Column("id", STRING, "id of the resource in the lake"),
        Column("business_key", STRING, "StudyInstanceUID, identifier of a Patient, or address of an Endpoint"),
        Column("server_id", STRING, "id on the server; null where the server does not have the resource"),
        Column("is_external", FLAG, "the resource on the server belongs to another client"),
        Column("hash", STRING, "digest of the resource as it was stored last; null where nothing was stored"),
        Column("version", STRING, "version of the resource on the server"),
        Column("state", STRING, "`stored`, `unconfirmed`, `rejected`, `failed`, `held` or `orphaned`"),
        Column("reason", STRING, "finding code that explains the state"),
        Column("reason_text", STRING, "details of the reason"),
        Column("http_status", pa.int32(), "HTTP status of the last answer that explains the state"),
        Column("attempts", pa.int32(), "number of attempts that the last request needed"),
        Column("time", INSTANT, "time of the last change of this row"),
    ),
    ("type", "id"),
)

COMPLETENESS = Table(
    "completeness",
    "quality/{dataset}/completeness.parquet",
    "How many instances, series or studies have a value for each tag. The six counts add up to `n_applicable`.",
    (
        _DATASET,
        Column("level", STRING, "what is counted: `instance`, `series` or `study`"),
        Column("group_by", STRING, "`all`, or what divides the rows into groups, such as `modality`"),
        Column("group", STRING, "value of the group; null for objects without that value"),
        Column("tag", STRING, "tag as eight hexadecimal digits"),
        Column("keyword", STRING, "keyword of the tag in PS3.6; null for private tags"),
        Column("creator", STRING, "private creator; null for standard elements"),
        Column("requirement", STRING, "strictest type that the IODs of the group require (PS3.5 7.4)"),
        Column("n_applicable", COUNT, "number of objects to which the tag applies"),
        Column("n_unknown", COUNT, "absent, and required under a condition that is not evaluated"),
        Column("n_absent", COUNT, "the element is absent"),
        Column("n_empty", COUNT, "the element is empty"),
        Column("n_unusable", COUNT, "a placeholder or an invalid value; null for tags that are not in the catalogue"),
        Column("n_filled", COUNT, "with a value; of series and studies: in all of their instances"),
        Column("n_partial", COUNT, "of series and studies: with a value in some of their instances"),
    ),
    ("level", "group_by", "group", "tag", "creator"),
)

MEASURES = Table(
    "measures",
    "quality/{dataset}/measures.parquet",
    "The results of the quality checks. Rows with a reason divide the failures of a check.",
    (
        _DATASET,
        Column("check", STRING, "id of the quality check"),
        Column("category", STRING, "category of the check"),
        Column("level", STRING, "what is counted, such as `series` or `study`"),
        Column("group_by", STRING, "`all`, or what divides the rows into groups"),
        Column("group", STRING, "value of the group"),
        Column("tag", STRING, "tag that the check is about"),
        Column("n_applicable", COUNT, "number of objects to which the check applies"),
        Column("n_pass", COUNT, "number of objects that pass"),
        Column("n_fail", COUNT, "number of objects that fail"),
        Column("reason", STRING, "reason of these failures; null in the result of a check"),
        Column("result", STRING, "`pass`, `warn`, `fail` or `not-evaluated`"),
    ),
    ("check", "level", "group_by", "group", "tag", "reason"),
)

# Not derived from any other data: it is never removed by a rebuild, and `lake.migration` reads the columns of older
# versions. Apart from the upload ledger, it is the only table that contains the time of a run.
WITHDRAWN = Table(
    "withdrawn",
    "withdrawn/{dataset}.parquet",
    "The record of withdrawals. A subject is represented by a digest, so that the record contains no names.",
    (
        _DATASET,
        Column("namespace", STRING, "configured namespace at the time of the withdrawal"),
        Column("digest", STRING, "digest that represents the subject; null where the whole dataset was withdrawn"),
        Column("id_key", STRING, "fingerprint of the key of the digest; null for records of schema 2"),
        Column("files", COUNT, "number of files of the subject"),
        Column("studies", COUNT, "number of studies of the subject"),
        Column("patients", COUNT, "number of Patients that were deleted from servers"),
        Column("imaging_studies", COUNT, "number of ImagingStudy resources that were deleted from servers"),
        Column("endpoints", COUNT, "number of Endpoints that were deleted from servers"),
        Column("servers", STRING, "names of the servers that resources were deleted from, separated by blanks"),
        Column("pending_deletions", STRING, "resources still to be deleted, by server, as JSON"),
        Column("time", INSTANT, "time of the withdrawal"),
    ),
    ("digest", "namespace"),
)

FHIR_ELEMENTS = Table(
    "fhir_elements",
    "fhir_elements/{dataset}/{shard}.parquet",
    "Which data-dependent elements the built resources have; FHIR readiness counts them.",
    (
        _DATASET,
        _UNIT,
        Column("level", STRING, "`study`, `series` or `patient`"),
        Column("study_uid", STRING, "StudyInstanceUID, of studies and series"),
        Column("series_uid", STRING, "SeriesInstanceUID, of series"),
        Column("patient", STRING, "id of the Patient, of patients"),
        Column("started", FLAG, "`ImagingStudy.started` is present"),
        Column("started_time", FLAG, "`ImagingStudy.started` has a time"),
        Column("accession", FLAG, "the accession number is present"),
        Column("description", FLAG, "the description of the study or series is present"),
        Column("body_site", FLAG, "the body site of the series is present"),
        Column("laterality", FLAG, "the laterality of the series is present"),
        Column("birth_date", FLAG, "`Patient.birthDate` is present"),
        Column("gender", FLAG, "`Patient.gender` is present"),
    ),
    ("unit", "level", "study_uid", "series_uid", "patient"),
)

# A stage decides from its commits alone which units it processes again.
EXTRACT_COMMITS = Table(
    "commits",
    "commits/extract/{dataset}/{shard}.parquet",
    "The commit of a shard of the stage `extract`, one row per unit; its footer has size and SHA-256 of each file.",
    (
        _UNIT,
        Column("fingerprint", STRING, "digest of the reader and the unit's inventory; null where it was never read"),
        Column("rows", COUNT, "number of rows in the header table"),
        Column("files", COUNT, "number of rows in the table of files"),
        _RETRY,
        Column("duplicates", STRING, "digest of the duplicate flags of its rows; null where it has none"),
    ),
    ("unit",),
)

UNIT_RESOURCE_TYPES = ("Patient", "ImagingStudy")  # stored unit by unit; an Endpoint belongs to a dataset
_LINE_COLUMNS = (
    Column("offset", COUNT, "position of the first byte of its lines in the NDJSON file"),
    Column("length", COUNT, "number of bytes of its lines"),
    Column("lines", COUNT, "number of its lines"),
    Column("digest", STRING, "first 32 hexadecimal digits of the SHA-256 of its lines"),
)
BUILD_COMMITS = Table(
    "commits",
    "commits/build/{dataset}/{shard}.parquet",
    "The commit of a shard of the stage `build`, one row per unit; its footer has size and SHA-256 of each file.",
    (
        _UNIT,
        Column("fingerprint", STRING, "digest of all that its resources are built from; null where it was never built"),
        _RETRY,
        *(
            Column(f"{kind}_{column.name}", column.type, f"{kind}: {column.description}")
            for kind in UNIT_RESOURCE_TYPES
            for column in _LINE_COLUMNS
        ),
    ),
    ("unit",),
)
COMMITS = {"extract": EXTRACT_COMMITS, "build": BUILD_COMMITS}

# Paths of NDJSON files, for `make_path`.
RESOURCE_PATH = "fhir/{type}/{dataset}/{shard}.ndjson"
ENDPOINT_PATH = "fhir/Endpoint/{dataset}/0000.ndjson"  # one per dataset
RESOURCE_TYPES = ("Patient", "Endpoint", "ImagingStudy")


def list_tables() -> list[Table]:
    """All kinds of tables, sorted by the templates of their paths."""
    constants = [value for value in globals().values() if isinstance(value, Table)]
    return sorted([*constants, header_table()], key=lambda table: table.path_template)


def make_report_path(dataset: str, file: str) -> str:
    """The path of a file of a dataset's quality report; the file's name is one of ours and not encoded."""
    return f"quality/{encode_name(dataset)}/{file}"
