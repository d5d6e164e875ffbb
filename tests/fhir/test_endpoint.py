"""Endpoint (R4): where the images of a dataset are to be had."""

from dicom_etl.fhir.checks import errors
from dicom_etl.fhir.endpoint import endpoint

ANY = {
    "coding": [
        {"system": "http://terminology.hl7.org/CodeSystem/endpoint-payload-type", "code": "any", "display": "Any"}
    ]
}


def test_a_folder_has_a_code_of_the_site() -> None:
    made = endpoint("e1", "breast", "https://site.example/", None, "file:///data/breast")
    assert made == {
        "resourceType": "Endpoint",
        "id": "e1",
        "status": "active",
        "connectionType": {
            "system": "https://site.example/connection-type",
            "code": "file-tree",
            "display": "Folder of DICOM files",
        },
        "name": "DICOM files of breast",
        "payloadType": [ANY],
        "payloadMimeType": ["application/dicom"],
        "address": "file:///data/breast",
    }
    assert errors(made) == []


def test_an_address_of_dicomweb_counts_before_the_folder() -> None:
    made = endpoint("e1", "breast", "https://site.example", "https://pacs.example/rs", "file:///data/breast")
    assert made["connectionType"] == {
        "system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type",
        "code": "dicom-wado-rs",
        "display": "DICOM WADO-RS",
    }
    assert made["address"] == "https://pacs.example/rs"
    assert errors(made) == []
