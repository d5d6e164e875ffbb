"""A dataset -> Endpoint (R4 and R5): where its images are to be had."""

from __future__ import annotations

from typing import Any

from dicom_etl.fhir.context import Context
from dicom_etl.fhir.mapping import fill_elements, make_concept
from dicom_etl.fhir.rows import FindingCollector, HeaderRows

_WADO_RS = {
    "system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type",
    "code": "dicom-wado-rs",
    "display": "DICOM WADO-RS",
}
_ANY = {
    "coding": [
        {
            "system": "http://terminology.hl7.org/CodeSystem/endpoint-payload-type",
            "code": "any",
            "display": "Any",
        }
    ]
}
_DICOM = "application/dicom"
_NO_ROWS = HeaderRows({}, ())


def make_endpoint(context: Context, address: str | None, location: str) -> dict[str, Any]:
    """The Endpoint of a dataset: its DICOMweb address, else its folder.

    Args:
        context: names dataset, id and namespace, the namespace of the code for a folder: there is no public one.
        address: of WADO-RS, or None.
        location: URI of the folder.
    """
    folder = {
        "system": f"{context.namespace.rstrip('/')}/connection-type",
        "code": "file-tree",
        "display": "Folder of DICOM files",
    }
    kind = make_concept(_WADO_RS if address else folder)
    given = {
        "id": context.endpoint_id,
        "status": "active",
        "connectionType": kind if context.version == "R4" else [kind],
        "name": f"DICOM files of {context.dataset}",
        "payloadType": [_ANY],
        "payloadMimeType": [_DICOM],
        "payload": [{"type": [_ANY], "mimeType": [_DICOM]}],
        "address": address or location,
    }
    findings = FindingCollector(context.dataset, "")
    return {"resourceType": "Endpoint"} | fill_elements("endpoint", {}, _NO_ROWS, context, findings, given)
