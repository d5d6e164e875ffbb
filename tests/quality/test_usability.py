"""Dummies belong to their tags."""

import datetime

import pyarrow as pa
import pytest

from dicom_etl.quality.value_states import DUMMY, NO_VALUE, USABLE, value_state, watched

BORN = datetime.date


@pytest.mark.parametrize(
    ("column", "value", "state"),
    [
        ("PatientName", "ANONYMOUS", DUMMY),
        ("PatientName", "anonymous^", DUMMY),
        ("PatientName", "^", DUMMY),
        ("PatientName", "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎", USABLE),
        ("PatientName", "Müller^Grete", USABLE),
        ("PatientName", None, NO_VALUE),
        ("PatientID", "00000000", DUMMY),
        ("PatientID", "N/A", DUMMY),
        ("PatientID", "12345678", USABLE),
        ("StudyID", "0", USABLE),
        ("StudyDescription", "ANONYMOUS", DUMMY),
        ("SequenceVariant", "NONE", USABLE),
        ("ContrastBolusAgent", "NONE", USABLE),
        ("BodyPartExamined", "UNKNOWN", DUMMY),
    ],
)
def test_texts(column: str, value: str | None, state: int) -> None:
    assert value_state(pa.chunked_array([pa.array([value], pa.string())]), column).tolist() == [state]


@pytest.mark.parametrize(
    ("column", "value", "state"),
    [
        ("StudyDate", BORN(1900, 1, 1), DUMMY),
        ("PatientBirthDate", BORN(1, 1, 1), DUMMY),
        ("PatientBirthDate", BORN(1966, 3, 12), USABLE),
        ("StudyDate", BORN(1990, 1, 1), USABLE),  # a date that stands for all is judged over all
    ],
)
def test_dates(column: str, value: BORN, state: int) -> None:
    assert value_state(pa.chunked_array([pa.array([value], pa.date32())]), column).tolist() == [state]


def test_file_meta_and_elements_inside_sequences_are_not_watched() -> None:
    names = {column.name for column in watched()}
    assert "TransferSyntaxUID" not in names
    assert "ProcedureCodeMeaning" not in names
    assert {"PatientName", "EchoTime", "AnatomicRegionCodeValue"} <= names


def test_packed_places_do_not_overlap() -> None:
    places = [(column.word, column.shift) for column in watched()]
    assert len(set(places)) == len(places)
    assert max(shift for _, shift in places) <= 60
