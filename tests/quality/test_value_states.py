"""Usable values and placeholders, which belong to their tags."""

import datetime

import pyarrow as pa
import pytest

from dicom_etl.quality.value_states import NO_VALUE, PLACEHOLDER, USABLE, find_value_states, value_columns

Date = datetime.date


@pytest.mark.parametrize(
    ("column", "value", "state"),
    [
        ("PatientName", "ANONYMOUS", PLACEHOLDER),
        ("PatientName", "anonymous^", PLACEHOLDER),
        ("PatientName", "^", PLACEHOLDER),
        ("PatientName", "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎", USABLE),
        ("PatientName", "Müller^Grete", USABLE),
        ("PatientName", None, NO_VALUE),
        ("PatientID", "00000000", PLACEHOLDER),
        ("PatientID", "N/A", PLACEHOLDER),
        ("PatientID", "12345678", USABLE),
        ("StudyID", "0", USABLE),
        ("StudyDescription", "ANONYMOUS", PLACEHOLDER),
        ("SequenceVariant", "NONE", USABLE),
        ("ContrastBolusAgent", "NONE", USABLE),
        ("BodyPartExamined", "UNKNOWN", PLACEHOLDER),
    ],
)
def test_texts(column: str, value: str | None, state: int) -> None:
    assert find_value_states(pa.chunked_array([pa.array([value], pa.string())]), column).tolist() == [state]


@pytest.mark.parametrize(
    ("column", "value", "state"),
    [
        ("StudyDate", Date(1900, 1, 1), PLACEHOLDER),
        ("PatientBirthDate", Date(1, 1, 1), PLACEHOLDER),
        ("PatientBirthDate", Date(1966, 3, 12), USABLE),
        ("StudyDate", Date(1990, 1, 1), USABLE),  # one date in all studies is not a placeholder here
    ],
)
def test_dates(column: str, value: Date, state: int) -> None:
    assert find_value_states(pa.chunked_array([pa.array([value], pa.date32())]), column).tolist() == [state]


def test_file_meta_and_elements_inside_sequences_are_not_value_columns() -> None:
    names = {column.name for column in value_columns()}
    assert "TransferSyntaxUID" not in names
    assert "ProcedureCodeMeaning" not in names
    assert {"PatientName", "EchoTime", "AnatomicRegionCodeValue"} <= names


def test_packed_states_do_not_overlap() -> None:
    positions = [(column.word, column.shift) for column in value_columns()]
    assert len(set(positions)) == len(positions)
    assert max(shift for _, shift in positions) <= 60
