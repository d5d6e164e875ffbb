"""Resources made from header rows are valid for HAPI ($validate, strict parser)."""

import datetime

import pytest

from dicom_etl import to_imaging_studies
from dicom_etl.fhir.imaging_study import make_imaging_study
from dicom_etl.settings import FhirSettings, Settings
from tests.servers.hapi_server import validate
from tests.support.datasets import write_instance
from tests.support.header_rows import CONTEXT, header_rows, new_findings

INSTANCE = {
    "StudyInstanceUID": "1.2.3",
    "SeriesInstanceUID": "1.2.3.4",
    "SOPInstanceUID": "1.2.3.4.5",
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
    "Modality": "MR",
}
NEW_YEAR = datetime.date(2017, 1, 1)


@pytest.mark.parametrize(
    ("row", "started"),
    [
        (
            {"StudyDate": NEW_YEAR, "StudyTime": "005960.25", "TimezoneOffsetFromUTC": "+0100"},
            "2017-01-01T00:59:60.25+01:00",
        ),
        ({"AcquisitionDateTime": "201701", "ImageType": "ORIGINAL\\PRIMARY"}, "2017-01"),
        ({"AcquisitionDateTime": "2017", "ImageType": "ORIGINAL\\PRIMARY"}, "2017"),
        (
            {"StudyDate": NEW_YEAR, "StudyTime": "101530.123456", "TimezoneOffsetFromUTC": "-0330"},
            "2017-01-01T10:15:30.123456-03:30",
        ),
    ],
)
def test_started_is_valid(hapi, row, started):
    rows = header_rows(row, **INSTANCE)
    resource = make_imaging_study("s1", "p1", rows, CONTEXT, new_findings())
    assert resource is not None
    assert resource["started"] == started
    assert validate(hapi.base_url, resource) == []


@pytest.mark.parametrize(("version", "server"), [("R4", "hapi"), ("R5", "hapi_r5")])
def test_a_study_that_contains_its_patient_is_valid(request, tmp_path, version, server):
    # a contained resource has no meta.security (dom-5): the study has the label
    write_instance(tmp_path / "1.dcm", PatientIdentityRemoved="YES", AccessionNumber="A-1", Laterality="L")
    settings = Settings(engine="serial", fhir=FhirSettings(version=version))
    (study,) = to_imaging_studies(tmp_path, contained=True, settings=settings)
    assert study["meta"]["security"][0]["code"] == "PSEUDED"
    assert validate(request.getfixturevalue(server).base_url, study) == []
