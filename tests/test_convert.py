"""A folder of DICOM files as ImagingStudy resources, by the function and by the command.

Much of this is what the best known converter of single directories, dicom2fhir 0.1.25, does wrong: studies merged,
duplicates and empty values that raise, negative numbers passed on, offsets and name components lost.
"""

import json
import subprocess
import sys

import pytest

import dicom_etl
from dicom_etl.convert import convert
from dicom_etl.settings import Settings
from dicom_etl.sources import SourceError
from tests.support.datasets import header, uid, write_instance

BERLIN = Settings(engine="serial", time_zone="Europe/Berlin")


def codes(converted):
    return sorted(finding.code for finding in converted.findings)


def only(studies):
    (study,) = studies
    return study


def test_two_studies_in_one_folder_are_two_resources(tmp_path):
    write_instance(tmp_path / "1.dcm", study="a", series="a", PatientID="P-1")
    write_instance(tmp_path / "2.dcm", study="b", series="b", PatientID="P-2")
    converted = convert(tmp_path)
    assert {study["identifier"][0]["value"] for study in converted.studies} == {
        f"urn:oid:{uid('a')}",
        f"urn:oid:{uid('b')}",
    }
    assert {patient["identifier"][0]["value"] for patient in converted.patients} == {"P-1", "P-2"}
    assert len({study["subject"]["reference"] for study in converted.studies}) == 2


def test_one_study_in_several_folders_is_one_resource(tmp_path):
    for path in ("sub-1/a.dcm", "sub-2/b.dcm", "primary/sub-3/c.dcm", "source/d"):
        write_instance(tmp_path / path)
    assert only(dicom_etl.to_imaging_studies(tmp_path))["numberOfInstances"] == 4


def test_duplicate_instances_are_counted_once(tmp_path):
    write_instance(tmp_path / "1.dcm", instance="x")
    write_instance(tmp_path / "2.dcm", instance="x")
    converted = convert(tmp_path)
    assert only(converted.studies)["numberOfInstances"] == 1
    assert "duplicate-identical" in codes(converted)


@pytest.mark.parametrize("modality", ["", None])
def test_a_series_without_a_modality_is_omitted_with_a_finding(tmp_path, modality):
    write_instance(tmp_path / "1.dcm", series="a", Modality=modality)
    write_instance(tmp_path / "2.dcm", series="b")
    converted = convert(tmp_path)
    assert [series["uid"] for series in only(converted.studies)["series"]] == [uid("b")]
    assert "instance-excluded" in codes(converted)


def test_negative_numbers_are_omitted_with_a_finding(tmp_path):
    write_instance(tmp_path / "1.dcm", SeriesNumber=-3, InstanceNumber=-1)
    converted = convert(tmp_path)
    series = only(only(converted.studies)["series"])
    assert "number" not in series
    assert "number" not in series["instance"][0]
    assert codes(converted).count("value-omitted") == 2


def test_the_offset_of_the_header_takes_precedence(tmp_path):
    write_instance(tmp_path / "1.dcm", TimezoneOffsetFromUTC="-0500")
    assert only(convert(tmp_path, settings=BERLIN).studies)["started"] == "2024-01-05T10:15:00-05:00"


def test_without_an_offset_the_time_zone_of_the_settings_is_used(tmp_path):
    write_instance(tmp_path / "1.dcm")
    assert only(convert(tmp_path, settings=BERLIN).studies)["started"] == "2024-01-05T10:15:00+01:00"


def test_all_components_of_a_name_are_kept(tmp_path):
    name = "Adams^John Robert Quincy^^Rev.^B.A. M.Div."
    write_instance(tmp_path / "1.dcm", PatientName=name)
    assert only(convert(tmp_path).patients)["name"] == [
        {
            "use": "usual",
            "family": "Adams",
            "given": ["John", "Robert", "Quincy"],
            "prefix": ["Rev."],
            "suffix": ["B.A.", "M.Div."],
        }
    ]


def test_a_procedure_code_has_the_uri_of_its_scheme(tmp_path):
    code = {"CodeValue": "RPID16", "CodingSchemeDesignator": "RADLEX", "CodeMeaning": "CT Chest"}
    write_instance(tmp_path / "1.dcm", ProcedureCodeSequence=[code])
    assert only(convert(tmp_path).studies)["procedureCode"] == [
        {"coding": [{"system": "http://radlex.org", "code": "RPID16", "display": "CT Chest"}]}
    ]


def test_two_runs_give_the_same_resources(tmp_path):
    write_instance(tmp_path / "1.dcm", Manufacturer="ACME", ManufacturerModelName="Scan 1")
    first, second = convert(tmp_path), convert(tmp_path)
    assert first == second
    assert {resource["resourceType"] for resource in first.studies + first.patients} == {"ImagingStudy", "Patient"}


def test_each_study_can_contain_its_patient(tmp_path):
    write_instance(tmp_path / "1.dcm", study="a", series="a")
    write_instance(tmp_path / "2.dcm", study="b", series="b")
    converted = convert(tmp_path, contained=True)
    assert converted.patients == []
    for study in converted.studies:
        assert study["subject"] == {"reference": "#patient"}
        patient = only(study["contained"])
        assert (patient["resourceType"], patient["id"], patient["gender"]) == ("Patient", "patient", "female")
        assert "meta" not in patient


def test_studies_do_not_refer_to_a_folder_or_dataset(tmp_path):
    write_instance(tmp_path / "1.dcm")
    study = only(convert(tmp_path).studies)
    assert "endpoint" not in study
    assert [identifier["system"] for identifier in study["identifier"]] == ["urn:dicom:uid"]


def test_a_damaged_file_is_a_finding_and_affects_no_other(tmp_path):
    write_instance(tmp_path / "1.dcm")
    (tmp_path / "2.dcm").write_bytes((tmp_path / "1.dcm").read_bytes()[:400])
    converted = convert(tmp_path)
    assert only(converted.studies)["numberOfInstances"] == 1
    assert [(f.path, f.severity) for f in converted.findings if f.code == "header-truncated"] == [("2.dcm", "error")]


def test_a_study_of_two_patients_is_held(tmp_path):
    write_instance(tmp_path / "1.dcm", PatientID="P-1")
    write_instance(tmp_path / "2.dcm", PatientID="P-2")
    converted = convert(tmp_path)
    assert converted.studies == []
    assert "study-two-patients" in codes(converted)


def test_a_missing_or_empty_folder_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        convert(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="no file"):
        convert(tmp_path)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "dicom_etl.cli", "convert", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
    )


def test_the_command_prints_one_resource_per_line(tmp_path):
    write_instance(tmp_path / "in/1.dcm", study="a", series="a")
    write_instance(tmp_path / "in/2.dcm", study="b", series="b")
    done = command(tmp_path / "in", "--time-zone", "Europe/Berlin")
    assert done.returncode == 0, done.stderr
    resources = [json.loads(line) for line in done.stdout.splitlines()]
    assert [resource["resourceType"] for resource in resources] == ["Patient", "ImagingStudy", "ImagingStudy"]
    assert {resource.get("started") for resource in resources[1:]} == {"2024-01-05T10:15:00+01:00"}
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["1.dcm", "2.dcm"]


def test_the_command_has_an_option_for_r5(tmp_path):
    write_instance(tmp_path / "in/1.dcm", AccessionNumber="A-1")
    done = command(tmp_path / "in", "--fhir-version", "R5")
    assert done.returncode == 0, done.stderr
    study = json.loads(done.stdout.splitlines()[-1])
    assert study["basedOn"][0]["identifier"]["value"] == "A-1"
    assert "coding" in study["modality"][0]
    done = command(tmp_path / "in", "--fhir-version", "R9")
    assert done.returncode == 2
    assert "'R4' or 'R5'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_has_a_strict_mode(tmp_path):
    write_instance(tmp_path / "in/1.dcm", SeriesNumber=-3)
    assert len(command(tmp_path / "in").stdout.splitlines()) == 2
    done = command(tmp_path / "in", "--strict")
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 1)
    assert "study-held" in done.stderr


def test_the_command_reports_omitted_values(tmp_path):
    write_instance(tmp_path / "1.dcm")
    (tmp_path / "2.dcm").write_bytes((tmp_path / "1.dcm").read_bytes()[:400])
    done = command(tmp_path, "--contained")
    assert done.returncode == 1
    assert "header-truncated" in done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert header().PatientName.family_name not in done.stderr
