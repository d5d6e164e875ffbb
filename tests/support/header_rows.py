"""Header rows and collectors of findings for the tests of the mapping."""

from typing import Any

from dicom_etl.fhir import imaging_study, patient
from dicom_etl.fhir.context import Context
from dicom_etl.fhir.rows import FindingCollector, HeaderRows
from dicom_etl.identity.ids import ResourceIds

COLUMNS = list(dict.fromkeys([*imaging_study.COLUMNS, *patient.COLUMNS]))
CONTEXT = Context(dataset="breast", ids=ResourceIds.from_key("https://site.example", None), zone=None, endpoint_id="e1")


def header_rows(*rows: dict[str, Any], **all_rows: Any) -> HeaderRows:
    """Rows with the values of `all_rows` and of each row; other columns are null."""
    filled = [{**all_rows, **row} for row in rows]
    unmapped = {name for row in filled for name in row} - set(COLUMNS)
    assert not unmapped, f"the mapping does not read {unmapped}"
    return HeaderRows({name: [row.get(name) for row in filled] for name in COLUMNS}, tuple(range(len(filled))))


def new_findings() -> FindingCollector:
    """A collector for a study of subject sub-1 in dataset breast."""
    return FindingCollector("breast", "sub-1", "sub-1", "1.2.3")


def codes_and_tags(findings: FindingCollector) -> list[tuple[str, str | None]]:
    """(code, tag) of the findings, sorted."""
    return sorted((finding.code, finding.tag) for finding in findings.collected)
