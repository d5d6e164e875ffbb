"""The Endpoint of a dataset (R4 and R5): where its images can be retrieved."""

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
    """Make the Endpoint of a dataset: with its DICOMweb address, or else with its folder.

    Args:
        context: has the dataset, the id, and the namespace of the code for a folder, for which there is no public code.
        address: of WADO-RS, or None.
        location: URI of the folder.
    """
    folder = {
        "system": f"{context.namespace.rstrip('/')}/connection-type",
        "code": "file-tree",
        "display": "Folder of DICOM files",
    }
    connection_type = make_concept(_WADO_RS if address else folder)
    values = {
        "id": context.endpoint_id,
        "status": "active",
        "connectionType": connection_type if context.version == "R4" else [connection_type],
        "name": f"DICOM files of {context.dataset}",
        "payloadType": [_ANY],
        "payloadMimeType": [_DICOM],
        "payload": [{"type": [_ANY], "mimeType": [_DICOM]}],
        "address": address or location,
    }
    findings = FindingCollector(context.dataset, "")
    return {"resourceType": "Endpoint"} | fill_elements("endpoint", {}, _NO_ROWS, context, findings, values)
