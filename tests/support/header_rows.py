"""Header rows and places for the tests of the mapping."""

from typing import Any

from dicom_etl.fhir import imaging_study, patient
from dicom_etl.fhir.context import Context
from dicom_etl.fhir.rows import FindingCollector, HeaderRows
from dicom_etl.identity.ids import ResourceIds

COLUMNS = list(dict.fromkeys([*imaging_study.COLUMNS, *patient.COLUMNS]))
CONTEXT = Context(dataset="breast", ids=ResourceIds.from_key("https://site.example", None), zone=None, endpoint_id="e1")


def header_rows(*rows: dict[str, Any], **all_rows: Any) -> HeaderRows:
    """Rows with the values of `all_rows` and their own; what is not said is null."""
    filled = [{**all_rows, **row} for row in rows]
    unknown = {name for row in filled for name in row} - set(COLUMNS)
    assert not unknown, f"the mapping does not read {unknown}"
    return HeaderRows({name: [row.get(name) for row in filled] for name in COLUMNS}, tuple(range(len(filled))))


def new_findings() -> FindingCollector:
    """A study of subject sub-1 in dataset breast."""
    return FindingCollector("breast", "sub-1", "sub-1", "1.2.3")


def codes_and_tags(findings: FindingCollector) -> list[tuple[str, str | None]]:
    """(code, tag) of the findings, sorted."""
    return sorted((found.code, found.tag) for found in findings.collected)
