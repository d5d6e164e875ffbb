"""ImagingStudy (R4): expected resources written from the standard and the mapping."""

import datetime
from dataclasses import replace
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from dicom_etl.fhir.context import Context
from dicom_etl.fhir.imaging_study import make_imaging_study
from dicom_etl.fhir.rows import FindingCollector, HeaderRows
from dicom_etl.fhir.validation import find_errors
from tests.support.header_rows import CONTEXT, codes_and_tags, header_rows, new_findings

DCM = "http://dicom.nema.org/resources/ontology/DCM"
SCT = "http://snomed.info/sct"
MR = {"system": DCM, "code": "MR", "display": "Magnetic Resonance"}
MR_IMAGE = {"system": "urn:ietf:rfc:3986", "code": "urn:oid:1.2.840.10008.5.1.4.1.1.4", "display": "MR Image Storage"}
DAY = datetime.date(2024, 1, 5)
RIGHT = {"system": SCT, "code": "24028007", "display": "Right"}
LEFT = {"system": SCT, "code": "7771000", "display": "Left"}
BOTH = {"system": SCT, "code": "51440002", "display": "Right and left"}

ROW: dict[str, Any] = {
    "subject": "sub-1",
    "sample": "sam-1",
    "StudyInstanceUID": "1.2.3",
    "SeriesInstanceUID": "1.2.3.1",
    "SOPInstanceUID": "1.2.3.1.1",
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
    "Modality": "MR",
}


def made(rows: HeaderRows, context: Context = CONTEXT, findings: FindingCollector | None = None) -> dict[str, Any]:
    resource = make_imaging_study("s1", "p1", rows, context, findings or new_findings())
    assert resource is not None
    assert find_errors(resource) == []
    return resource


def instances(*rows: dict[str, Any], **all_rows: Any) -> HeaderRows:
    """One series of as many instances as rows."""
    return header_rows(
        *({"SOPInstanceUID": f"1.2.3.1.{n}", **row} for n, row in enumerate(rows, 1)), **{**ROW, **all_rows}
    )


def study_with(findings: FindingCollector | None = None, context: Context = CONTEXT, **values: Any) -> dict[str, Any]:
    """The study of one instance with these values."""
    return made(instances(values), context, findings)


def series_with(findings: FindingCollector | None = None, **values: Any) -> Any:
    """Its series."""
    return study_with(findings, **values)["series"][0]


# -- whole resources --------------------------------------------------------------------------------------------------


def test_a_study_of_a_full_header() -> None:
    rows = instances(
        {"InstanceNumber": 1},
        {"InstanceNumber": 2},
        StudyDate=DAY,
        StudyTime="101500",
        TimezoneOffsetFromUTC="+1300",
        AccessionNumber="A-7",
        IssuerOfAccessionNumber="RIS",
        IssuerOfAccessionNumberUniversalID="1.9.9",
        IssuerOfAccessionNumberUniversalIDType="ISO",
        StudyDescription="MRI BREAST",
        ProcedureCodeValue="RPID1234",
        ProcedureCodeSchemeDesignator="RADLEX",
        ProcedureCodeMeaning="MR Breast",
        ReasonForTheRequestedProcedure="lump",
        SeriesNumber=4,
        SeriesDescription="T1 dynamic",
        SeriesDate=DAY,
        SeriesTime="102000.5",
        BodyPartExamined="BREAST",
        Laterality="R",
        ImageType="ORIGINAL\\PRIMARY",
        ReferringPhysicianName="Roe^Jane",
    )
    findings = new_findings()
    assert made(rows, findings=findings) == {
        "resourceType": "ImagingStudy",
        "id": "s1",
        "identifier": [
            {"use": "official", "system": "urn:dicom:uid", "value": "urn:oid:1.2.3"},
            {
                "use": "usual",
                "type": {
                    "coding": [
                        {
                            "system": "http://terminology.hl7.org/CodeSystem/v2-0203",
                            "code": "ACSN",
                            "display": "Accession ID",
                        }
                    ]
                },
                "system": "urn:oid:1.9.9",
                "value": "A-7",
                "assigner": {"display": "RIS"},
            },
            {"use": "temp", "system": "urn:sparc_dataset:uid", "value": "urn:uid:breast"},
            {"use": "temp", "system": "urn:sparc_study:uid", "value": "urn:uid:sub-1-1.2.3"},
        ],
        "status": "available",
        "modality": [MR],
        "subject": {"reference": "Patient/p1"},
        "started": "2024-01-05T10:15:00+13:00",
        "endpoint": [{"reference": "Endpoint/e1"}],
        "numberOfSeries": 1,
        "numberOfInstances": 2,
        "procedureCode": [{"coding": [{"system": "http://radlex.org", "code": "RPID1234", "display": "MR Breast"}]}],
        "reasonCode": [{"text": "lump"}],
        "description": "MRI BREAST",
        "series": [
            {
                "uid": "1.2.3.1",
                "number": 4,
                "modality": MR,
                "description": "T1 dynamic",
                "numberOfInstances": 2,
                "bodySite": {"system": SCT, "code": "76752008", "display": "Breast"},
                "laterality": RIGHT,
                "started": "2024-01-05T10:20:00.5+13:00",
                "instance": [
                    {"uid": "1.2.3.1.1", "sopClass": MR_IMAGE, "number": 1, "title": "ORIGINAL\\PRIMARY"},
                    {"uid": "1.2.3.1.2", "sopClass": MR_IMAGE, "number": 2, "title": "ORIGINAL\\PRIMARY"},
                ],
            }
        ],
    }
    assert codes_and_tags(findings) == []


def test_a_study_of_a_header_with_nothing_but_uids_and_modality_has_nothing_invented() -> None:
    findings = new_findings()
    assert made(instances({}), findings=findings) == {
        "resourceType": "ImagingStudy",
        "id": "s1",
        "identifier": [
            {"use": "official", "system": "urn:dicom:uid", "value": "urn:oid:1.2.3"},
            {"use": "temp", "system": "urn:sparc_dataset:uid", "value": "urn:uid:breast"},
            {"use": "temp", "system": "urn:sparc_study:uid", "value": "urn:uid:sub-1-1.2.3"},
        ],
        "status": "available",
        "modality": [MR],
        "subject": {"reference": "Patient/p1"},
        "endpoint": [{"reference": "Endpoint/e1"}],
        "numberOfSeries": 1,
        "numberOfInstances": 1,
        "series": [
            {
                "uid": "1.2.3.1",
                "modality": MR,
                "numberOfInstances": 1,
                "instance": [{"uid": "1.2.3.1.1", "sopClass": MR_IMAGE}],
            }
        ],
    }
    assert codes_and_tags(findings) == []


# -- identifiers ------------------------------------------------------------------------------------------------------


def test_the_systems_of_the_sds_identifiers_are_settings() -> None:
    context = replace(CONTEXT, dataset_system="urn:x:datasets", study_system="urn:x:studies")
    systems = [identifier["system"] for identifier in study_with(context=context)["identifier"]]
    assert systems == ["urn:dicom:uid", "urn:x:datasets", "urn:x:studies"]


def test_an_accession_number_without_a_universal_issuer_has_no_system() -> None:
    accession = study_with(AccessionNumber="A-7", IssuerOfAccessionNumber="RIS")["identifier"][1]
    assert (accession["value"], accession["assigner"]) == ("A-7", {"display": "RIS"})
    assert "system" not in accession


def test_a_study_of_no_subject_has_a_dash_for_it() -> None:
    findings = FindingCollector("breast", ".", None, "1.2.3")
    assert study_with(findings)["identifier"][-1]["value"] == "urn:uid:--1.2.3"


# -- study and series values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "tag", "element"),
    [
        ("StudyDescription", "00081030", "description"),
        ("AccessionNumber", "00080050", None),
    ],
)
def test_study_values_that_disagree_are_left_out_and_said(column: str, tag: str, element: str | None) -> None:
    findings = new_findings()
    resource = made(instances({column: "one"}, {column: "two"}), findings=findings)
    assert element not in resource
    assert len(resource["identifier"]) == 3
    assert codes_and_tags(findings) == [("values-conflict", tag)]


@pytest.mark.parametrize(
    ("column", "one", "other", "tag", "element"),
    [
        ("SeriesDescription", "one", "two", "0008103E", "description"),
        ("SeriesNumber", 1, 2, "00200011", "number"),
        ("BodyPartExamined", "BREAST", "CHEST", "00180015", "bodySite"),
    ],
)
def test_series_values_that_disagree_are_left_out_and_said(
    column: str, one: Any, other: Any, tag: str, element: str
) -> None:
    findings = new_findings()
    assert element not in made(instances({column: one}, {column: other}), findings=findings)["series"][0]
    assert codes_and_tags(findings) == [("values-conflict", tag)]


def test_no_finding_shows_an_accession_number() -> None:
    findings = new_findings()
    made(instances({"AccessionNumber": "A-7"}, {"AccessionNumber": "B-8"}), findings=findings)
    assert findings.collected
    assert not any(secret in str(findings.collected) for secret in ("A-7", "B-8"))


@pytest.mark.parametrize("text", ["  ", "\u00a0", "\t"])
def test_a_description_of_blanks_is_none(text: str) -> None:
    assert "description" not in study_with(StudyDescription=text)


@pytest.mark.parametrize("number", [-1, 2_147_483_648])
def test_a_series_number_that_is_no_unsigned_int_is_left_out_and_said(number: int) -> None:
    findings = new_findings()
    assert "number" not in series_with(findings, SeriesNumber=number)
    assert codes_and_tags(findings) == [("value-omitted", "00200011")]


@pytest.mark.parametrize("number", [0, 2_147_483_647])
def test_the_least_and_the_greatest_number_stand(number: int) -> None:
    assert series_with(SeriesNumber=number)["number"] == number


def test_the_name_of_the_referring_physician_is_given_only_if_asked_for() -> None:
    assert "referrer" not in study_with(ReferringPhysicianName="Roe^Jane^^Dr.")
    asked = study_with(context=replace(CONTEXT, staff_names=True), ReferringPhysicianName="Roe^Jane^^Dr.")
    assert asked["referrer"] == {"type": "Practitioner", "display": "Dr. Jane Roe"}


def test_a_study_of_two_procedures_has_both() -> None:
    findings = new_findings()
    rows = instances(
        {"ProcedureCodeValue": "RPID1", "ProcedureCodeMeaning": "one"},
        {"ProcedureCodeValue": "RPID2", "ProcedureCodeMeaning": "two"},
        ProcedureCodeSchemeDesignator="RADLEX",
    )
    assert made(rows, findings=findings)["procedureCode"] == [
        {"coding": [{"system": "http://radlex.org", "code": "RPID1", "display": "one"}]},
        {"coding": [{"system": "http://radlex.org", "code": "RPID2", "display": "two"}]},
    ]
    assert codes_and_tags(findings) == []


def test_a_code_of_a_private_scheme_stands_under_a_uri_of_the_dataset() -> None:
    findings = new_findings()
    resource = study_with(
        findings=findings,
        ProcedureCodeValue="X1",
        ProcedureCodeSchemeDesignator="99ACME",
        ProcedureCodeMeaning="MR Breast",
    )
    system = "https://site.example/breast/coding-scheme/99ACME"
    assert resource["procedureCode"] == [{"coding": [{"system": system, "code": "X1", "display": "MR Breast"}]}]
    assert codes_and_tags(findings) == [("coding-scheme-unknown", "00081032")]


# -- started ----------------------------------------------------------------------------------------------------------


def test_the_zone_of_the_dataset_makes_a_time_an_instant() -> None:
    context = replace(CONTEXT, zone=ZoneInfo("Pacific/Auckland"))
    assert study_with(context=context, StudyDate=DAY, StudyTime="101500")["started"] == "2024-01-05T10:15:00+13:00"


def test_without_a_zone_the_day_is_given_and_it_is_said() -> None:
    findings = new_findings()
    assert study_with(findings, StudyDate=DAY, StudyTime="101500")["started"] == "2024-01-05"
    assert codes_and_tags(findings) == [("time-zone-missing", "00080030")]


def test_a_time_without_a_date_gives_nothing() -> None:
    findings = new_findings()
    assert "started" not in study_with(findings, StudyTime="101500", TimezoneOffsetFromUTC="+0000")
    assert codes_and_tags(findings) == []


def test_the_earliest_of_several_is_taken_and_said() -> None:
    findings = new_findings()
    rows = instances(
        {"StudyDate": datetime.date(2024, 1, 6), "StudyTime": "090000"},
        {"StudyDate": DAY, "StudyTime": "235900"},
        TimezoneOffsetFromUTC="+0100",
    )
    assert made(rows, findings=findings)["started"] == "2024-01-05T23:59:00+01:00"
    assert codes_and_tags(findings) == [("values-conflict", "00080020")]


def test_date_time_and_zone_are_those_of_one_instance() -> None:
    rows = instances(
        {"StudyDate": DAY, "StudyTime": "230000", "TimezoneOffsetFromUTC": "-0500"},
        {"StudyDate": datetime.date(2024, 1, 6), "StudyTime": "050100", "TimezoneOffsetFromUTC": "+0100"},
    )
    assert made(rows)["started"] == "2024-01-05T23:00:00-05:00"


def test_the_earliest_is_so_by_the_instant_and_not_by_the_clock() -> None:
    rows = instances(
        {"StudyDate": DAY, "StudyTime": "230000", "TimezoneOffsetFromUTC": "-0500"},  # 04:00 UTC of the next day
        {"StudyDate": datetime.date(2024, 1, 6), "StudyTime": "010000", "TimezoneOffsetFromUTC": "+0100"},  # 00:00
    )
    assert made(rows)["started"] == "2024-01-06T01:00:00+01:00"


ORIGINAL, DERIVED = "ORIGINAL\\PRIMARY\\AXIAL", "DERIVED\\SECONDARY"


def test_the_acquisition_of_original_images_stands_in_for_a_study_without_a_date() -> None:
    findings = new_findings()
    rows = instances(
        {"AcquisitionDateTime": "20240105101500.5+0100", "ImageType": ORIGINAL},
        {"AcquisitionDateTime": "20200101", "ImageType": DERIVED},
    )
    assert made(rows, findings=findings)["started"] == "2024-01-05T10:15:00.5+01:00"
    assert ("date-substituted", "00080020") in codes_and_tags(findings)


def test_the_date_of_the_study_counts_before_that_of_an_acquisition() -> None:
    findings = new_findings()
    rows = instances({"StudyDate": DAY, "AcquisitionDateTime": "20230101", "ImageType": ORIGINAL})
    assert made(rows, findings=findings)["started"] == "2024-01-05"
    assert ("date-substituted", "00080020") not in codes_and_tags(findings)


@pytest.mark.parametrize(
    "dates",
    [
        {"AcquisitionDateTime": "20240105101500+0100"},
        {"AcquisitionDate": DAY, "AcquisitionTime": "101500", "TimezoneOffsetFromUTC": "+0100"},
        {"ContentDate": DAY, "ContentTime": "101500", "TimezoneOffsetFromUTC": "+0100"},
    ],
)
def test_the_dates_of_original_images_stand_in_for_a_series_without_one(dates: dict[str, Any]) -> None:
    findings = new_findings()
    (series,) = made(instances({"ImageType": ORIGINAL, **dates}), findings=findings)["series"]
    assert series["started"] == "2024-01-05T10:15:00+01:00"
    assert ("date-substituted", "00080021") in codes_and_tags(findings)


def test_the_date_on_which_a_derived_object_was_made_stands_in_for_nothing() -> None:
    dates = {"ContentDate": DAY, "AcquisitionDate": DAY, "AcquisitionDateTime": "20240105"}
    study = made(instances({"ImageType": DERIVED, **dates}, {"ImageType": None, **dates}))
    assert "started" not in study
    assert "started" not in study["series"][0]


def test_an_acquisition_date_time_that_is_none_is_left_out_and_said() -> None:
    findings = new_findings()
    assert "started" not in made(
        instances({"AcquisitionDateTime": "last week", "ImageType": ORIGINAL}), findings=findings
    )
    assert ("value-omitted", "0008002A") in codes_and_tags(findings)


def test_an_instance_that_lacks_the_time_of_the_others_contradicts_nobody() -> None:
    findings = new_findings()
    rows = instances({"StudyDate": DAY}, {"StudyDate": DAY, "StudyTime": "101500", "TimezoneOffsetFromUTC": "+0100"})
    assert made(rows, findings=findings)["started"] == "2024-01-05T10:15:00+01:00"
    assert codes_and_tags(findings) == []


def test_a_series_started_at_its_own_time() -> None:
    series = series_with(
        StudyDate=DAY, StudyTime="101500", SeriesDate=DAY, SeriesTime="103000", TimezoneOffsetFromUTC="+0100"
    )
    assert series["started"] == "2024-01-05T10:30:00+01:00"


# -- modality ---------------------------------------------------------------------------------------------------------


def test_the_modalities_of_a_study_are_those_of_its_series_once_and_sorted() -> None:
    rows = header_rows(
        {"SeriesInstanceUID": "1.1", "SOPInstanceUID": "1.1.1", "Modality": "SR"},
        {"SeriesInstanceUID": "1.2", "SOPInstanceUID": "1.2.1", "Modality": "MR"},
        {"SeriesInstanceUID": "1.3", "SOPInstanceUID": "1.3.1", "Modality": "MR"},
        StudyInstanceUID="1.2.3",
        SOPClassUID="1.2.840.10008.5.1.4.1.1.4",
    )
    assert made(rows)["modality"] == [MR, {"system": DCM, "code": "SR", "display": "Structured Report Document"}]


def test_a_modality_that_is_no_term_is_no_code_of_dicom() -> None:
    assert series_with(Modality="FOO")["modality"] == {"code": "FOO"}


def test_a_modality_with_blanks_in_it_is_still_a_code_of_fhir() -> None:
    assert series_with(Modality="M  R")["modality"] == {"code": "M R"}


def test_of_several_modalities_in_a_series_the_most_frequent_is_taken_and_said() -> None:
    findings = new_findings()
    rows = instances({"Modality": "CT"}, {"Modality": "MR"}, {"Modality": "MR"})
    assert made(rows, findings=findings)["series"][0]["modality"] == MR
    assert codes_and_tags(findings) == [("values-conflict", "00080060")]


def test_a_series_without_a_modality_is_left_out_and_said() -> None:
    findings = new_findings()
    assert make_imaging_study("s1", "p1", instances({}, {}, Modality=None), CONTEXT, findings) is None
    assert [(found.code, found.count, found.series_uid) for found in findings.collected] == [
        ("instance-excluded", 2, "1.2.3.1")
    ]


def test_an_instance_that_lacks_the_modality_of_its_series_stays() -> None:
    findings = new_findings()
    series = made(instances({}, {"Modality": None}), findings=findings)["series"][0]
    assert (series["modality"], series["numberOfInstances"]) == (MR, 2)
    assert codes_and_tags(findings) == []


# -- body site and laterality -----------------------------------------------------------------------------------------


def test_a_coded_region_counts_before_the_body_part() -> None:
    series = series_with(
        AnatomicRegionCodeValue="80891009",
        AnatomicRegionSchemeDesignator="SCT",
        AnatomicRegionCodeMeaning="Heart",
        BodyPartExamined="CHEST",
    )
    assert series["bodySite"] == {"system": SCT, "code": "80891009", "display": "Heart"}


def test_a_region_in_old_snomed_codes_is_snomed_ct() -> None:
    series = series_with(
        AnatomicRegionCodeValue="T-04000", AnatomicRegionSchemeDesignator="SRT", AnatomicRegionCodeMeaning="Breast"
    )
    assert series["bodySite"] == {"system": SCT, "code": "76752008", "display": "Breast"}


def test_a_region_of_a_private_scheme_leaves_it_to_the_body_part() -> None:
    series = series_with(
        AnatomicRegionCodeValue="X", AnatomicRegionSchemeDesignator="99ACME", BodyPartExamined="BREAST"
    )
    assert series["bodySite"]["code"] == "76752008"


def test_a_body_part_that_is_no_term_is_text_alone_and_said() -> None:
    findings = new_findings()
    assert series_with(findings, BodyPartExamined="MAMMA LINKS")["bodySite"] == {"display": "MAMMA LINKS"}
    assert codes_and_tags(findings) == [("body-part-unmapped", "00180015")]


@pytest.mark.parametrize("column", ["Laterality", "ImageLaterality", "FrameLaterality"])
@pytest.mark.parametrize(("side", "coding"), [("R", RIGHT), ("L", LEFT), ("B", BOTH)])
def test_a_side_is_coded_wherever_it_is_said(column: str, side: str, coding: dict[str, str]) -> None:
    assert series_with(**{column: side})["laterality"] == coding


def test_unpaired_is_no_side_and_no_finding() -> None:
    findings = new_findings()
    assert "laterality" not in series_with(findings, ImageLaterality="U")
    assert codes_and_tags(findings) == []


@pytest.mark.parametrize(("one", "other"), [("R", "L"), ("R", "B"), ("L", "U")])
def test_images_of_different_sides_give_no_laterality_and_both_is_never_inferred(one: str, other: str) -> None:
    findings = new_findings()
    series = made(instances({"ImageLaterality": one}, {"ImageLaterality": other}), findings=findings)["series"][0]
    assert "laterality" not in series
    assert codes_and_tags(findings) == [("laterality-conflict", "00200060")]


def test_series_and_image_that_contradict_give_no_laterality() -> None:
    findings = new_findings()
    assert "laterality" not in series_with(findings, Laterality="R", ImageLaterality="L")
    assert codes_and_tags(findings) == [("laterality-conflict", "00200060")]


def test_another_side_is_left_out_and_said() -> None:
    findings = new_findings()
    assert "laterality" not in series_with(findings, Laterality="RIGHT")
    assert codes_and_tags(findings) == [("value-omitted", "00200060")]


# -- series and instances ---------------------------------------------------------------------------------------------


def test_series_and_instances_are_counted_and_not_believed() -> None:
    rows = header_rows(
        {"SeriesInstanceUID": "1.1", "SOPInstanceUID": "1.1.1"},
        {"SeriesInstanceUID": "1.1", "SOPInstanceUID": "1.1.2"},
        {"SeriesInstanceUID": "1.2", "SOPInstanceUID": "1.2.1"},
        StudyInstanceUID="1.2.3",
        SOPClassUID="1.2.840.10008.5.1.4.1.1.4",
        Modality="MR",
    )
    resource = made(rows)
    assert (resource["numberOfSeries"], resource["numberOfInstances"]) == (2, 3)
    assert [(s["uid"], s["numberOfInstances"]) for s in resource["series"]] == [("1.1", 2), ("1.2", 1)]


def test_series_stand_by_number_and_then_by_uid() -> None:
    rows = header_rows(
        {"SeriesInstanceUID": "1.1", "SOPInstanceUID": "1.1.1"},
        {"SeriesInstanceUID": "1.4", "SOPInstanceUID": "1.4.1", "SeriesNumber": 10},
        {"SeriesInstanceUID": "1.3", "SOPInstanceUID": "1.3.1", "SeriesNumber": 2},
        {"SeriesInstanceUID": "1.2", "SOPInstanceUID": "1.2.1", "SeriesNumber": 10},
        **{**ROW, "SeriesInstanceUID": None, "SOPInstanceUID": None},
    )
    assert [series["uid"] for series in made(rows)["series"]] == ["1.3", "1.2", "1.4", "1.1"]


def test_instances_stand_by_number_and_then_by_uid() -> None:
    rows = instances(
        {"InstanceNumber": 10, "SOPInstanceUID": "1.9"},
        {"InstanceNumber": 2, "SOPInstanceUID": "1.8"},
        {"SOPInstanceUID": "1.1"},
        {"InstanceNumber": 10, "SOPInstanceUID": "1.7"},
    )
    assert [instance["uid"] for instance in made(rows)["series"][0]["instance"]] == ["1.8", "1.7", "1.9", "1.1"]


def test_a_series_over_two_samples_stays_one_and_is_said() -> None:
    findings = new_findings()
    assert made(instances({"sample": "sam-1"}, {"sample": "sam-2"}), findings=findings)["numberOfSeries"] == 1
    assert [(found.code, found.message) for found in findings.collected] == [
        ("series-two-samples", "in the folders of sam-1, sam-2")
    ]


def test_an_instance_number_that_is_no_unsigned_int_is_left_out_and_counted() -> None:
    findings = new_findings()
    rows = instances({"InstanceNumber": -3}, {"InstanceNumber": -3}, {"InstanceNumber": 7})
    assert [i.get("number") for i in made(rows, findings=findings)["series"][0]["instance"]] == [7, None, None]
    assert [(found.code, found.value, found.count) for found in findings.collected] == [("value-omitted", "-3", 2)]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("SOPInstanceUID", None),
        ("SOPInstanceUID", "1.2_3"),
        ("SOPInstanceUID", "1" * 65),
        ("SeriesInstanceUID", "1 2"),
        ("SOPClassUID", None),
    ],
)
def test_an_instance_without_what_fhir_asks_for_is_left_out_and_said(column: str, value: str | None) -> None:
    findings = new_findings()
    rows = instances({}, {column: value})
    assert made(rows, findings=findings)["numberOfInstances"] == 1
    assert [(found.code, found.message) for found in findings.collected] == [
        ("instance-excluded", f"{column} absent, empty or not valid in FHIR")
    ]


def test_a_sop_class_that_nobody_knows_has_no_display() -> None:
    assert series_with(SOPClassUID="1.2.999")["instance"][0]["sopClass"] == {
        "system": "urn:ietf:rfc:3986",
        "code": "urn:oid:1.2.999",
    }


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ({"ConceptNameCodeMeaning": "Mammography report", "ImageType": "ORIGINAL"}, "Mammography report"),
        ({"DocumentTitle": "Letter"}, "Letter"),
        ({"ContentLabel": "SEGMENTATION", "ImageType": "DERIVED\\PRIMARY"}, "SEGMENTATION"),
        ({"ImageType": "ORIGINAL\\PRIMARY\\M"}, "ORIGINAL\\PRIMARY\\M"),
        ({"ContentLabel": "\u00a0", "ImageType": "ORIGINAL"}, "ORIGINAL"),
        ({}, None),
    ],
)
def test_the_title_is_what_a_person_would_call_the_object(values: dict[str, str], title: str | None) -> None:
    assert series_with(**values)["instance"][0].get("title") == title
