"""The crosswalk file: read completely or refused."""

from pathlib import Path

import pytest

from dicom_etl.identity.crosswalk import CrosswalkEntry, read_crosswalk
from dicom_etl.settings import SettingsError

HEADER = "dataset,subject,system,value\n"


def write_crosswalk(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "crosswalk.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def refusal(tmp_path: Path, content: str | bytes) -> str:
    with pytest.raises(SettingsError) as refused:
        read_crosswalk(write_crosswalk(tmp_path, content))
    return str(refused.value).replace(str(tmp_path / "crosswalk.csv"), "FILE")


def test_without_a_file_there_are_no_entries() -> None:
    assert read_crosswalk(None) == []


def test_entries_keep_their_order(tmp_path: Path) -> None:
    path = write_crosswalk(tmp_path, HEADER + "heart,sub-2,urn:x:persons,p7\nbreast,sub-1,urn:x:persons,p7\n")
    assert read_crosswalk(path) == [
        CrosswalkEntry("heart", "sub-2", "urn:x:persons", "p7"),
        CrosswalkEntry("breast", "sub-1", "urn:x:persons", "p7"),
    ]


def test_columns_may_be_in_another_order_and_more_than_needed(tmp_path: Path) -> None:
    path = write_crosswalk(tmp_path, "note,value,system,subject,dataset\nsure,p7,urn:x:persons,sub-1,breast\n")
    assert read_crosswalk(path) == [CrosswalkEntry("breast", "sub-1", "urn:x:persons", "p7")]


def test_byte_order_mark_and_blanks_around_values_are_ignored(tmp_path: Path) -> None:
    path = write_crosswalk(tmp_path, "\ufeff" + HEADER + "breast , sub-1, urn:x:persons ,p7 \r\n")
    assert read_crosswalk(path) == [CrosswalkEntry("breast", "sub-1", "urn:x:persons", "p7")]


def test_a_file_with_only_a_header_has_no_entries(tmp_path: Path) -> None:
    assert read_crosswalk(write_crosswalk(tmp_path, HEADER)) == []


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file or directory"):
        read_crosswalk(str(tmp_path / "none.csv"))


def test_missing_columns_are_named(tmp_path: Path) -> None:
    assert refusal(tmp_path, "dataset,subject\nbreast,sub-1\n") == "the crosswalk FILE lacks the column system, value"


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, "") == "the crosswalk FILE lacks the column dataset, subject, system, value"


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ("breast,sub-1,urn:x:persons,", "value"),
        ("breast,sub-1,urn:x:persons", "value"),
        (",sub-1,urn:x:p,p7", "dataset"),
    ],
)
def test_a_line_without_a_value_is_named(tmp_path: Path, line: str, column: str) -> None:
    text = f"{HEADER}\nbreast,sub-9,urn:x:persons,p9\n{line}\n"
    assert refusal(tmp_path, text) == f"line 4 of the crosswalk FILE has no value in column {column}"


def test_a_subject_with_two_lines_is_named(tmp_path: Path) -> None:
    text = HEADER + "breast,sub-1,urn:x:persons,p7\nbreast,sub-1,urn:x:persons,p8\n"
    assert refusal(tmp_path, text) == "the crosswalk FILE has 2 lines for subject sub-1 of breast; keep one"


def test_a_system_that_is_not_a_uri_is_named(tmp_path: Path) -> None:
    text = HEADER + "breast,sub-1,our persons,p7\n"
    assert refusal(tmp_path, text) == "line 2 of the crosswalk FILE: the system our persons is not a URI"


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    content = (HEADER + "M\u00fcnchen,sub-1,urn:x:persons,p7\n").encode("latin-1")
    assert refusal(tmp_path, content) == "the crosswalk FILE is not UTF-8 text: save it as CSV UTF-8"
