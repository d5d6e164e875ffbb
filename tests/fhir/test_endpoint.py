"""The Endpoint of a dataset, with its DICOMweb address or its folder."""

from dataclasses import replace

from dicom_etl.fhir.endpoint import make_endpoint
from dicom_etl.fhir.validation import find_errors
from tests.support.header_rows import CONTEXT

ANY = {
    "coding": [
        {"system": "http://terminology.hl7.org/CodeSystem/endpoint-payload-type", "code": "any", "display": "Any"}
    ]
}


def test_a_folder_has_a_code_in_the_namespace() -> None:
    endpoint = make_endpoint(CONTEXT, None, "file:///data/breast")
    assert endpoint == {
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
    assert find_errors(endpoint) == []


def test_a_dicomweb_address_takes_precedence_over_the_folder() -> None:
    endpoint = make_endpoint(CONTEXT, "https://pacs.example/rs", "file:///data/breast")
    assert endpoint["connectionType"] == {
        "system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type",
        "code": "dicom-wado-rs",
        "display": "DICOM WADO-RS",
    }
    assert endpoint["address"] == "https://pacs.example/rs"
    assert find_errors(endpoint) == []


def test_r5_has_concepts_and_one_payload() -> None:
    endpoint = make_endpoint(replace(CONTEXT, version="R5"), "https://pacs.example/rs", "file:///data/breast")
    assert endpoint == {
        "resourceType": "Endpoint",
        "id": "e1",
        "status": "active",
        "connectionType": [
            {
                "coding": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type",
                        "code": "dicom-wado-rs",
                        "display": "DICOM WADO-RS",
                    }
                ]
            }
        ],
        "name": "DICOM files of breast",
        "payload": [{"type": [ANY], "mimeType": ["application/dicom"]}],
        "address": "https://pacs.example/rs",
    }
    assert find_errors(endpoint, "R5") == []
