"""Values: those that pydicom reads in all of its test files, and values written by hand for all other rules."""

from __future__ import annotations

import datetime
import struct
import warnings
from functools import cache
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import DA

from dicom_etl.headers.catalogue import Column, catalogue
from dicom_etl.headers.reference import Header, read_header
from dicom_etl.headers.row import NoRowError
from dicom_etl.headers.values import Decoded, Problem, decode, decode_text, find_codecs, is_empty
from tests.headers.dicom_bytes import (
    BIG_ENDIAN,
    IMPLICIT,
    element,
    instance,
    item,
    problems,
    pydicom_files,
    read,
    relative_name,
    sequence,
    values,
)

NO_ROWS = {
    "README.txt",
    "UN_sequence.dcm",
    "crayons.icc",
    "dicomdirtests/DICOMDIR",
    "dicomdirtests/DICOMDIR-bigEnd",
    "dicomdirtests/DICOMDIR-empty.dcm",
    "dicomdirtests/DICOMDIR-implicit",
    "dicomdirtests/DICOMDIR-nooffset",
    "dicomdirtests/DICOMDIR-nopatient",
    "dicomdirtests/DICOMDIR-reordered",
    "dicomdirtests/README.txt",
    "dicomdirtests/TINY_ALPHA/DICOMDIR",
    "dicomdirtests/TINY_ALPHA/README",
    "empty_charset_LEI.dcm",
    "meta_missing_tsyntax.dcm",
    "nested_priv_SQ.dcm",
    "no_meta.dcm",
    "no_meta_group_length.dcm",
    "priv_SQ.dcm",
    "rtplan.dump",
    "rtplan_truncated.dcm",
    "rtstruct.dump",
    "test1.json",
    "test_PN.json",
    "zipMR.gz",
}


@cache
def both() -> dict[str, tuple[Header, Dataset]]:
    """The header and the data set of each file of pydicom that gives a row."""
    found = {}
    for path in pydicom_files():
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            try:
                header = read_header(file, path.name, path.stat().st_size)
            except NoRowError:
                continue
            found[relative_name(path)] = header, pydicom.dcmread(path, force=True, stop_before_pixels=True)
    return found


def test_all_files_of_pydicom_with_an_instance_give_a_row() -> None:
    assert {relative_name(path) for path in pydicom_files()} - set(both()) == NO_ROWS
    assert len(both()) == 151


@pytest.mark.parametrize("column", catalogue(), ids=lambda column: column.name)
def test_a_column_equals_the_value_of_pydicom(column: Column) -> None:
    position = catalogue().index(column)
    differences = {
        name: (header.values[position], expected)
        for name, (header, dataset) in both().items()
        for expected in [by_pydicom(dataset, column)]
        if not same(header.values[position], expected)
    }
    assert differences == {}


def by_pydicom(dataset: Dataset, column: Column) -> Any:
    """The value of pydicom in the type of the column; None if it has none or cannot convert it."""
    for path in (column.path, column.alternative_path):
        raw = element_value(dataset, path) if path else None
        if raw is not None and str(raw).strip() and raw != []:
            return converted(raw, column)
    return None


def element_value(dataset: Dataset, path: tuple[int, ...]) -> Any:
    here: Any = dataset.file_meta if path[0] >> 16 == 2 else dataset
    for tag in path[:-1]:
        if tag not in here or not here[tag].value:
            return None
        here = here[tag].value[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return here[path[-1]].value if path[-1] in here else None
        except (ValueError, TypeError):
            return None


def converted(value: Any, column: Column) -> Any:
    parts = list(value) if isinstance(value, MultiValue | list | tuple) else [value]
    if column.kind == "text":
        return "\\".join(str(part).strip(" \0").rstrip("=") for part in parts)
    if column.kind == "date":
        return datetime.date.fromisoformat(DA(parts[0]).isoformat())  # type: ignore[union-attr]
    if column.kind == "numbers":
        return [float(part) for part in parts]
    if len(parts) > 1:
        return None
    try:
        return int(parts[0]) if column.kind == "integer" else float(parts[0])
    except ValueError:
        return None


def same(ours: Any, expected: Any) -> bool:
    if isinstance(ours, str) and isinstance(expected, str):
        return [part.strip() for part in ours.split("\\")] == [part.strip() for part in expected.split("\\")]
    return bool(ours == expected)


class TestText:
    @pytest.mark.parametrize(
        ("character_set", "raw", "expected"),
        [
            # PS3.5 H.3.1, H.3.2
            (
                "\\ISO 2022 IR 87",
                b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
                "Yamada^Tarou=山田^太郎=やまだ^たろう",
            ),
            (
                "ISO 2022 IR 13\\ISO 2022 IR 87",
                b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
                "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
            ),
            # 秋 (3D 29) and 春 (3D 55) contain the byte of the sign =, 几 (51 5C) that of the backslash
            ("\\ISO 2022 IR 87", b"Aki^Haru=\x1b$B=)=U\x1b(B^\x1b$BQ\\\x1b(B", "Aki^Haru=秋春^几"),
            # PS3.5 I.2
            (
                "\\ISO 2022 IR 149",
                b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
                "Hong^Gildong=洪^吉洞=홍^길동",
            ),
            # PS3.5 J.1, J.3
            ("ISO_IR 192", "Wang^XiaoDong=王^小东=".encode(), "Wang^XiaoDong=王^小东"),
            ("GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab=", "Wang^XiaoDong=王^小东"),
            ("GBK", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab", "Wang^XiaoDong=王^小东"),
            # the second byte of 誠 in GB 18030 (D5 5C) is that of the backslash
            ("GB18030", b"Cheng^\xd5\\", "Cheng^誠"),
            ("\\ISO 2022 IR 58", b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=", "Zhang^XiaoDong=张^小东"),
            ("ISO_IR 100", b"M\xfcller^Gr\xe9te", "Müller^Gréte"),
            ("ISO_IR 126", b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2", "Διονυσιος"),
            ("ISO_IR 144", b"\xbb\xee\xda\xdce\xdc\xd1\xe3\xe0\xd3", "Люкмeмбург"),
            ("ISO_IR 127", b"\xe2\xc8\xc7\xe6\xea^\xe4\xe6\xd2\xc7\xd1", "قباني^لنزار"),
            ("ISO_IR 138", b"\xf9\xf8\xe5\xef^\xe3\xe1\xe5\xf8\xe4", "שרון^דבורה"),
            ("ISO_IR 166", b"\xca\xc1\xaa\xd2\xc2", "สมชาย"),
        ],
    )
    def test_a_name_is_decoded_by_its_character_set(self, character_set: str, raw: bytes, expected: str) -> None:
        header = read(
            instance(element("PatientName", raw), early=element("SpecificCharacterSet", character_set.encode()))
        )
        assert (values(header)["PatientName"], problems(header)) == (expected, [])

    def test_a_text_of_several_values_is_split_after_it_is_decoded(self) -> None:
        encodings, _ = find_codecs("\\ISO 2022 IR 87")
        raw = b"ACME\\\x1b$BQ\\\x1b(B\\x "  # 几 is 51 5C
        assert decode_text("LO", raw, encodings) == ("ACME\\几\\x", True)

    def test_without_a_character_set_other_bytes_are_latin_text(self) -> None:
        assert values(read(instance(element("StudyDescription", b"Thorax nativ \xb1 KM"))))["StudyDescription"] == (
            "Thorax nativ ± KM"
        )

    def test_characters_outside_the_character_set_are_a_problem(self) -> None:
        header = read(
            instance(element("StudyDescription", b"M\xfcller"), early=element("SpecificCharacterSet", b"ISO_IR 192"))
        )
        assert values(header)["StudyDescription"] == "M\ufffdller"
        assert problems(header) == [("StudyDescription", "charset-error", "M\ufffdller")]

    def test_an_unknown_character_set_is_one_problem(self) -> None:
        header = read(instance(element("StudyID", b"5"), early=element("SpecificCharacterSet", b"ISO_IR 999")))
        assert problems(header) == [("SpecificCharacterSet", "charset-error", "ISO_IR 999")]
        assert values(header)["StudyID"] == "5"

    def test_an_item_may_have_a_character_set_of_its_own(self) -> None:
        coded = item(element("SpecificCharacterSet", b"ISO_IR 192") + element("CodeMeaning", "Bräst".encode()))
        content = instance(
            sequence("AnatomicRegionSequence", coded), early=element("SpecificCharacterSet", b"ISO_IR 100")
        )
        assert values(read(content))["AnatomicRegionCodeMeaning"] == "Bräst"

    def test_an_item_without_a_character_set_has_that_of_its_data_set(self) -> None:
        coded = item(element("CodeMeaning", "Bräst".encode("latin-1")))
        content = instance(
            sequence("AnatomicRegionSequence", coded), early=element("SpecificCharacterSet", b"ISO_IR 100")
        )
        assert values(read(content))["AnatomicRegionCodeMeaning"] == "Bräst"

    @pytest.mark.parametrize(
        ("raw", "expected"),
        [
            (b"Doe^Jane==", "Doe^Jane"),
            (b"Doe^Jane=  ", "Doe^Jane"),
            (b"=Yamada", "=Yamada"),
            (b"Doe^^^Dr^", "Doe^^^Dr^"),
            (b" Doe^Jane ", "Doe^Jane"),
            (b"A^B=\\C^D==", "A^B\\C^D"),
            (b"==", None),
        ],
    )
    def test_empty_component_groups_at_the_end_of_a_name_are_removed(self, raw: bytes, expected: str | None) -> None:
        assert values(read(instance(element("PatientName", raw)))).get("PatientName") == expected

    @pytest.mark.parametrize(
        ("keyword", "raw", "expected"),
        [
            ("StudyDescription", b"  MR Mamma  ", "MR Mamma"),
            ("PatientComments", b"  indented\r\nline  ", "  indented\r\nline"),
            ("ImageType", b"ORIGINAL \\ PRIMARY\\\\ M ", "ORIGINAL\\PRIMARY\\\\M"),
            ("StudyInstanceUID", b"1.2.840\0", "1.2.840"),
            ("StudyTime", b"1015", "1015"),
            ("StudyTime", b"235960.5 ", "235960.5"),
            ("RetrieveURL", b"https://pacs/a\\b  ", "https://pacs/a\\b"),
        ],
    )
    def test_only_padding_is_removed_from_a_text(self, keyword: str, raw: bytes, expected: str) -> None:
        content = instance(element(keyword, raw))
        assert values(read(content))[keyword] == expected


class TestNumbers:
    @pytest.mark.parametrize(
        ("raw", "expected"),
        [
            (b"5", 5),
            (b" -7 ", -7),
            (b"+3", 3),
            (b"0", 0),
            (b"007", 7),
            (b"5.0", 5),
            (b"1e3", 1000),
            (b"9223372036854775807", 9223372036854775807),
            (b"9223372036854775808", None),
            (b"-9223372036854775808", -9223372036854775808),
            (b"1A", None),
            (b"5.5", None),
            (b"1\\2", None),
            (b"0x10", None),
            (b"1_0", None),
            (b"1e999", None),
            (b"nan", None),
            (b"9" * 400, None),
            (b"9" * 5000, None),
            (b"\xb2", None),
        ],
    )
    def test_an_integer_string_is_a_whole_number_or_a_problem(self, raw: bytes, expected: int | None) -> None:
        decoded = decode("integer", "IS", raw, ("iso8859",))
        problem = None if expected is not None else Problem("value-invalid", raw.decode("latin-1").strip())
        assert decoded == Decoded(expected, problem)

    @pytest.mark.parametrize(
        ("raw", "expected"),
        [
            (b"1.5", 1.5),
            (b"-.5", -0.5),
            (b"5.", 5.0),
            (b"0.000000", 0.0),
            (b"1E-3 ", 0.001),
            (b"NaN", None),
            (b"inf", None),
            (b"1e999", None),
            (b"1,5", None),
            (b"1.5mm", None),
            (b"1.5\\2.5", None),
        ],
    )
    def test_a_decimal_string_is_a_finite_number_or_a_problem(self, raw: bytes, expected: float | None) -> None:
        decoded = decode("number", "DS", raw, ("iso8859",))
        problem = None if expected is not None else Problem("value-invalid", raw.decode().strip())
        assert decoded == Decoded(expected, problem)

    @pytest.mark.parametrize(
        ("raw", "expected"),
        [
            (b"0.5\\0.25", [0.5, 0.25]),
            (b" 1 \\ 2 ", [1.0, 2.0]),
            (b"40", [40.0]),
            (b"1\\\\3", None),
            (b"1\\x", None),
        ],
    )
    def test_several_decimal_strings_are_numbers_or_a_problem(self, raw: bytes, expected: list[float] | None) -> None:
        assert decode("numbers", "DS", raw, ("iso8859",)).value == expected

    @pytest.mark.parametrize(
        ("vr", "layout", "number"),
        [("US", "H", 65535), ("SS", "h", -3), ("UL", "L", 4294967295), ("SL", "l", -3), ("SV", "q", -(2**63))],
    )
    @pytest.mark.parametrize("little", [True, False])
    def test_a_binary_integer_is_read_in_its_byte_order(self, vr: str, layout: str, number: int, little: bool) -> None:
        raw = struct.pack("<>"[not little] + layout, number)
        assert decode("integer", vr, raw, ("iso8859",), little) == Decoded(number)

    @pytest.mark.parametrize(
        ("vr", "raw"),
        [
            ("US", b"\1\0\2\0"),
            ("US", b"\1\0\2"),
            ("UV", b"\xff" * 8),
            ("FL", struct.pack("<f", 1e30)),
            ("FL", struct.pack("<f", 1.5)),
            ("FL", struct.pack("<f", float("nan"))),
            ("FD", struct.pack("<d", float("inf"))),
        ],
    )
    def test_a_binary_value_other_than_a_single_integer_is_a_problem(self, vr: str, raw: bytes) -> None:
        decoded = decode("integer", vr, raw, ("iso8859",))
        assert (decoded.value, decoded.problem and decoded.problem.code) == (None, "value-invalid")

    @pytest.mark.parametrize("kind", ["number", "numbers"])
    def test_a_binary_number_that_is_not_finite_is_a_problem(self, kind: Any) -> None:
        decoded = decode(kind, "FD", struct.pack("<d", float("nan")), ("iso8859",))
        assert decoded == Decoded(None, Problem("value-invalid", "nan"))

    def test_a_binary_value_in_a_text_column_is_its_text(self) -> None:
        assert values(read(instance(element("StudyID", b"\7\0\1\0", "US"))))["StudyID"] == "7\\1"

    def test_a_number_of_another_vr_is_still_a_number(self) -> None:
        header = read(instance(element("SeriesNumber", b"\7\0", "US"), element("Rows", b"512", "IS")))
        assert (values(header)["SeriesNumber"], values(header)["Rows"]) == (7, 512)

    def test_a_value_of_unknown_vr_has_the_vr_of_the_dictionary(self) -> None:
        header = read(instance(element("SeriesNumber", b"7", "UN"), element("Rows", b"\0\2", "UN")))
        assert (values(header)["SeriesNumber"], values(header)["Rows"]) == (7, 512)

    def test_big_endian_numbers_and_texts_are_read(self) -> None:
        content = instance(
            element("Rows", struct.pack(">H", 258), syntax=BIG_ENDIAN),
            element("WindowCenter", b"40\\400", syntax=BIG_ENDIAN),
            syntax=BIG_ENDIAN,
        )
        found = values(read(content))
        assert (found["Rows"], found["WindowCenter"], found["StudyInstanceUID"]) == (258, [40.0, 400.0], "1.2")

    def test_implicit_vr_is_read_by_the_dictionary(self) -> None:
        content = instance(element("Rows", struct.pack("<H", 258), syntax=IMPLICIT), syntax=IMPLICIT)
        assert values(read(content))["Rows"] == 258


class TestDates:
    @pytest.mark.parametrize(
        ("raw", "expected"),
        [
            (b"20240229", datetime.date(2024, 2, 29)),
            (b"1997.04.24", datetime.date(1997, 4, 24)),
            (b"20230229", None),
            (b"2024", None),
            (b"202402", None),
            (b"1997.0424", None),
            (b"00000000", None),
            (b"2024-02-29", None),
            (b"20240101-20240201", None),
        ],
    )
    def test_a_date_is_a_whole_day_of_the_calendar_or_a_problem(
        self, raw: bytes, expected: datetime.date | None
    ) -> None:
        problem = None if expected else Problem("value-invalid", raw.decode())
        assert decode("date", "DA", raw, ("iso8859",)) == Decoded(expected, problem)

    def test_a_problem_names_its_column_and_the_raw_text(self) -> None:
        header = read(instance(element("StudyDate", b"20240230")))
        assert "StudyDate" not in values(header)
        assert problems(header) == [("StudyDate", "value-invalid", "20240230")]


class TestEmptiness:
    @pytest.mark.parametrize(
        ("vr", "raw", "expected"),
        [
            ("LO", b"", True),
            ("LO", b"    ", True),
            ("UI", b"\0\0", True),
            ("DS", b"0 ", False),
            ("IS", b"0", False),
            ("US", b"\0\0", False),
            ("US", b"", True),
            ("OB", b"\0\0", False),
            ("UN", b"  ", False),
            (None, b"  ", False),
            ("LO", None, True),
            ("LO", b"\\", False),
        ],
    )
    def test_blank_padding_is_empty_and_zeros_are_numbers(
        self, vr: str | None, raw: bytes | None, expected: bool
    ) -> None:
        assert is_empty(vr, raw) is expected
