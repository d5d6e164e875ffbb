"""Reading the corrections file, and refusing it if it is not valid."""

from pathlib import Path

import pytest

from dicom_etl.fhir.corrections import CORRECTABLE, read_corrections
from dicom_etl.headers.catalogue import columns_by_name
from dicom_etl.settings import SettingsError

HEADER = "dataset,subject,sample,study,series,tag,value,reason\n"


def written(folder: Path, text: str) -> str:
    path = folder / "corrections.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_without_a_file_there_are_no_corrections() -> None:
    assert read_corrections(None) == []


def test_an_empty_location_cell_matches_any_value(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + "ds,sub-1,,,,Laterality,L,seen by Dr. Roe\nds,,,,1.2.3,StudyDate,,\n")
    first, second = read_corrections(path)
    assert first[:8] == ("ds", "sub-1", None, None, None, "Laterality", "L", "seen by Dr. Roe")
    assert second[:7] == ("ds", None, None, None, "1.2.3", "StudyDate", None)
    assert (first.line, second.line) == ("line 2", "line 3")
    assert first.matches(("sub-1", "sam-4", "1", "1.1"))
    assert not first.matches(("sub-2", "sam-4", "1", "1.1"))


def test_location_columns_are_optional(tmp_path: Path) -> None:
    (line,) = read_corrections(written(tmp_path, "dataset,tag,value\nds,Modality,CT\n"))
    assert (line.subject, line.series, line.value) == (None, None, "CT")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("dataset,tag\n", "lacks the column value"),
        ("dataset,tag,value,patient\n", "has the column patient; there are dataset, reason"),
        ("dataset,tag,value,why\n", "corrections.csv: column why is now reason"),
        (HEADER + ",,,,,Laterality,L,\n", "line 2 .* has no dataset"),
        (HEADER + "ds,,,,,PatientID,7,\n", "PatientID cannot be corrected; these tags can be: Modality, BodyPart"),
        (HEADER + "ds,,,,,,L,\n", "it has no tag"),
        (HEADER + "ds,,,,,Laterality,left,\n", "line 2 .*: left is not a valid value of Laterality"),
        (HEADER + "ds,,,,,Laterality,L,\nds,,,,,StudyDate,2024-02-30,\n", "line 3 .*: 2024-02-30 is not a valid value"),
        (HEADER + "ds,,,,,StudyTime,noon,\n", "noon is not a valid value of StudyTime"),
    ],
)
def test_an_invalid_line_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        read_corrections(written(tmp_path, text))


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_corrections(str(tmp_path / "none.csv"))
    (tmp_path / "latin.csv").write_bytes(b"dataset,tag,value\nds,StudyDescription,M\xfcller\n")
    with pytest.raises(SettingsError, match="UTF-8"):
        read_corrections(str(tmp_path / "latin.csv"))


def test_correctable_tags_are_columns_of_the_header_table() -> None:
    named = {*CORRECTABLE, *(column for entry in CORRECTABLE.values() for column in entry.removed_columns)}
    assert named <= columns_by_name().keys()
