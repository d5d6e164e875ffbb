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


def make(rows: HeaderRows, context: Context = CONTEXT, findings: FindingCollector | None = None) -> dict[str, Any]:
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
    return make(instances(values), context, findings)


def series_with(findings: FindingCollector | None = None, **values: Any) -> Any:
    """Its series."""
    return study_with(findings, **values)["series"][0]


class TestWholeResources:
    def test_a_study_of_a_full_header(self) -> None:
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
        assert make(rows, findings=findings) == {
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
            "procedureCode": [
                {"coding": [{"system": "http://radlex.org", "code": "RPID1234", "display": "MR Breast"}]}
            ],
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

    def test_a_minimal_header_gives_no_invented_values(self) -> None:
        findings = new_findings()
        assert make(instances({}), findings=findings) == {
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


class TestIdentifiers:
    def test_the_systems_of_the_sds_identifiers_are_settings(self) -> None:
        context = replace(CONTEXT, dataset_system="urn:x:datasets", study_system="urn:x:studies")
        systems = [identifier["system"] for identifier in study_with(context=context)["identifier"]]
        assert systems == ["urn:dicom:uid", "urn:x:datasets", "urn:x:studies"]

    def test_an_accession_number_without_a_universal_issuer_has_no_system(self) -> None:
        accession = study_with(AccessionNumber="A-7", IssuerOfAccessionNumber="RIS")["identifier"][1]
        assert (accession["value"], accession["assigner"]) == ("A-7", {"display": "RIS"})
        assert "system" not in accession

    def test_a_study_without_a_subject_has_a_dash_in_its_sds_identifier(self) -> None:
        findings = FindingCollector("breast", ".", None, "1.2.3")
        assert study_with(findings)["identifier"][-1]["value"] == "urn:uid:--1.2.3"


class TestValues:
    @pytest.mark.parametrize(
        ("column", "tag", "element"),
        [
            ("StudyDescription", "00081030", "description"),
            ("AccessionNumber", "00080050", None),
        ],
    )
    def test_conflicting_values_of_a_study_are_omitted_with_a_finding(
        self, column: str, tag: str, element: str | None
    ) -> None:
        findings = new_findings()
        resource = make(instances({column: "one"}, {column: "two"}), findings=findings)
        assert element not in resource
        assert len(resource["identifier"]) == 3
        assert codes_and_tags(findings) == [("values-conflict", tag)]

    @pytest.mark.parametrize(
        ("column", "first", "second", "tag", "element"),
        [
            ("SeriesDescription", "one", "two", "0008103E", "description"),
            ("SeriesNumber", 1, 2, "00200011", "number"),
            ("BodyPartExamined", "BREAST", "CHEST", "00180015", "bodySite"),
        ],
    )
    def test_conflicting_values_of_a_series_are_omitted_with_a_finding(
        self, column: str, first: Any, second: Any, tag: str, element: str
    ) -> None:
        findings = new_findings()
        assert element not in make(instances({column: first}, {column: second}), findings=findings)["series"][0]
        assert codes_and_tags(findings) == [("values-conflict", tag)]

    def test_an_accession_number_is_masked_in_findings(self) -> None:
        findings = new_findings()
        make(instances({"AccessionNumber": "A-7"}, {"AccessionNumber": "B-8"}), findings=findings)
        assert findings.collected
        assert not any(secret in str(findings.collected) for secret in ("A-7", "B-8"))

    @pytest.mark.parametrize("text", ["  ", "\u00a0", "\t"])
    def test_a_blank_description_is_omitted(self, text: str) -> None:
        assert "description" not in study_with(StudyDescription=text)

    @pytest.mark.parametrize("number", [-1, 2_147_483_648])
    def test_an_invalid_series_number_is_omitted_with_a_finding(self, number: int) -> None:
        findings = new_findings()
        assert "number" not in series_with(findings, SeriesNumber=number)
        assert codes_and_tags(findings) == [("value-omitted", "00200011")]

    @pytest.mark.parametrize("number", [0, 2_147_483_647])
    def test_the_smallest_and_the_largest_number_are_valid(self, number: int) -> None:
        assert series_with(SeriesNumber=number)["number"] == number

    def test_names_of_staff_are_included_only_by_setting(self) -> None:
        assert "referrer" not in study_with(ReferringPhysicianName="Roe^Jane^^Dr.")
        asked = study_with(context=replace(CONTEXT, staff_names=True), ReferringPhysicianName="Roe^Jane^^Dr.")
        assert asked["referrer"] == {"type": "Practitioner", "display": "Dr. Jane Roe"}

    def test_a_study_of_two_procedures_has_both(self) -> None:
        findings = new_findings()
        rows = instances(
            {"ProcedureCodeValue": "RPID1", "ProcedureCodeMeaning": "one"},
            {"ProcedureCodeValue": "RPID2", "ProcedureCodeMeaning": "two"},
            ProcedureCodeSchemeDesignator="RADLEX",
        )
        assert make(rows, findings=findings)["procedureCode"] == [
            {"coding": [{"system": "http://radlex.org", "code": "RPID1", "display": "one"}]},
            {"coding": [{"system": "http://radlex.org", "code": "RPID2", "display": "two"}]},
        ]
        assert codes_and_tags(findings) == []

    def test_a_code_of_a_private_scheme_has_a_uri_of_the_dataset(self) -> None:
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


ORIGINAL, DERIVED = "ORIGINAL\\PRIMARY\\AXIAL", "DERIVED\\SECONDARY"


class TestStarted:
    def test_the_zone_of_the_dataset_is_used(self) -> None:
        context = replace(CONTEXT, zone=ZoneInfo("Pacific/Auckland"))
        assert study_with(context=context, StudyDate=DAY, StudyTime="101500")["started"] == "2024-01-05T10:15:00+13:00"

    def test_without_a_zone_only_the_date_is_used_with_a_finding(self) -> None:
        findings = new_findings()
        assert study_with(findings, StudyDate=DAY, StudyTime="101500")["started"] == "2024-01-05"
        assert codes_and_tags(findings) == [("time-zone-missing", "00080030")]

    def test_a_time_without_a_date_is_not_used(self) -> None:
        findings = new_findings()
        assert "started" not in study_with(findings, StudyTime="101500", TimezoneOffsetFromUTC="+0000")
        assert codes_and_tags(findings) == []

    def test_the_earliest_of_several_is_used_with_a_finding(self) -> None:
        findings = new_findings()
        rows = instances(
            {"StudyDate": datetime.date(2024, 1, 6), "StudyTime": "090000"},
            {"StudyDate": DAY, "StudyTime": "235900"},
            TimezoneOffsetFromUTC="+0100",
        )
        assert make(rows, findings=findings)["started"] == "2024-01-05T23:59:00+01:00"
        assert codes_and_tags(findings) == [("values-conflict", "00080020")]

    def test_date_time_and_offset_are_from_the_same_instance(self) -> None:
        rows = instances(
            {"StudyDate": DAY, "StudyTime": "230000", "TimezoneOffsetFromUTC": "-0500"},
            {"StudyDate": datetime.date(2024, 1, 6), "StudyTime": "050100", "TimezoneOffsetFromUTC": "+0100"},
        )
        assert make(rows)["started"] == "2024-01-05T23:00:00-05:00"

    def test_the_earliest_is_the_earliest_instant(self) -> None:
        rows = instances(
            {"StudyDate": DAY, "StudyTime": "230000", "TimezoneOffsetFromUTC": "-0500"},  # 04:00 UTC of the next day
            {"StudyDate": datetime.date(2024, 1, 6), "StudyTime": "010000", "TimezoneOffsetFromUTC": "+0100"},  # 00:00
        )
        assert make(rows)["started"] == "2024-01-06T01:00:00+01:00"

    def test_the_acquisition_date_substitutes_the_study_date(self) -> None:
        findings = new_findings()
        rows = instances(
            {"AcquisitionDateTime": "20240105101500.5+0100", "ImageType": ORIGINAL},
            {"AcquisitionDateTime": "20200101", "ImageType": DERIVED},
        )
        assert make(rows, findings=findings)["started"] == "2024-01-05T10:15:00.5+01:00"
        assert ("date-substituted", "00080020") in codes_and_tags(findings)

    def test_the_study_date_takes_precedence_over_the_acquisition_date(self) -> None:
        findings = new_findings()
        rows = instances({"StudyDate": DAY, "AcquisitionDateTime": "20230101", "ImageType": ORIGINAL})
        assert make(rows, findings=findings)["started"] == "2024-01-05"
        assert ("date-substituted", "00080020") not in codes_and_tags(findings)

    @pytest.mark.parametrize(
        "dates",
        [
            {"AcquisitionDateTime": "20240105101500+0100"},
            {"AcquisitionDate": DAY, "AcquisitionTime": "101500", "TimezoneOffsetFromUTC": "+0100"},
            {"ContentDate": DAY, "ContentTime": "101500", "TimezoneOffsetFromUTC": "+0100"},
        ],
    )
    def test_dates_of_original_images_substitute_the_series_date(self, dates: dict[str, Any]) -> None:
        findings = new_findings()
        (series,) = make(instances({"ImageType": ORIGINAL, **dates}), findings=findings)["series"]
        assert series["started"] == "2024-01-05T10:15:00+01:00"
        assert ("date-substituted", "00080021") in codes_and_tags(findings)

    def test_dates_of_derived_images_are_not_substitutes(self) -> None:
        dates = {"ContentDate": DAY, "AcquisitionDate": DAY, "AcquisitionDateTime": "20240105"}
        study = make(instances({"ImageType": DERIVED, **dates}, {"ImageType": None, **dates}))
        assert "started" not in study
        assert "started" not in study["series"][0]

    def test_an_invalid_acquisition_date_time_is_omitted_with_a_finding(self) -> None:
        findings = new_findings()
        assert "started" not in make(
            instances({"AcquisitionDateTime": "last week", "ImageType": ORIGINAL}), findings=findings
        )
        assert ("value-omitted", "0008002A") in codes_and_tags(findings)

    def test_an_instance_without_the_time_of_the_others_is_no_conflict(self) -> None:
        findings = new_findings()
        rows = instances(
            {"StudyDate": DAY}, {"StudyDate": DAY, "StudyTime": "101500", "TimezoneOffsetFromUTC": "+0100"}
        )
        assert make(rows, findings=findings)["started"] == "2024-01-05T10:15:00+01:00"
        assert codes_and_tags(findings) == []

    def test_a_series_has_its_own_start(self) -> None:
        series = series_with(
            StudyDate=DAY, StudyTime="101500", SeriesDate=DAY, SeriesTime="103000", TimezoneOffsetFromUTC="+0100"
        )
        assert series["started"] == "2024-01-05T10:30:00+01:00"


class TestModality:
    def test_the_modalities_of_a_study_are_distinct_and_sorted(self) -> None:
        rows = header_rows(
            {"SeriesInstanceUID": "1.1", "SOPInstanceUID": "1.1.1", "Modality": "SR"},
            {"SeriesInstanceUID": "1.2", "SOPInstanceUID": "1.2.1", "Modality": "MR"},
            {"SeriesInstanceUID": "1.3", "SOPInstanceUID": "1.3.1", "Modality": "MR"},
            StudyInstanceUID="1.2.3",
            SOPClassUID="1.2.840.10008.5.1.4.1.1.4",
        )
        assert make(rows)["modality"] == [
            MR,
            {"system": DCM, "code": "SR", "display": "Structured Report Document"},
        ]

    def test_an_unknown_modality_has_no_system(self) -> None:
        assert series_with(Modality="FOO")["modality"] == {"code": "FOO"}

    def test_a_modality_with_blanks_is_a_valid_code(self) -> None:
        assert series_with(Modality="M  R")["modality"] == {"code": "M R"}

    def test_the_most_frequent_modality_is_used_with_a_finding(self) -> None:
        findings = new_findings()
        rows = instances({"Modality": "CT"}, {"Modality": "MR"}, {"Modality": "MR"})
        assert make(rows, findings=findings)["series"][0]["modality"] == MR
        assert codes_and_tags(findings) == [("values-conflict", "00080060")]

    def test_a_series_without_a_modality_is_omitted_with_a_finding(self) -> None:
        findings = new_findings()
        assert make_imaging_study("s1", "p1", instances({}, {}, Modality=None), CONTEXT, findings) is None
        assert [(f.code, f.count, f.series_uid) for f in findings.collected] == [("instance-excluded", 2, "1.2.3.1")]

    def test_an_instance_without_the_modality_of_its_series_is_included(self) -> None:
        findings = new_findings()
        series = make(instances({}, {"Modality": None}), findings=findings)["series"][0]
        assert (series["modality"], series["numberOfInstances"]) == (MR, 2)
        assert codes_and_tags(findings) == []


class TestBodySiteAndLaterality:
    def test_a_coded_region_takes_precedence_over_the_body_part(self) -> None:
        series = series_with(
            AnatomicRegionCodeValue="80891009",
            AnatomicRegionSchemeDesignator="SCT",
            AnatomicRegionCodeMeaning="Heart",
            BodyPartExamined="CHEST",
        )
        assert series["bodySite"] == {"system": SCT, "code": "80891009", "display": "Heart"}

    def test_a_region_in_snomed_rt_is_converted(self) -> None:
        series = series_with(
            AnatomicRegionCodeValue="T-04000", AnatomicRegionSchemeDesignator="SRT", AnatomicRegionCodeMeaning="Breast"
        )
        assert series["bodySite"] == {"system": SCT, "code": "76752008", "display": "Breast"}

    def test_a_region_of_a_private_scheme_is_not_used(self) -> None:
        series = series_with(
            AnatomicRegionCodeValue="X", AnatomicRegionSchemeDesignator="99ACME", BodyPartExamined="BREAST"
        )
        assert series["bodySite"]["code"] == "76752008"

    def test_an_unknown_body_part_is_text_with_a_finding(self) -> None:
        findings = new_findings()
        assert series_with(findings, BodyPartExamined="MAMMA LINKS")["bodySite"] == {"display": "MAMMA LINKS"}
        assert codes_and_tags(findings) == [("body-part-unmapped", "00180015")]

    @pytest.mark.parametrize("column", ["Laterality", "ImageLaterality", "FrameLaterality"])
    @pytest.mark.parametrize(("side", "coding"), [("R", RIGHT), ("L", LEFT), ("B", BOTH)])
    def test_each_laterality_column_is_used(self, column: str, side: str, coding: dict[str, str]) -> None:
        assert series_with(**{column: side})["laterality"] == coding

    def test_unpaired_is_omitted_without_a_finding(self) -> None:
        findings = new_findings()
        assert "laterality" not in series_with(findings, ImageLaterality="U")
        assert codes_and_tags(findings) == []

    @pytest.mark.parametrize(("first", "second"), [("R", "L"), ("R", "B"), ("L", "U")])
    def test_images_of_two_sides_have_no_laterality(self, first: str, second: str) -> None:
        findings = new_findings()
        series = make(instances({"ImageLaterality": first}, {"ImageLaterality": second}), findings=findings)["series"][
            0
        ]
        assert "laterality" not in series
        assert codes_and_tags(findings) == [("laterality-conflict", "00200060")]

    def test_conflicting_lateralities_of_series_and_image_are_omitted(self) -> None:
        findings = new_findings()
        assert "laterality" not in series_with(findings, Laterality="R", ImageLaterality="L")
        assert codes_and_tags(findings) == [("laterality-conflict", "00200060")]

    def test_an_invalid_laterality_is_omitted_with_a_finding(self) -> None:
        findings = new_findings()
        assert "laterality" not in series_with(findings, Laterality="RIGHT")
        assert codes_and_tags(findings) == [("value-omitted", "00200060")]


class TestSeriesAndInstances:
    def test_series_and_instances_are_counted(self) -> None:
        rows = header_rows(
            {"SeriesInstanceUID": "1.1", "SOPInstanceUID": "1.1.1"},
            {"SeriesInstanceUID": "1.1", "SOPInstanceUID": "1.1.2"},
            {"SeriesInstanceUID": "1.2", "SOPInstanceUID": "1.2.1"},
            StudyInstanceUID="1.2.3",
            SOPClassUID="1.2.840.10008.5.1.4.1.1.4",
            Modality="MR",
        )
        resource = make(rows)
        assert (resource["numberOfSeries"], resource["numberOfInstances"]) == (2, 3)
        assert [(s["uid"], s["numberOfInstances"]) for s in resource["series"]] == [("1.1", 2), ("1.2", 1)]

    def test_series_are_sorted_by_number_and_uid(self) -> None:
        rows = header_rows(
            {"SeriesInstanceUID": "1.1", "SOPInstanceUID": "1.1.1"},
            {"SeriesInstanceUID": "1.4", "SOPInstanceUID": "1.4.1", "SeriesNumber": 10},
            {"SeriesInstanceUID": "1.3", "SOPInstanceUID": "1.3.1", "SeriesNumber": 2},
            {"SeriesInstanceUID": "1.2", "SOPInstanceUID": "1.2.1", "SeriesNumber": 10},
            **{**ROW, "SeriesInstanceUID": None, "SOPInstanceUID": None},
        )
        assert [series["uid"] for series in make(rows)["series"]] == ["1.3", "1.2", "1.4", "1.1"]

    def test_instances_are_sorted_by_number_and_uid(self) -> None:
        rows = instances(
            {"InstanceNumber": 10, "SOPInstanceUID": "1.9"},
            {"InstanceNumber": 2, "SOPInstanceUID": "1.8"},
            {"SOPInstanceUID": "1.1"},
            {"InstanceNumber": 10, "SOPInstanceUID": "1.7"},
        )
        assert [instance["uid"] for instance in make(rows)["series"][0]["instance"]] == [
            "1.8",
            "1.7",
            "1.9",
            "1.1",
        ]

    def test_a_series_of_two_samples_is_one_series_with_a_finding(self) -> None:
        findings = new_findings()
        assert make(instances({"sample": "sam-1"}, {"sample": "sam-2"}), findings=findings)["numberOfSeries"] == 1
        assert [(f.code, f.message) for f in findings.collected] == [
            ("series-two-samples", "in the folders of sam-1, sam-2")
        ]

    def test_invalid_instance_numbers_are_omitted_and_counted(self) -> None:
        findings = new_findings()
        rows = instances({"InstanceNumber": -3}, {"InstanceNumber": -3}, {"InstanceNumber": 7})
        assert [i.get("number") for i in make(rows, findings=findings)["series"][0]["instance"]] == [
            7,
            None,
            None,
        ]
        assert [(f.code, f.value, f.count) for f in findings.collected] == [("value-omitted", "-3", 2)]

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
    def test_an_instance_without_required_values_is_excluded(self, column: str, value: str | None) -> None:
        findings = new_findings()
        rows = instances({}, {column: value})
        assert make(rows, findings=findings)["numberOfInstances"] == 1
        assert [(f.code, f.message) for f in findings.collected] == [
            ("instance-excluded", f"{column} absent, empty or not valid in FHIR")
        ]

    def test_an_unknown_sop_class_has_no_display(self) -> None:
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
    def test_the_title_of_documents_and_images(self, values: dict[str, str], title: str | None) -> None:
        assert series_with(**values)["instance"][0].get("title") == title
