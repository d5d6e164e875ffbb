"""The catalogue of tags is valid, and complete for the FHIR mapping."""

from __future__ import annotations

import csv
from collections import Counter
from importlib import resources

import pyarrow as pa
import pytest
from pydicom.datadict import keyword_for_tag

from dicom_etl.headers.catalogue import Column, catalogue, columns_by_name
from dicom_etl.lake.schemas import header_table

# Tags that the docs and the FHIR mapping name, by column.
MAPPED = {
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "SOPInstanceUID": 0x00080018,
    "SOPClassUID": 0x00080016,
    "AccessionNumber": 0x00080050,
    "IssuerOfAccessionNumber": 0x00080051,
    "StudyID": 0x00200010,
    "InstanceAvailability": 0x00080056,
    "ModalitiesInStudy": 0x00080061,
    "Modality": 0x00080060,
    "AdmissionID": 0x00380010,
    "StudyDate": 0x00080020,
    "StudyTime": 0x00080030,
    "SeriesDate": 0x00080021,
    "SeriesTime": 0x00080031,
    "AcquisitionDate": 0x00080022,
    "AcquisitionTime": 0x00080032,
    "ContentDate": 0x00080023,
    "ContentTime": 0x00080033,
    "AcquisitionDateTime": 0x0008002A,
    "TimezoneOffsetFromUTC": 0x00080201,
    "ReferringPhysicianName": 0x00080090,
    "NameOfPhysiciansReadingStudy": 0x00081060,
    "PerformingPhysicianName": 0x00081050,
    "OperatorsName": 0x00081070,
    "RetrieveURL": 0x00081190,
    "NumberOfStudyRelatedSeries": 0x00201206,
    "NumberOfStudyRelatedInstances": 0x00201208,
    "NumberOfSeriesRelatedInstances": 0x00201209,
    "ProcedureCodeValue": 0x00081032,
    "InstitutionName": 0x00080080,
    "InstitutionalDepartmentName": 0x00081040,
    "PerformedLocation": 0x00400243,
    "ReasonForTheRequestedProcedure": 0x00400275,
    "StudyDescription": 0x00081030,
    "SeriesNumber": 0x00200011,
    "SeriesDescription": 0x0008103E,
    "BodyPartExamined": 0x00180015,
    "AnatomicRegionCodeValue": 0x00082218,
    "Laterality": 0x00200060,
    "ImageLaterality": 0x00200062,
    "FrameLaterality": 0x00209072,
    "SpecimenIdentifier": 0x00400560,
    "InstanceNumber": 0x00200013,
    "ImageType": 0x00080008,
    "ConceptNameCodeMeaning": 0x0040A043,
    "DocumentTitle": 0x00420010,
    "ContentLabel": 0x00700080,
    "NumberOfFrames": 0x00280008,
    "PatientID": 0x00100020,
    "IssuerOfPatientID": 0x00100021,
    "IssuerOfPatientIDUniversalID": 0x00100024,
    "PatientName": 0x00100010,
    "PatientSex": 0x00100040,
    "PatientBirthDate": 0x00100030,
    "PatientAddress": 0x00101040,
    "PatientTelephoneNumbers": 0x00102154,
    "PatientIdentityRemoved": 0x00120062,
    "DeidentificationMethod": 0x00120063,
    "PatientWeight": 0x00101030,
    "PatientSize": 0x00101020,
    "PatientAge": 0x00101010,
    "PatientSpeciesDescription": 0x00102201,
    "PatientSpeciesCodeValue": 0x00102202,
    "DeviceSerialNumber": 0x00181000,
    "DeviceUID": 0x00181002,
    "Manufacturer": 0x00080070,
    "ManufacturerModelName": 0x00081090,
    "SoftwareVersions": 0x00181020,
    "StationName": 0x00081010,
}


@pytest.mark.parametrize("column", catalogue(), ids=lambda column: column.name)
def test_a_column_resolves_to_tags_of_the_standard(column: Column) -> None:
    assert all(keyword_for_tag(tag) for tag in column.path + column.alternative_path)
    assert keyword_for_tag(column.path[-1]) == column.keyword


def test_each_line_of_the_file_is_a_column_with_a_use() -> None:
    text = resources.files("dicom_etl.headers").joinpath("catalogue.csv").read_text(encoding="utf-8")
    lines = list(csv.DictReader(text.splitlines()))
    assert [line["column"] for line in lines] == [column.name for column in catalogue()]
    assert all(line["used_for"].strip() for line in lines)


def test_names_are_unique() -> None:
    assert [name for name, count in Counter(column.name for column in catalogue()).items() if count > 1] == []


def test_paths_are_unique() -> None:
    assert [path for path, count in Counter(column.path for column in catalogue()).items() if count > 1] == []


def test_names_are_keywords_and_differ_from_location_columns() -> None:
    assert [c.name for c in catalogue() if not (c.name.isascii() and c.name.isalnum())] == []
    assert Counter(header_table().schema.names).most_common(1)[0][1] == 1


def test_levels_are_the_four_of_dicom() -> None:
    assert {column.level for column in catalogue()} == {"patient", "study", "series", "instance"}


@pytest.mark.parametrize("name", MAPPED)
def test_a_tag_of_the_mapping_has_a_column(name: str) -> None:
    assert columns_by_name()[name].tag == MAPPED[name]


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("IssuerOfAccessionNumber", ["IssuerOfAccessionNumberSequence", "LocalNamespaceEntityID"]),
        ("IssuerOfPatientIDUniversalIDType", ["IssuerOfPatientIDQualifiersSequence", "UniversalEntityIDType"]),
        ("ProcedureCodeSchemeDesignator", ["ProcedureCodeSequence", "CodingSchemeDesignator"]),
        ("ProcedureLongCodeValue", ["ProcedureCodeSequence", "LongCodeValue"]),
        ("ProcedureURNCodeValue", ["ProcedureCodeSequence", "URNCodeValue"]),
        ("AnatomicRegionCodeMeaning", ["AnatomicRegionSequence", "CodeMeaning"]),
    ],
)
def test_a_path_may_lead_into_the_item_of_a_sequence(name: str, keywords: list[str]) -> None:
    assert [keyword_for_tag(tag) for tag in columns_by_name()[name].path] == keywords


@pytest.mark.parametrize(
    ("name", "arrow_type"),
    [
        ("PatientName", pa.string()),
        ("StudyDate", pa.date32()),
        ("StudyTime", pa.string()),
        ("AcquisitionDateTime", pa.string()),
        ("PatientAge", pa.string()),
        ("SeriesNumber", pa.int64()),
        ("Rows", pa.int64()),
        ("SliceThickness", pa.float64()),
        ("CTDIvol", pa.float64()),
        ("PixelSpacing", pa.list_(pa.float64())),
        ("WindowCenter", pa.list_(pa.float64())),
        ("ImageType", pa.string()),
    ],
)
def test_a_column_has_the_type_of_its_values(name: str, arrow_type: pa.DataType) -> None:
    assert header_table().schema.field(name).type == arrow_type
