"""Hand-written lakes with the output of the build stage, for tests of the upload; queries of their upload ledger."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from dicom_etl.construction.assembly import StoredUnit, commit_rows
from dicom_etl.construction.chunks import UnitLines
from dicom_etl.fhir_connection import get_server_name
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.commits import hash_lines
from dicom_etl.lake.fingerprints import compute_fingerprint
from dicom_etl.lake.schemas import (
    ENDPOINT_PATH,
    FHIR_ELEMENTS,
    FINDINGS,
    IDENTITIES,
    RESOURCE_TYPES,
    UNIT_RESOURCE_TYPES,
    make_path,
)
from dicom_etl.lake.shard_writer import ShardWriter
from dicom_etl.lake.shards import assign_shard
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import FhirSettings, Settings

Resource = dict[str, Any]
AUTHORITY = "urn:oid:1.2.3.4"
SHARDS = 2  # so that the units of a dataset are in several files


@dataclass(frozen=True)
class Study:
    """A study of a test: `number` determines its UIDs, `person` and `rule` determine its Patient."""

    number: str
    person: str
    unit: str = "sub-1"
    rule: str = "patient-id"
    series: Mapping[str, int] = field(default_factory=lambda: {"1": 2})  # number of the series -> instances
    state: str = "ok"  # ok; held; unmade: its Patient is matched, but it was not built
    status: str = "available"
    subject: str | None = None  # a reference that is not that of its Patient
    patient: Mapping[str, Any] = field(default_factory=dict)  # other elements of its Patient


@dataclass(frozen=True)
class DatasetFactory:
    """Writes datasets whose ids and UIDs depend on `name`, so that tests can share a server."""

    name: str  # unique per test

    @property
    def ids(self) -> ResourceIds:
        """What makes the ids of Patients and Endpoints."""
        return ResourceIds.from_key(self.name, None)

    @property
    def authority(self) -> str:
        """The system of identifiers that datasets share."""
        return f"{AUTHORITY}.{int.from_bytes(self.name.encode(), 'big')}"

    def uid(self, *parts: str) -> str:
        """A DICOM UID of this factory."""
        return f"2.25.{int(compute_fingerprint(self.name, *parts), 16)}"

    def identifier(self, dataset: str, study: Study) -> tuple[str, str]:
        """System and value of the study's person."""
        shared = study.rule in ("crosswalk", "authority")
        return (self.authority if shared else f"https://{self.name}/{dataset}/patient-id"), study.person

    def patient_id(self, dataset: str, study: Study) -> str:
        """The id of the study's Patient."""
        return self.ids.resource_id("Patient", *self.identifier(dataset, study))

    def study_id(self, dataset: str, number: str) -> str:
        """The id of an ImagingStudy."""
        return Settings().resource_ids().resource_id("ImagingStudy", dataset, self.uid(number))

    def endpoint_id(self, dataset: str) -> str:
        """The id of the dataset's Endpoint."""
        return self.ids.resource_id("Endpoint", dataset)

    def patient(self, dataset: str, study: Study) -> Resource:
        """The Patient resource of a study."""
        system, value = self.identifier(dataset, study)
        return {
            "resourceType": "Patient",
            "id": self.patient_id(dataset, study),
            "identifier": [{"system": system, "value": value}],
            **study.patient,
        }

    def endpoint(self, dataset: str) -> Resource:
        """The Endpoint of a dataset."""
        return {
            "resourceType": "Endpoint",
            "id": self.endpoint_id(dataset),
            "status": "active",
            "connectionType": {
                "system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type",
                "code": "dicom-wado-rs",
            },
            "payloadType": [{"text": "DICOM"}],
            "address": f"https://pacs.example/{self.name}/{dataset}",
        }

    def imaging_study(self, dataset: str, study: Study) -> Resource:
        """The ImagingStudy resource."""
        series = [self._series(study, number, count) for number, count in study.series.items()]
        return {
            "resourceType": "ImagingStudy",
            "id": self.study_id(dataset, study.number),
            "identifier": [
                {"system": "urn:dicom:uid", "value": f"urn:oid:{self.uid(study.number)}"},
                {"system": "urn:sparc_dataset:uid", "value": f"urn:uid:{dataset}"},
            ],
            "status": study.status,
            "subject": {"reference": study.subject or f"Patient/{self.patient_id(dataset, study)}"},
            "endpoint": [{"reference": f"Endpoint/{self.endpoint_id(dataset)}"}],
            "numberOfSeries": len(series),
            "numberOfInstances": sum(study.series.values()),
            "series": series,
        }

    def _series(self, study: Study, number: str, count: int) -> Resource:
        return {
            "uid": self.uid(study.number, number),
            "modality": {"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "MR"},
            "numberOfInstances": count,
            "instance": [
                {
                    "uid": self.uid(study.number, number, str(instance)),
                    "sopClass": {
                        "system": "urn:ietf:rfc:3986",
                        "code": "urn:oid:1.2.840.10008.5.1.4.1.1.4",
                    },
                }
                for instance in range(count)
            ],
        }

    def has_identifier_of(self, resource: Resource) -> bool:
        """Whether a resource on a server that assigns ids has an identifier of this factory."""
        identifiers = str(resource.get("identifier"))
        uids = (f"'urn:oid:{self.uid(str(number))}'" for number in range(40))
        return self.name in identifiers or self.authority in identifiers or any(uid in identifiers for uid in uids)

    def build(self, lake: Lake, dataset: str, studies: Sequence[Study]) -> None:
        """Write a dataset as the build stage does; it replaces all that the dataset had before."""
        self._clear(lake, dataset)
        rows = [self._identity(dataset, study) for study in studies]
        lake.write_rows(IDENTITIES, rows, dataset=dataset)
        if any(study.state == "ok" for study in studies):
            lake.write_bytes(make_path(ENDPOINT_PATH, dataset=dataset), orjson.dumps(self.endpoint(dataset)) + b"\n")
        units = {study.unit: self._lines(dataset, studies, study.unit) for study in studies}
        for shard in sorted({assign_shard(unit, SHARDS) for unit in units}):
            lines_by_unit = {unit: units[unit] for unit in sorted(units) if assign_shard(unit, SHARDS) == shard}
            writer = ShardWriter(lake, "build", dataset, shard, SHARDS)
            for kind in UNIT_RESOURCE_TYPES:
                writer.write_lines(kind, [lines[kind] for lines in lines_by_unit.values()])
            for table in (FHIR_ELEMENTS, FINDINGS):
                writer.write_table(table, [])
            writer.commit(commit_rows([_stored(unit, lines) for unit, lines in lines_by_unit.items()]))

    def _lines(self, dataset: str, studies: Sequence[Study], unit: str) -> dict[str, bytes]:
        """The NDJSON of a unit by resource type."""
        unit_studies = [study for study in studies if study.unit == unit and study.state == "ok"]
        patients = {self.patient_id(dataset, study): self.patient(dataset, study) for study in unit_studies}
        resources: dict[str, list[Resource]] = {
            "Patient": list(patients.values()),
            "ImagingStudy": [self.imaging_study(dataset, study) for study in unit_studies],
        }
        return {kind: b"".join(orjson.dumps(line) + b"\n" for line in lines) for kind, lines in resources.items()}

    def _clear(self, lake: Lake, dataset: str) -> None:
        folders = [f"fhir/{kind}/{dataset}" for kind in RESOURCE_TYPES]
        for folder in (f"commits/build/{dataset}", *folders, f"fhir_elements/{dataset}", f"findings/build/{dataset}"):
            lake.remove_folder(folder)

    def _identity(self, dataset: str, study: Study) -> dict[str, Any]:
        system, value = self.identifier(dataset, study)
        return {
            "dataset": dataset,
            "unit": study.unit,
            "subject": study.unit,
            "study_uid": self.uid(study.number),
            "system": system,
            "value": value,
            "rule": study.rule,
            "state": "ok" if study.state == "unmade" else study.state,
            "reason": None,
            "building_unit": study.unit,
            "patient": self.patient_id(dataset, study),
        }


def _stored(unit: str, lines: Mapping[str, bytes]) -> StoredUnit:
    positions = {kind: UnitLines(0, len(text), text.count(b"\n"), hash_lines(text)) for kind, text in lines.items()}
    return StoredUnit(unit, compute_fingerprint(list(map(bytes.decode, lines.values()))), False, None, None, positions)


def new_lake(folder: Path) -> Lake:
    """An empty lake."""
    return Lake(str(folder), lock_wait=0).open()


def settings_for(url: str | None, **fhir: Any) -> Settings:
    """Settings with a server, and with a short time for retries."""
    return Settings(fhir=FhirSettings(url=url, **({"retry_seconds": 20} | fhir)))


def ledger_rows(lake: Lake, url: str, dataset: str, unit: str = "sub-1") -> dict[str, dict[str, Any]]:
    """The rows of a unit in the ledger, by `Type/id`."""
    return {key: row for key, row in _rows(lake, url).items() if (row["dataset"], row["unit"]) == (dataset, unit)}


def shared_ledger_rows(lake: Lake, url: str) -> dict[str, dict[str, Any]]:
    """The rows of resources that datasets share in the ledger, by `Type/id`."""
    return {key: row for key, row in _rows(lake, url).items() if row["unit"] is None}


def _rows(lake: Lake, url: str) -> dict[str, dict[str, Any]]:
    query = "SELECT * FROM resources WHERE lake_id = ? AND server = ?"
    return {f"{row['type']}/{row['id']}": row for row in query_ledger(lake, query, lake.lake_id, get_server_name(url))}


def attempts(lake: Lake) -> list[dict[str, Any]]:
    """The open attempts of the journal."""
    return query_ledger(lake, "SELECT * FROM attempts ORDER BY number")


def query_ledger(lake: Lake, query: str, *values: str) -> list[dict[str, Any]]:
    """The rows of a query to the SQLite ledger of a lake, without the code under test; none if there is no ledger."""
    file = Path(lake.root, "ledger.sqlite")
    if not file.exists():
        return []
    with closing(sqlite3.connect(file)) as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute(query, values)]
    for row in rows:
        row |= {name: bool(row[name]) for name in ("is_external", "is_indexed") if name in row}
    return rows


def with_changes(study: Study, **changes: Any) -> Study:
    """The study with other values."""
    return replace(study, **changes)
