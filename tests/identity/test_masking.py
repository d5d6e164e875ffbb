"""Values as they may be displayed in findings, logs and reports."""

import pytest

from dicom_etl.headers.catalogue import catalogue
from dicom_etl.identity.masking import mask_value


@pytest.mark.parametrize(
    "keyword",
    [
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientAddress",
        "PatientTelephoneNumbers",
        "PatientComments",
        "EthnicGroup",
        "OtherPatientIDs",
        "IssuerOfPatientID",
        "AccessionNumber",
        "StudyID",
        "AdmissionID",
        "ReferringPhysicianName",
        "PerformingPhysicianName",
        "OperatorsName",
        "NameOfPhysiciansReadingStudy",
        "InstitutionName",
        "StationName",
        "DeviceSerialNumber",
    ],
)
def test_an_identifying_value_is_masked(keyword: str) -> None:
    assert mask_value(keyword, "Fictional^Ada") == "(masked)"


def test_every_person_name_of_the_catalogue_is_masked() -> None:
    names = [column.keyword for column in catalogue() if column.vr == "PN"]
    assert len(names) > 3
    assert {mask_value(keyword, "Fictional^Ada") for keyword in names} == {"(masked)"}


def test_columns_that_exist_for_privacy_checks_are_masked() -> None:
    columns = [column for column in catalogue() if column.used_for == "quality: privacy"]
    private = [column.keyword for column in columns if column.kind == "text"]
    assert {keyword: mask_value(keyword, "text") for keyword in private if keyword != "BurnedInAnnotation"} == {
        "PatientAddress": "(masked)",
        "PatientTelephoneNumbers": "(masked)",
        "EthnicGroup": "(masked)",
        "PatientComments": "(masked)",
    }


@pytest.mark.parametrize("keyword", ["Modality", "BodyPartExamined", "StudyDate", ""])
def test_other_values_are_unchanged(keyword: str) -> None:
    assert mask_value(keyword, "BREAST") == "BREAST"


@pytest.mark.parametrize("hostile", ["\x1b", "\x00", "\n", "\x07", "\u202e", "\u200b", "\ud800"])
def test_control_characters_are_replaced(hostile: str) -> None:
    assert mask_value("Modality", f"M{hostile}R") == "M\ufffdR"


def test_other_scripts_are_unchanged() -> None:
    assert mask_value("BodyPartExamined", "胸部 ü") == "胸部 ü"


def test_120_characters_are_unchanged() -> None:
    assert mask_value("Modality", "x" * 120) == "x" * 120


def test_a_longer_value_is_truncated_to_120_characters() -> None:
    assert mask_value("Modality", "x" * 121) == "x" * 119 + "…"
