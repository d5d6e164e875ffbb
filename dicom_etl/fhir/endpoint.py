"""A dataset -> Endpoint (R4): where its images are to be had."""

from __future__ import annotations

from typing import Any

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


def endpoint(identifier: str, dataset: str, site: str, address: str | None, location: str) -> dict[str, Any]:
    """The Endpoint of a dataset: its DICOMweb address, else its folder.

    Args:
        identifier: the resource's id.
        dataset: its name.
        site: the setting; the namespace of the local code for a folder, for which no public one exists.
        address: of WADO-RS, or None.
        location: URI of the folder.
    """
    folder = {
        "system": f"{site.rstrip('/')}/connection-type",
        "code": "file-tree",
        "display": "Folder of DICOM files",
    }
    return {
        "resourceType": "Endpoint",
        "id": identifier,
        "status": "active",
        "connectionType": _WADO_RS if address else folder,
        "name": f"DICOM files of {dataset}",
        "payloadType": [_ANY],
        "payloadMimeType": ["application/dicom"],
        "address": address or location,
    }
