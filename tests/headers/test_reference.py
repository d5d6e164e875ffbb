"""The reference reader: which files give a row, why others give none, and no wrong rows from damaged files."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dicom_etl.headers import reference
from dicom_etl.headers.reference import read_header
from dicom_etl.headers.row import NoRowError
from tests.headers.dicom_bytes import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG,
    MR_IMAGE,
    TEXT_SR,
    UNDEFINED,
    element,
    instance,
    item,
    part10,
    problems,
    pydicom_files,
    read,
    refused,
    sequence,
    uids,
    values,
)

PIXELS = element("PixelData", bytes(range(64)), "OW")
FRAGMENTS = sequence("PixelData", item(), item(bytes(40)), item(bytes(24)), defined=False, vr="OB")
BODY = [
    sequence("ProcedureCodeSequence", item(element("CodeValue", b"T1"), defined=False), defined=False),
    element("StudyDescription", b"MR Mamma"),
    element("PatientName", b"Doe^Jane"),
    element("StudyID", b"1"),
    element("Rows", struct.pack("<H", 8)),
]


def pydicom_content(name: str) -> bytes:
    return next(path for path in pydicom_files() if path.name == name).read_bytes()


class TestNoInstance:
    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            ("1.dcm", b"", ("unreadable", "file-empty")),
            ("IM0001", b"", ("unreadable", "file-empty")),
            ("notes.txt", b"", ("other", "non-dicom-file")),
            ("notes.txt", b"The patient was asked to hold her breath.", ("other", "non-dicom-file")),
            ("notes.dcm", b"The patient was asked to hold her breath.", ("other", "file-not-dicom")),
            ("notes.IMA", b"The patient was asked to hold her breath.", ("other", "file-not-dicom")),
            ("notes", b"The patient was asked to hold her breath.", ("other", "non-dicom-file")),
            ("1.dcm", bytes(1000), ("other", "file-not-dicom")),
            ("1.dcm", b"\x08\x00", ("other", "file-not-dicom")),
            ("._1.dcm", b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ", ("other", "file-not-dicom")),
            ("a.zip", b"PK\x03\x04" + bytes(200), ("other", "non-dicom-file")),
            ("1.dcm", b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100", ("other", "file-not-dicom")),
            ("1.dcm", bytes(128) + b"DICM", ("unreadable", "header-truncated")),
            ("1.dcm", bytes(128) + b"DICMjunk that is no element at all", ("unreadable", None)),
        ],
    )
    def test_a_file_that_is_not_dicom_gives_no_row(
        self, name: str, content: bytes, expected: tuple[str, str | None]
    ) -> None:
        kind, code = refused(content, name)
        assert (kind, code if expected[1] else None) == expected

    @pytest.mark.parametrize("name", ["DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-implicit", "DICOMDIR-nopatient"])
    def test_a_dicomdir_gives_no_row(self, name: str) -> None:
        assert refused(pydicom_content(name), name) == ("dicomdir", "dicomdir")

    @pytest.mark.parametrize(
        ("present", "absent"),
        [("SOPClassUID", "SOPInstanceUID"), ("SOPInstanceUID", "SOPClassUID")],
    )
    @pytest.mark.parametrize("blank", [True, False])
    def test_without_sop_class_or_instance_there_is_no_row(self, present: str, absent: str, blank: bool) -> None:
        elements = sorted([element(present, b"1.2.3")] + [element(absent, b"")] * blank)
        content = part10(b"".join(elements) + element("StudyInstanceUID", b"1.2"))
        assert refused(content) == ("unreadable", "required-uid-missing")

    def test_the_message_names_the_uid_that_is_missing(self) -> None:
        with pytest.raises(NoRowError) as caught:
            read(part10(element("SOPClassUID", b"1.2.3") + element("StudyInstanceUID", b"1.2")))
        assert caught.value.message == "SOPInstanceUID absent or empty"

    def test_a_study_or_series_may_be_missing(self) -> None:
        found = values(read(part10(uids()[0] + PIXELS)))
        assert found["SOPInstanceUID"] == "1.2.3"
        assert "StudyInstanceUID" not in found

    @pytest.mark.parametrize(
        ("syntax", "name"), [(IMPLICIT, "IM1"), (EXPLICIT, "1.dcm"), (EXPLICIT, "scan"), (BIG_ENDIAN, "1.dcm")]
    )
    def test_a_file_without_preamble_is_read(self, syntax: str, name: str) -> None:
        charset = element("SpecificCharacterSet", b"ISO_IR 100", syntax=syntax)
        content = charset + b"".join(uids(syntax)) + element("Rows", b"\1\1", syntax=syntax)
        assert values(read(content, name))["Rows"] == 257

    def test_a_file_with_meta_information_and_no_preamble_is_read(self) -> None:
        assert values(read(instance(*BODY)[132:]))["StudyID"] == "1"

    def test_a_deflated_file_is_read(self) -> None:
        plain = b"".join(uids()) + b"".join(BODY)
        squeezed = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        content = part10(squeezed.compress(plain) + squeezed.flush(), DEFLATED)
        found = values(read(content))
        assert (found["StudyDescription"], found["Rows"]) == ("MR Mamma", 8)

    def test_a_sequence_of_unknown_vr_is_read(self) -> None:
        coded = sequence(
            "ProcedureCodeSequence",
            item(element("CodeValue", b"T1", syntax=IMPLICIT), defined=False),
            defined=False,
            vr="UN",
        )
        assert values(read(instance(coded)))["ProcedureCodeValue"] == "T1"

    def test_the_first_of_several_items_is_used(self) -> None:
        coded = sequence("ProcedureCodeSequence", item(element("CodeValue", b"T1")), item(element("CodeValue", b"T2")))
        assert values(read(instance(coded)))["ProcedureCodeValue"] == "T1"


def shared_groups(*groups: bytes) -> bytes:
    return sequence("SharedFunctionalGroupsSequence", item(b"".join(groups)))


class TestFunctionalGroups:
    def test_shared_functional_groups_fill_the_columns_of_plain_images(self) -> None:
        measures = element("SliceThickness", b"2.5") + element("PixelSpacing", b"0.5\\0.25")
        anatomy = sequence("AnatomicRegionSequence", item(element("CodeValue", b"76752008"))) + element(
            "FrameLaterality", b"R"
        )
        timing = element("RepetitionTime", b"450") + element("FlipAngle", b"0")
        content = instance(
            shared_groups(
                sequence("MRTimingAndRelatedParametersSequence", item(timing)),
                sequence("MREchoSequence", item(element("EffectiveEchoTime", struct.pack("<d", 8.5)))),
                sequence("FrameAnatomySequence", item(anatomy)),
                sequence("PlaneOrientationSequence", item(element("ImageOrientationPatient", b"1\\0\\0\\0\\1\\0"))),
                sequence("PixelMeasuresSequence", item(measures)),
            )
        )
        found = values(read(content))
        assert (found["SliceThickness"], found["PixelSpacing"]) == (2.5, [0.5, 0.25])
        assert (found["AnatomicRegionCodeValue"], found["FrameLaterality"]) == ("76752008", "R")
        assert (found["RepetitionTime"], found["FlipAngle"], found["EchoTime"]) == (450.0, 0.0, 8.5)
        assert found["ImageOrientationPatient"] == [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]

    def test_a_top_level_value_takes_precedence(self) -> None:
        shared = shared_groups(sequence("PixelMeasuresSequence", item(element("SliceThickness", b"2.5"))))
        assert values(read(instance(element("SliceThickness", b"1") + shared)))["SliceThickness"] == 1.0

    def test_an_unusable_top_level_value_is_not_replaced(self) -> None:
        shared = shared_groups(sequence("PixelMeasuresSequence", item(element("SliceThickness", b"2.5"))))
        header = read(instance(element("SliceThickness", b"thin") + shared))
        assert "SliceThickness" not in values(header)
        assert problems(header) == [("SliceThickness", "value-invalid", "thin")]


def truncate_everywhere(content: bytes) -> dict[int, Any]:
    """For every length shorter than the file: the header, or the kind of a file that gives no row."""
    found: dict[int, Any] = {}
    for length in range(len(content)):
        try:
            found[length] = read_header(io.BytesIO(content[:length]), "1.dcm", length)
        except NoRowError as why:
            found[length] = why.kind
    return found


WHOLE: dict[str, Callable[[], bytes]] = {
    "explicit": lambda: instance(*BODY, PIXELS),
    "sequence last": lambda: instance(*BODY[2:], shared_groups(BODY[0]), BODY[0], PIXELS),
    "implicit": lambda: instance(
        sequence("ProcedureCodeSequence", item(defined=False), defined=False, syntax=IMPLICIT),
        element("StudyDescription", b"MR Mamma", syntax=IMPLICIT),
        element("Rows", b"\1\1", syntax=IMPLICIT),
        element("PixelData", bytes(64), "OW", syntax=IMPLICIT),
        syntax=IMPLICIT,
    ),
    "big endian": lambda: instance(
        sequence("ProcedureCodeSequence", item(defined=False, order=">"), defined=False, syntax=BIG_ENDIAN),
        element("Rows", b"\1\1", syntax=BIG_ENDIAN),
        element("PixelData", bytes(64), "OW", syntax=BIG_ENDIAN),
        syntax=BIG_ENDIAN,
    ),
    "encapsulated": lambda: instance(*BODY, FRAGMENTS, syntax=JPEG),
    "MR_small_RLE.dcm": lambda: pydicom_content("MR_small_RLE.dcm")[:2200],
}


class TestTruncatedFiles:
    @pytest.mark.parametrize("whole", WHOLE)
    def test_a_truncated_image_is_flagged_or_gives_no_row(self, whole: str) -> None:
        silent = [
            length
            for length, found in truncate_everywhere(WHOLE[whole]()).items()
            if not isinstance(found, str) and not found.pixel_data_truncated and not found.pixel_data_absent
        ]
        assert silent == []

    @pytest.mark.parametrize("whole", [name for name in WHOLE if name != "MR_small_RLE.dcm"])
    def test_a_file_truncated_in_its_pixel_data_has_the_whole_header(self, whole: str) -> None:
        content = WHOLE[whole]()
        header = read(content)
        assert not header.pixel_data_truncated
        rows = [found for found in truncate_everywhere(content).values() if not isinstance(found, str)]
        cut = [row for row in rows if row.pixel_data_truncated]
        assert len(cut) >= 64
        assert {(found.values, found.tag_profile) for found in cut} == {(header.values, header.tag_profile)}

    def test_a_truncated_image_never_has_a_wrong_value(self) -> None:
        content = instance(*BODY, PIXELS)
        whole = values(read(content))
        rows = [found for found in truncate_everywhere(content).values() if not isinstance(found, str)]
        assert rows
        assert [row for row in rows if not values(row).items() <= whole.items()] == []

    def test_a_truncated_deflated_file_gives_no_row(self) -> None:
        squeezed = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        content = part10(squeezed.compress(b"".join(uids()) + b"".join(BODY)) + squeezed.flush(), DEFLATED)
        assert set(truncate_everywhere(content).values()) == {"other", "unreadable"}

    def test_a_report_truncated_between_two_elements_is_not_detected(self) -> None:
        # such a file does not show that there was more; missing Type 1 elements are measured as quality
        parts = [*uids(sop_class=TEXT_SR), element("StudyID", b"1"), BODY[0]]
        content = part10(b"".join(parts), sop_class=TEXT_SR)
        ends = {len(part10(b"".join(parts[:count]), sop_class=TEXT_SR)) for count in range(1, 4)}
        inner = len(part10(uids(sop_class=TEXT_SR)[0], sop_class=TEXT_SR))
        between = {inner + len(element("StudyInstanceUID", b"1.2"))}
        assert {
            length for length, found in truncate_everywhere(content).items() if not isinstance(found, str)
        } == ends | between

    @pytest.mark.parametrize("last", [BODY[0], element("StudyID", b"1"), shared_groups(BODY[0])])
    def test_a_report_truncated_in_its_last_element_gives_no_row(self, last: bytes) -> None:
        content = instance(last, sop_class=TEXT_SR)
        assert read(content).values
        lengths = range(len(content) - len(last) + 1, len(content))
        assert {refused(content[:length]) for length in lengths} <= {
            ("unreadable", "header-truncated"),
            ("unreadable", "header-unreadable"),
        }

    def test_a_complete_image_is_not_flagged(self) -> None:
        headers = [read(instance(*BODY, pixels, syntax=s)) for pixels, s in ((PIXELS, EXPLICIT), (FRAGMENTS, JPEG))]
        assert [(header.pixel_data_truncated, header.pixel_data_absent) for header in headers] == [(False, False)] * 2

    def test_trailing_padding_after_fragments_is_no_truncation(self) -> None:
        content = instance(*BODY, FRAGMENTS, element(0xFFFCFFFC, bytes(30), "OB"), syntax=JPEG)
        assert not read(content).pixel_data_truncated

    def test_an_image_without_pixel_data_is_flagged(self) -> None:
        assert read(instance(*BODY)).pixel_data_absent

    @pytest.mark.parametrize(
        "content", [instance(*BODY, sop_class=TEXT_SR), instance(*BODY, element(0x00287FE0, b"u", "UR"))]
    )
    def test_objects_that_need_no_pixel_data_are_not_flagged(self, content: bytes) -> None:
        assert not read(content).pixel_data_absent

    def test_truncated_files_of_pydicom_are_detected(self) -> None:
        cut = []
        for path in pydicom_files():
            try:
                with path.open("rb") as file:
                    if read_header(file, path.name, path.stat().st_size).pixel_data_truncated:
                        cut.append(path.name)
            except NoRowError as why:
                if why.code == "header-truncated":
                    cut.append(path.name)
        assert cut == ["MR_truncated.dcm", "rtplan_truncated.dcm"]

    def test_a_data_set_damaged_before_its_pixel_data_gives_no_row(self) -> None:
        content = instance(*BODY, struct.pack("<HHL", 0xFFFE, 0xE00D, 0), element("SoftwareVersions", b"x"), PIXELS)
        assert refused(content) == ("unreadable", "header-unreadable")


def nested(depth: int, *, defined: bool) -> bytes:
    content = b""
    for _ in range(depth):
        content = sequence("ProcedureCodeSequence", item(content, defined=defined), defined=defined)
    return content


def many_items() -> bytes:
    return sequence("ProcedureCodeSequence", *[item(defined=False)] * 200_000, defined=False)


def bomb() -> bytes:
    squeezed = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    parts = [squeezed.compress(b"".join(uids()))]
    parts += [squeezed.compress(bytes(1 << 24)) for _ in range(66)]
    return part10(b"".join(parts) + squeezed.flush(), DEFLATED)


def undefined(tag: int, vr: str) -> bytes:
    return element(tag, b"x" * 4000, vr, length=UNDEFINED)


HOSTILE: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "deep nesting of undefined length": (
        lambda: instance(nested(20_000, defined=False)),
        {"unreadable header-unreadable"},
    ),
    "deep nesting of defined length": (lambda: instance(nested(2_000, defined=True)), {"row"}),
    "a length of four gigabytes": (
        lambda: instance(element("PatientID", b"x", "UT", length=UNDEFINED - 1)),
        {"unreadable header-truncated", "unreadable header-unreadable"},
    ),
    "a sequence of four gigabytes": (
        lambda: instance(element("ProcedureCodeSequence", item(b"x"), length=UNDEFINED - 1)),
        {"unreadable header-truncated", "unreadable header-unreadable"},
    ),
    "an item of four gigabytes": (
        lambda: instance(
            sequence("ProcedureCodeSequence", struct.pack("<HHL", 0xFFFE, 0xE000, UNDEFINED - 1), defined=False)
        ),
        {"unreadable header-truncated", "unreadable header-unreadable"},
    ),
    "a meta group of four gigabytes": (
        lambda: bytes(128) + b"DICM" + element(0x00020000, b"\xfe\xff\xff\xff", "UL") + b"".join(uids()),
        {"row", "unreadable header-truncated", "unreadable header-unreadable", "unreadable required-uid-missing"},
    ),
    "a value that never ends": (lambda: instance(undefined(0x00291010, "OB")), {"unreadable header-truncated"}),
    "an unknown value that never ends": (
        lambda: instance(undefined(0x00291010, "UN")),
        {"unreadable header-truncated", "unreadable header-unreadable"},
    ),
    "pixels that never end": (lambda: instance(PIXELS[:8] + b"\xff" * 4 + bytes(4000)), {"row"}),
    "a bomb": (bomb, {"unreadable header-unreadable"}),
    "two hundred thousand items": (lambda: instance(many_items()), {"row"}),
}


def outcome(content: bytes) -> str:
    """`row`, or the kind of a file that gives none."""
    try:
        return "row" if values(read(content))["SOPInstanceUID"] else "no identity"
    except NoRowError as why:
        return why.kind


class TestErrorsAndHostileFiles:
    def test_a_disk_error_is_not_taken_for_damage(self) -> None:
        class Failing(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if self.tell() > 300:
                    raise OSError(5, "Input/output error")
                return super().read(size)

        content = instance(*BODY, PIXELS)
        with pytest.raises(OSError, match="Input/output error"):
            read_header(Failing(content), "1.dcm", len(content))

    @pytest.mark.parametrize("case", HOSTILE)
    def test_a_hostile_file_ends_in_bounded_time_and_memory(self, tmp_path: Path, case: str) -> None:
        make, allowed = HOSTILE[case]
        (tmp_path / "hostile.dcm").write_bytes(make())
        script = Path(__file__).with_name("hostile.py")
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path / "hostile.dcm")],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
            cwd=Path(__file__).parents[2],
            env={"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert done.stdout.strip() in allowed

    def test_a_header_of_too_many_elements_gives_no_row(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reference, "MAX_READS", 500)
        many = [element(0x00211000 + number, b"", "LO") for number in range(600)]
        assert refused(instance(*many, PIXELS)) == ("unreadable", "header-unreadable")

    def test_any_changed_byte_gives_a_row_or_a_reason(self) -> None:
        content = instance(*BODY, PIXELS)
        outcomes = set()
        for place in range(128, len(content) - 64):
            for byte in (0x00, 0xFF, content[place] ^ 0x01):
                changed = content[:place] + bytes([byte]) + content[place + 1 :]
                outcomes.add(outcome(changed))
        assert outcomes == {"row", "unreadable", "other"}

    def test_results_do_not_depend_on_the_order_of_files(self) -> None:
        contents = [instance(*BODY, PIXELS), instance(*BODY, sop_class=TEXT_SR), pydicom_content("CT_small.dcm")]
        first = [read(content) for content in contents]
        again = [read(content) for content in reversed(contents)][::-1]
        assert all(one == other for one, other in zip(first, again, strict=True))
        assert all(one != other for one, other in pairwise(first))
        assert values(first[0])["SOPClassUID"] == MR_IMAGE
