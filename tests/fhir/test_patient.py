"""Patient: expected resources written from the standard and the mapping."""

import datetime
from dataclasses import replace
from typing import Any

import pytest

from dicom_etl.fhir.patient import make_patient
from dicom_etl.fhir.rows import FindingCollector, HeaderRows
from dicom_etl.fhir.validation import find_errors
from dicom_etl.identity.matching import PatientMatch
from tests.support.header_rows import CONTEXT, codes_and_tags, header_rows, new_findings

PERSON = PatientMatch(
    "1.2.3", "sub-1", "sub-1", "https://site.example/breast/patient-id", "P-1", "patient-id", "ok", "sub-1"
)
MEDICAL_RECORD = {
    "coding": [
        {"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "MR", "display": "Medical record number"}
    ]
}
REPRESENTATION = "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation"


def make(
    rows: HeaderRows,
    person: PatientMatch = PERSON,
    sheet: dict[str, str] | None = None,
    findings: FindingCollector | None = None,
) -> Any:
    resource = make_patient("p1", person, rows, replace(CONTEXT, subject_sheet=sheet or {}), findings or new_findings())
    assert find_errors(resource) == []
    return resource


def names(text: str | None) -> Any:
    return make(header_rows({"PatientName": text})).get("name")


def test_a_patient_of_a_full_header() -> None:
    rows = header_rows(
        {
            "PatientName": "Beispiel^Grete Anna^Maria^Dr.^MSc",
            "PatientSex": "F",
            "PatientBirthDate": datetime.date(1966, 3, 12),
            "IssuerOfPatientID": "HIS",
        }
    )
    assert make(rows) == {
        "resourceType": "Patient",
        "id": "p1",
        "identifier": [
            {
                "use": "usual",
                "type": MEDICAL_RECORD,
                "system": "https://site.example/breast/patient-id",
                "value": "P-1",
                "assigner": {"display": "HIS"},
            }
        ],
        "active": True,
        "name": [
            {
                "use": "usual",
                "family": "Beispiel",
                "given": ["Grete", "Anna", "Maria"],
                "prefix": ["Dr."],
                "suffix": ["MSc"],
            }
        ],
        "gender": "female",
        "birthDate": "1966-03-12",
    }


def test_an_empty_header_gives_an_identifier_and_nothing_else() -> None:
    findings = new_findings()
    person = replace(PERSON, rule="subject", system="https://site.example/breast/subject", value="sub-1")
    assert make(header_rows({}), person, findings=findings) == {
        "resourceType": "Patient",
        "id": "p1",
        "identifier": [{"use": "usual", "system": "https://site.example/breast/subject", "value": "sub-1"}],
        "active": True,
    }
    assert codes_and_tags(findings) == []


def test_an_authority_is_a_system_and_its_text_is_omitted() -> None:
    person = replace(PERSON, rule="authority", system="urn:oid:1.9")
    assert make(header_rows({"IssuerOfPatientID": "HIS"}), person)["identifier"] == [
        {"use": "usual", "type": MEDICAL_RECORD, "system": "urn:oid:1.9", "value": "P-1"}
    ]


def test_a_crosswalk_identifier_is_not_a_medical_record_number() -> None:
    person = replace(PERSON, rule="crosswalk", system="urn:x:persons", value="p7")
    assert make(header_rows({}), person)["identifier"] == [{"use": "usual", "system": "urn:x:persons", "value": "p7"}]


def test_conflicting_issuers_are_omitted() -> None:
    rows = header_rows({"IssuerOfPatientID": "HIS"}, {"IssuerOfPatientID": "RIS"})
    assert "assigner" not in make(rows)["identifier"][0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Doe^John", [{"use": "usual", "family": "Doe", "given": ["John"]}]),
        ("Doe", [{"use": "usual", "family": "Doe"}]),
        ("^John", [{"use": "usual", "given": ["John"]}]),
        ("van der Berg^ Jan ", [{"use": "usual", "family": "van der Berg", "given": ["Jan"]}]),
        ("Doe^John^^^", [{"use": "usual", "family": "Doe", "given": ["John"]}]),
        ("Doe^J^^Prof. Dr.", [{"use": "usual", "family": "Doe", "given": ["J"], "prefix": ["Prof.", "Dr."]}]),
        ("Doe^John\\Roe^Jane", [{"use": "usual", "family": "Doe", "given": ["John"]}]),
    ],
)
def test_the_components_of_a_name(text: str, expected: list[dict[str, Any]]) -> None:
    assert names(text) == expected


def test_three_component_groups_are_three_representations() -> None:
    # the example of PS3.5 H.3.2
    assert names("ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう") == [
        {"use": "usual", "family": "ﾔﾏﾀﾞ", "given": ["ﾀﾛｳ"]},
        {
            "use": "usual",
            "family": "山田",
            "given": ["太郎"],
            "extension": [{"url": REPRESENTATION, "valueCode": "IDE"}],
        },
        {
            "use": "usual",
            "family": "やまだ",
            "given": ["たろう"],
            "extension": [{"url": REPRESENTATION, "valueCode": "SYL"}],
        },
    ]


def test_an_empty_component_group_is_not_a_name() -> None:
    assert names("=山田^太郎") == [
        {
            "use": "usual",
            "family": "山田",
            "given": ["太郎"],
            "extension": [{"url": REPRESENTATION, "valueCode": "IDE"}],
        }
    ]


@pytest.mark.parametrize("text", [None, "", "^^", "ANONYMOUS", "Test^Patient", "XXXX^XXXX", "==="])
def test_a_placeholder_name_is_omitted(text: str | None) -> None:
    assert names(text) is None


@pytest.mark.parametrize(("sex", "gender"), [("M", "male"), ("F", "female"), ("O", "other")])
def test_each_sex_of_dicom_has_a_gender(sex: str, gender: str) -> None:
    assert make(header_rows({"PatientSex": sex}))["gender"] == gender


@pytest.mark.parametrize("sex", ["U", "m", "male"])
def test_an_invalid_sex_is_omitted_with_a_finding(sex: str) -> None:
    findings = new_findings()
    assert "gender" not in make(header_rows({"PatientSex": sex}), findings=findings)
    assert codes_and_tags(findings) == [("value-omitted", "00100040")]


def test_the_sheet_fills_in_a_missing_sex() -> None:
    findings = new_findings()
    assert make(header_rows({}), sheet={"sex": "Female"}, findings=findings)["gender"] == "female"
    assert codes_and_tags(findings) == [("value-from-sheet", "00100040")]


def test_the_header_takes_precedence_over_the_sheet() -> None:
    findings = new_findings()
    assert make(header_rows({"PatientSex": "M"}), sheet={"sex": "Female"}, findings=findings)["gender"] == "male"
    assert codes_and_tags(findings) == [("sheet-conflict", "00100040")]


def test_a_sheet_that_agrees_gives_no_finding() -> None:
    findings = new_findings()
    assert make(header_rows({"PatientSex": "F"}), sheet={"sex": "female"}, findings=findings)["gender"] == "female"
    assert codes_and_tags(findings) == []


def test_the_sheet_does_not_resolve_a_conflict_of_headers() -> None:
    findings = new_findings()
    assert "gender" not in make(
        header_rows({"PatientSex": "F"}, {"PatientSex": "M"}), sheet={"sex": "Female"}, findings=findings
    )
    assert codes_and_tags(findings) == [("values-conflict", "00100040")]


@pytest.mark.parametrize(
    ("column", "first", "second", "element", "tag"),
    [
        ("PatientSex", "F", "M", "gender", "00100040"),
        ("PatientBirthDate", datetime.date(1966, 3, 12), datetime.date(1966, 3, 13), "birthDate", "00100030"),
    ],
)
def test_conflicting_values_are_omitted_with_a_finding(
    column: str, first: Any, second: Any, element: str, tag: str
) -> None:
    findings = new_findings()
    assert element not in make(header_rows({column: first}, {column: second}), findings=findings)
    assert codes_and_tags(findings) == [("values-conflict", tag)]


def test_two_names_are_both_kept() -> None:
    findings = new_findings()
    assert make(header_rows({"PatientName": "Doe^Jane"}, {"PatientName": "Roe^Jane"}), findings=findings)["name"] == [
        {"use": "usual", "family": "Doe", "given": ["Jane"]},
        {"use": "usual", "family": "Roe", "given": ["Jane"]},
    ]
    assert codes_and_tags(findings) == [("values-conflict", "00100010")]


def test_two_spellings_of_a_name_are_one_name() -> None:
    findings = new_findings()
    rows = header_rows(
        {"PatientName": "Doe^Jane"}, {"PatientName": "Doe^Jane^^^"}, {"PatientName": "Doe^Jane=\u5c71^\u82b1"}
    )
    assert [name["family"] for name in make(rows, findings=findings)["name"]] == ["Doe", "\u5c71"]
    assert codes_and_tags(findings) == []


def test_a_value_of_some_rows_is_valid_for_all() -> None:
    findings = new_findings()
    assert make(header_rows({"PatientSex": "F"}, {}), findings=findings)["gender"] == "female"
    assert codes_and_tags(findings) == []


def test_identifying_values_are_masked_in_findings() -> None:
    findings = new_findings()
    rows = header_rows(
        {"PatientName": "Doe^John", "PatientBirthDate": datetime.date(1966, 3, 12)}, {"PatientName": "Roe"}
    )
    make(rows, findings=findings)
    assert findings.collected
    assert not any(secret in str(findings.collected) for secret in ("Doe", "Roe", "1966"))
