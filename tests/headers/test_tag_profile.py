"""Tag profiles: which elements are present, which are filled, and the id."""

from __future__ import annotations

import struct

import pytest

from dicom_etl.headers.reference import Header
from dicom_etl.headers.tag_profile import (
    EMPTY,
    FILLED,
    Presence,
    TagProfile,
    element_code,
    pack_codes,
    tag_profile_columns,
    tag_text,
)
from dicom_etl.lake.schemas import TAG_PROFILES
from tests.headers.dicom_bytes import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    element,
    instance,
    item,
    pydicom_files,
    read,
    sequence,
)


def status(*elements: bytes, syntax: str = EXPLICIT) -> dict[int, int]:
    """The status of each tag, except those that all files of these tests have."""
    tag_profile = read(instance(*elements, syntax=syntax)).tag_profile.presences()
    return {
        tag: filled for tag, _, filled in tag_profile if tag not in {0x00080016, 0x00080018, 0x0020000D, 0x0020000E}
    }


def shipped_header(name: str) -> Header:
    content = next(path for path in pydicom_files() if path.name == name).read_bytes()
    return read(content, name)


def test_an_element_is_filled_if_it_has_a_value() -> None:
    assert status(element("StudyID", b"7"), element("PatientName")) == {0x00200010: FILLED, 0x00100010: EMPTY}


@pytest.mark.parametrize(
    ("keyword", "raw", "vr"),
    [
        ("Rows", b"\0\0", None),
        ("SliceThickness", b"0", None),
        ("SeriesNumber", b"0.000000", None),
        ("CTDIvol", bytes(8), None),
        ("ICCProfile", b"\0\0", None),
    ],
)
def test_a_zero_is_filled(keyword: str, raw: bytes, vr: str | None) -> None:
    assert list(status(element(keyword, raw, vr)).values()) == [FILLED]


@pytest.mark.parametrize(("keyword", "raw"), [("PatientID", b"    "), ("DeviceUID", b"\0\0"), ("StudyTime", b"  ")])
def test_padding_without_a_value_is_empty(keyword: str, raw: bytes) -> None:
    assert list(status(element(keyword, raw)).values()) == [EMPTY]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("defined", [True, False])
def test_a_sequence_without_items_is_empty(syntax: str, defined: bool) -> None:
    content = sequence("ProcedureCodeSequence", defined=defined, syntax=syntax)
    assert status(content, syntax=syntax) == {0x00081032: EMPTY}


@pytest.mark.parametrize("defined", [True, False])
def test_a_sequence_with_an_item_is_filled_even_if_the_item_is_empty(defined: bool) -> None:
    assert status(sequence("ProcedureCodeSequence", item(), defined=defined)) == {0x00081032: FILLED}


def test_elements_of_items_are_not_in_the_tag_profile() -> None:
    assert set(status(sequence("ProcedureCodeSequence", item(element("CodeValue", b"1")), defined=False))) == {
        0x00081032
    }


def test_blanks_of_unknown_vr_are_decided_by_the_dictionary() -> None:
    assert status(element("PatientID", b"  ", "UN"), element("Rows", b"\0\0", "UN")) == {
        0x00100020: EMPTY,
        0x00280010: FILLED,
    }


def test_implicit_and_explicit_vr_have_the_same_tag_profile() -> None:
    rows = struct.pack("<H", 5)
    explicit = instance(element("PatientID", b"  "), element("Rows", rows))
    implicit = instance(
        element("PatientID", b"  ", syntax=IMPLICIT), element("Rows", rows, syntax=IMPLICIT), syntax=IMPLICIT
    )
    assert read(explicit).tag_profile == read(implicit).tag_profile


def test_elements_are_sorted_by_tag() -> None:
    tag_profile = read(instance(element("Rows", b"\1\0"), element("PatientID", b"1"))).tag_profile.presences()
    assert [tag for tag, _, _ in tag_profile] == [
        0x00080016,
        0x00080018,
        0x00100020,
        0x0020000D,
        0x0020000E,
        0x00280010,
    ]


def test_group_lengths_and_file_meta_information_are_excluded() -> None:
    groups = element(0x00200000, b"\0\0\0\0", "UL") + element(0x00100000, b"\0\0\0\0", "UL")
    assert status(groups, element("StudyID", b"1")) == {0x00200010: FILLED}


def test_pixel_data_and_all_that_follows_are_excluded() -> None:
    pixels = element(0x7FE00000, bytes(4), "UL") + element("PixelData", bytes(4), "OW") + element(0xFFFCFFFC, b"", "OB")
    assert status(element("Rows", b"\1\0"), pixels) == {0x00280010: FILLED}


def test_private_elements_have_their_creator() -> None:
    content = instance(
        element(0x00290010, b"SIEMENS CSA HEADER ", "LO"),
        element(0x00290011, b"ACME 1.0", "LO"),
        element(0x00291008, b"IMAGE NUM 4", "CS"),
        element(0x00291110, b"", "OB"),
        element(0x00291208, b"x", "LO"),
    )
    assert read(content).tag_profile.presences()[-5:] == (
        (0x00290010, None, FILLED),
        (0x00290011, None, FILLED),
        (0x00291008, "SIEMENS CSA HEADER", FILLED),
        (0x00291110, "ACME 1.0", EMPTY),
        (0x00291208, None, FILLED),
    )


def test_a_creator_applies_to_its_own_group_only() -> None:
    content = instance(element(0x00290010, b"ACME", "LO"), element(0x00311001, b"x", "LO"))
    assert read(content).tag_profile.presences()[-1] == (0x00311001, None, FILLED)


def test_a_real_report_has_its_empty_sequence() -> None:
    assert {tag: filled for tag, _, filled in shipped_header("reportsi.dcm").tag_profile.presences()}[
        0x00081111
    ] == EMPTY


def test_a_deflated_file_has_a_tag_profile() -> None:
    header = shipped_header("image_dfl.dcm")
    assert len(header.tag_profile.presences()) > 20
    assert header.values[0] == DEFLATED


def test_the_id_depends_on_tag_creator_and_status() -> None:
    creator = element_code(0x00290010, FILLED)
    tag_profiles = [
        TagProfile(pack_codes([creator, element_code(tag, status)]), ((0x00290010, name),))
        for tag, name, status in [
            (0x00291001, "ACME", FILLED),
            (0x00291002, "ACME", FILLED),
            (0x00291001, "ACMF", FILLED),
            (0x00291001, "ACME", EMPTY),
        ]
    ]
    assert len({tag_profile.id for tag_profile in tag_profiles}) == 4


def test_the_id_is_a_signed_number_of_64_bits_that_never_changes() -> None:
    # fixed: other processes and versions join headers and tag profiles by this id
    assert TagProfile(b"").id == -1970711489451281740
    assert TagProfile(pack_codes([element_code(0x00100010, EMPTY)])).id == 880226242798095674


def test_toggled_elements_are_filled_instead_of_empty_or_vice_versa() -> None:
    statuses = {0x00100010: EMPTY, 0x00100020: FILLED, 0x00100030: FILLED}
    tag_profile = TagProfile(pack_codes([element_code(tag, status) for tag, status in statuses.items()]))
    assert tag_profile.with_toggled([0, 2]).presences() == (
        Presence(0x00100010, None, FILLED),
        Presence(0x00100020, None, FILLED),
        Presence(0x00100030, None, EMPTY),
    )


def test_the_table_has_a_row_for_each_element_with_its_creator() -> None:
    private = TagProfile(
        pack_codes([element_code(tag, FILLED) for tag in (0x00090010, 0x00100010, 0x00290010, 0x00291001, 0x00291101)]),
        ((0x00090010, "ACME"), (0x00290010, "EMCA")),
    )
    plain = TagProfile(pack_codes([element_code(0x00100010, EMPTY)]))
    rows = list(
        zip(
            *(tag_profile_columns([private, plain])[name].to_pylist() for name in TAG_PROFILES.schema.names),
            strict=True,
        )
    )
    assert rows == sorted(
        [
            (private.id, "00090010", None, FILLED),
            (private.id, "00100010", None, FILLED),
            (private.id, "00290010", None, FILLED),
            (private.id, "00291001", "EMCA", FILLED),
            (private.id, "00291101", None, FILLED),
            (plain.id, "00100010", None, EMPTY),
        ],
        key=lambda row: row[:2],
    )


def test_without_tag_profiles_the_table_is_empty() -> None:
    assert {name: len(column) for name, column in tag_profile_columns([]).items()} == dict.fromkeys(
        TAG_PROFILES.schema.names, 0
    )


@pytest.mark.parametrize(("tag", "text"), [(0x00100010, "00100010"), (0x0029100A, "0029100A")])
def test_a_tag_is_written_as_eight_upper_case_digits(tag: int, text: str) -> None:
    assert tag_text(tag) == text
