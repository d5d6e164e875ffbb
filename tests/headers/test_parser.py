"""The parser of headers: elements, how it continues with more bytes, and headers that are not plain.

Positions are counted by hand. In `part10`, the file meta information is 132 bytes and elements of 12, 14, 34, 14 and
28 bytes (26 for the shorter UID of implicit VR), so that the data set begins at 234 (232).
"""

from __future__ import annotations

import struct

import pytest

from dicom_etl.headers.fast.encoding import Element, IncompleteData, NotPlainError
from dicom_etl.headers.fast.parser import Parser, SkipValue
from dicom_etl.headers.tag_profile import EMPTY, FILLED
from tests.headers.dicom_bytes import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG,
    MR_IMAGE,
    UNDEFINED,
    element,
    instance,
    item,
    part10,
    sequence,
)

SYNTAXES = pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
PIXELS = element("PixelData", bytes(64), "OW")


def short(value: int, syntax: str = EXPLICIT) -> bytes:
    return struct.pack(">H" if syntax == BIG_ENDIAN else "<H", value)


def data_set(syntax: str) -> bytes:
    """A data set of seven elements with a private block, and pixel data."""
    return b"".join(
        [
            element("SOPClassUID", MR_IMAGE.encode(), syntax=syntax),
            element("SOPInstanceUID", b"1.2.3", syntax=syntax),
            element(0x00090010, b"ACME", "LO", syntax=syntax),
            element(0x00091001, b"\1\2", "OB", syntax=syntax),
            element("PatientID", b"", syntax=syntax),
            element("PatientSex", b"  ", syntax=syntax),
            element("Rows", short(0, syntax), syntax=syntax),
            element("PixelData", bytes(64), "OW", syntax=syntax),
        ]
    )


def parse(content: bytes, *, inflated: bool = False) -> Parser:
    parser = Parser(inflated=inflated)
    parser.parse(content, at_end=True)
    return parser


def presences(parser: Parser) -> dict[int, int]:
    """The status of each element of the tag profile, by tag."""
    return {code >> 2: code & 3 for code in parser.codes}


def state(parser: Parser) -> tuple[object, ...]:
    """The whole state of a parser."""
    return parser.starts, parser.wanted, parser.codes, parser.creators, parser.large, parser.end, parser.has_pixel_data


class TestElements:
    def test_explicit_vr(self) -> None:
        content = part10(data_set(EXPLICIT), EXPLICIT)
        parser = parse(content)
        assert parser.elements(content) == [
            Element(0x00020000, b"UL", 132, 140, 4, 144, False),
            Element(0x00020001, b"OB", 144, 156, 2, 158, False),
            Element(0x00020002, b"UI", 158, 166, 26, 192, False),
            Element(0x00020003, b"UI", 192, 200, 6, 206, False),
            Element(0x00020010, b"UI", 206, 214, 20, 234, False),
            Element(0x00080016, b"UI", 234, 242, 26, 268, False),
            Element(0x00080018, b"UI", 268, 276, 6, 282, False),
            Element(0x00090010, b"LO", 282, 290, 4, 294, False),
            Element(0x00091001, b"OB", 294, 306, 2, 308, False),
            Element(0x00100020, b"LO", 308, 316, 0, 316, False),
            Element(0x00100040, b"CS", 316, 324, 2, 326, False),
            Element(0x00280010, b"US", 326, 334, 2, 336, False),
        ]
        assert (parser.meta_count, parser.end, parser.has_pixel_data) == (5, 336, True)
        assert parser.creators == [(0x00090010, 290, 294)]
        assert parser.large == []

    def test_implicit_vr(self) -> None:
        content = part10(data_set(IMPLICIT), IMPLICIT)
        parser = parse(content)
        assert parser.elements(content)[4:] == [
            Element(0x00020010, b"UI", 206, 214, 18, 232, False),
            Element(0x00080016, None, 232, 240, 26, 266, False),
            Element(0x00080018, None, 266, 274, 6, 280, False),
            Element(0x00090010, None, 280, 288, 4, 292, False),
            Element(0x00091001, None, 292, 300, 2, 302, False),
            Element(0x00100020, None, 302, 310, 0, 310, False),
            Element(0x00100040, None, 310, 318, 2, 320, False),
            Element(0x00280010, None, 320, 328, 2, 330, False),
        ]
        assert (parser.meta_count, parser.end, parser.has_pixel_data) == (5, 330, True)
        assert parser.creators == [(0x00090010, 288, 292)]

    def test_big_endian(self) -> None:
        content = part10(data_set(BIG_ENDIAN), BIG_ENDIAN)
        parser = parse(content)
        assert parser.elements(content)[4:] == [
            Element(0x00020010, b"UI", 206, 214, 20, 234, False),
            Element(0x00080016, b"UI", 234, 242, 26, 268, False),
            Element(0x00080018, b"UI", 268, 276, 6, 282, False),
            Element(0x00090010, b"LO", 282, 290, 4, 294, False),
            Element(0x00091001, b"OB", 294, 306, 2, 308, False),
            Element(0x00100020, b"LO", 308, 316, 0, 316, False),
            Element(0x00100040, b"CS", 316, 324, 2, 326, False),
            Element(0x00280010, b"US", 326, 334, 2, 336, False),
        ]
        assert (parser.meta_count, parser.end, parser.has_pixel_data) == (5, 336, True)

    @SYNTAXES
    def test_tag_profile_codes_do_not_include_file_meta_information(self, syntax: str) -> None:
        assert presences(parse(part10(data_set(syntax), syntax))) == {
            0x00080016: FILLED,
            0x00080018: FILLED,
            0x00090010: FILLED,
            0x00091001: FILLED,
            0x00100020: EMPTY,
            0x00100040: EMPTY,
            0x00280010: FILLED,
        }

    def test_positions_of_wanted_values_are_kept(self) -> None:
        found = parse(part10(data_set(IMPLICIT), IMPLICIT)).wanted
        assert found[0x00020010] == ((0x00020010, b"UI"), 214, 18, 232)
        assert found[0x00080018] == ((0x00080018, None), 274, 6, 280)
        assert found[0x00280010] == ((0x00280010, None), 328, 2, 330)
        assert 0x00091001 not in found

    def test_group_lengths_are_parsed_but_not_in_the_tag_profile(self) -> None:
        content = instance(early=element(0x00080000, b"\x30\0\0\0", "UL"))
        parser = parse(content)
        assert parser.heads(content)[5] == b"\x08\0\0\0UL"
        assert 0x00080000 not in presences(parser)

    def test_private_zeros_are_filled_and_private_blanks_are_empty(self) -> None:
        private = (
            element(0x00210010, b"ACME", "LO"),
            element(0x00211001, bytes(4), "UN"),
            element(0x00211002, b"  ", "LO"),
        )
        found = presences(parse(instance(*private)))
        assert (found[0x00211001], found[0x00211002]) == (FILLED, EMPTY)

    @pytest.mark.parametrize(
        ("tag", "value", "expected"),
        [
            (0x00210010, b"ACME", [(0x00210010, 316, 320)]),
            (0x002100FF, b"ACME", [(0x002100FF, 316, 320)]),
            (0x00210010, b"", []),
            (0x0021000F, b"ACME", []),
            (0x00210100, b"ACME", []),
            (0x00220010, b"ACME", []),
        ],
    )
    def test_private_creators_are_filled_elements_10_to_ff_of_odd_groups(
        self, tag: int, value: bytes, expected: list[tuple[int, int, int]]
    ) -> None:
        # the UIDs of `instance` end at 308: 234 + 34 + 14 + 12 + 14
        assert parse(instance(element(tag, value, "LO"))).creators == expected

    def test_a_header_without_pixel_data_ends_with_the_file(self) -> None:
        parser = parse(instance())
        assert (parser.end, parser.has_pixel_data) == (308, False)

    @pytest.mark.parametrize("keyword", ["PixelData", "FloatPixelData", "DoubleFloatPixelData"])
    def test_a_header_ends_before_any_pixel_data(self, keyword: str) -> None:
        parser = parse(instance(element(keyword, bytes(64), "OW")))
        assert (parser.end, parser.has_pixel_data) == (308, True)


def nested(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = sequence("LanguageCodeSequence", item(content, defined=False), defined=False)
    return content


class TestSequences:
    @SYNTAXES
    @pytest.mark.parametrize("defined", [True, False])
    def test_a_sequence_ends_after_its_items(self, syntax: str, defined: bool) -> None:
        order = ">" if syntax == BIG_ENDIAN else "<"
        content = element("CodeValue", b"T1", syntax=syntax)  # 10 bytes
        items = item(content, order=order), item(content, defined=False, order=order)  # 18 and 26
        coded = sequence("ProcedureCodeSequence", *items, defined=defined, syntax=syntax)
        parser = parse(part10(coded + element("PatientID", b"7", syntax=syntax), syntax))
        head = 8 if syntax == IMPLICIT else 12
        begin = 232 if syntax == IMPLICIT else 234
        end = begin + head + 44 + (0 if defined else 8)
        assert parser.starts[5:] == [begin, end]
        length = 44 if defined else UNDEFINED
        spot = 0x00081032, None if syntax == IMPLICIT else b"SQ"
        assert parser.wanted[0x00081032] == (spot, begin + head, length, end)
        assert presences(parser)[0x00081032] == FILLED

    @SYNTAXES
    @pytest.mark.parametrize("defined", [True, False])
    def test_a_sequence_without_items_is_empty(self, syntax: str, defined: bool) -> None:
        content = sequence("ProcedureCodeSequence", defined=defined, syntax=syntax)
        content += element("Rows", short(1, syntax), syntax=syntax)
        assert presences(parse(part10(content, syntax))) == {0x00081032: EMPTY, 0x00280010: FILLED}

    @SYNTAXES
    @pytest.mark.parametrize("last", [b"", b"1"])
    def test_elements_at_the_end_of_the_bytes(self, syntax: str, last: bytes) -> None:
        """The last elements are parsed in another way than those with many bytes after them."""
        content = b"".join(element(tag, last, syntax=syntax) for tag in ("PatientName", "PatientID", "PatientSex"))
        assert presences(parse(part10(content, syntax))) == dict.fromkeys(
            (0x00100010, 0x00100020, 0x00100040), FILLED if last else EMPTY
        )

    def test_items_of_a_sequence_with_vr_un_have_implicit_vr(self) -> None:
        items = item(element("CodeValue", b"T1", syntax=IMPLICIT), defined=False)
        parser = parse(part10(sequence("ProcedureCodeSequence", items, defined=False, vr="UN")))
        assert parser.wanted[0x00081032] == (
            (0x00081032, b"UN"),
            246,
            UNDEFINED,
            280,
        )  # 8 + 10 + 8 for the item, 8 to end

    def test_the_depth_of_nested_sequences_is_limited(self) -> None:
        parser = parse(part10(nested(65)))
        assert parser.end == 234 + 65 * (12 + 8 + 8 + 8)
        with pytest.raises(NotPlainError, match="sequences are nested too deeply"):
            parse(part10(nested(66)))


class TestIncompleteData:
    @pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, JPEG])
    @pytest.mark.parametrize("defined", [True, False])
    def test_parsing_byte_by_byte_gives_the_same_result(self, syntax: str, defined: bool) -> None:
        coded_as = EXPLICIT if syntax == JPEG else syntax
        order = ">" if syntax == BIG_ENDIAN else "<"
        code = item(element("CodeValue", b"T1", syntax=coded_as), defined=defined, order=order)
        inner = sequence("EquivalentCodeSequence", code, defined=defined, syntax=coded_as)
        outer = sequence("LanguageCodeSequence", item(inner, order=order), defined=defined, syntax=coded_as)
        content = part10(outer + data_set(coded_as), syntax)
        end = len(content) - 64 - (8 if syntax == IMPLICIT else 12)  # where the pixel data begin
        parser = Parser()
        for number in range(132, end + 12):
            with pytest.raises(IncompleteData):
                parser.parse(content[:number], at_end=False)
        parser.parse(content[: end + 12], at_end=False)
        assert (parser.end, parser.has_pixel_data) == (end, True)
        assert state(parser) == state(parse(content))

    @SYNTAXES
    def test_a_header_may_end_between_two_elements_only(self, syntax: str) -> None:
        content = part10(data_set(syntax), syntax)
        begin = 232 if syntax == IMPLICIT else 234
        sizes = (34, 14, 12, 10, 8, 10, 10) if syntax == IMPLICIT else (34, 14, 12, 14, 8, 10, 10)
        ends = [begin + sum(sizes[:number]) for number in range(1, 8)]
        found = []
        for number in range(begin + 12, ends[-1] + 1):
            try:
                found.append(parse(content[:number]).end)
            except IncompleteData:
                continue
        assert found == ends

    def test_the_file_meta_information_must_be_complete(self) -> None:
        content = instance()
        for number in range(132, 234 + 12):
            with pytest.raises(IncompleteData):
                parse(content[:number])


ACME = element(0x00210010, b"ACME", "LO")  # 308 to 320

ROWS = element("Rows", b"\x08\0")


class TestLargeValues:
    @pytest.mark.parametrize("vr", ["UN", "OB", "OW", "OF"])
    def test_a_large_private_value_beyond_the_bytes_is_skipped(self, vr: str) -> None:
        content = instance(ACME, element(0x00211001, bytes(20_000), vr), ROWS, PIXELS)
        parser = Parser()
        with pytest.raises(SkipValue) as skip:
            parser.parse(content[:5000], at_end=False)
        assert (skip.value.start, skip.value.length) == (332, 20_000)
        parser.skipped[332] = 20_000
        rest = content[:332] + content[20_332:]
        with pytest.raises(IncompleteData):
            parser.parse(rest[:350], at_end=False)
        parser.parse(rest, at_end=True)
        assert parser.elements(rest)[-2:] == [
            Element(0x00211001, vr.encode(), 320, 332, 20_000, 332, True),
            Element(0x00280010, b"US", 332, 340, 2, 342, False),
        ]
        assert (parser.end, parser.has_pixel_data, parser.large) == (342, True, [0x00211001])
        assert presences(parser)[0x00211001] == FILLED

    def test_several_large_values_are_skipped(self) -> None:
        values = [element(0x00211001 + number, bytes(9000), "OB") for number in range(3)]
        content = instance(ACME, *values, ROWS, PIXELS)
        parser, buf, skips = Parser(), content[:1000], []
        for _ in range(3):
            with pytest.raises(SkipValue) as skip:
                parser.parse(buf, at_end=False)
            at, length = skip.value.start, skip.value.length
            skips.append((at, length))
            parser.skipped[at] = length
            place = at + 9000 * len(skips)
            buf = buf[:at] + content[place : place + 400]
        parser.parse(buf, at_end=True)
        assert skips == [(332, 9000), (344, 9000), (356, 9000)]
        assert parser.starts[-4:] == [320, 332, 344, 356]
        assert (parser.end, parser.large) == (366, [0x00211001, 0x00211002, 0x00211003])

    def test_a_large_value_within_the_bytes_is_not_skipped(self) -> None:
        content = instance(ACME, element(0x00211001, bytes(20_000), "OB"), ROWS, PIXELS)
        parser = parse(content)
        assert parser.elements(content)[-2] == Element(0x00211001, b"OB", 320, 332, 20_000, 20_332, True)
        assert (parser.end, parser.large) == (20_342, [0x00211001])

    @SYNTAXES
    def test_a_value_is_large_from_8192_bytes_on(self, syntax: str) -> None:
        sizes = {0x00211001: 8190, 0x00211002: 8192, 0x00211003: 8194}
        values = [element(tag, bytes(size), "OB", syntax=syntax) for tag, size in sizes.items()]
        assert parse(part10(b"".join(values), syntax)).large == [0x00211002, 0x00211003]

    def test_a_large_sequence_that_is_not_wanted_is_skipped(self) -> None:
        content = instance(sequence("ContentSequence", item(element("TextValue", b"x" * 9000))))
        with pytest.raises(SkipValue) as skip:
            Parser().parse(content[:4000], at_end=False)
        assert (skip.value.start, skip.value.length) == (320, 9020)  # 9,000 bytes, 12 before them, 8 of the item

    @pytest.mark.parametrize(
        "value",
        [
            element(0x00211001, bytes(8190), "OB"),
            element(0x00211001, b" " * 20_000, "UT"),
            element("RetrieveURL", b"x" * 20_000),
            sequence("SharedFunctionalGroupsSequence", item(bytes(20_000))),
        ],
        ids=["less than 8,192 bytes", "text, which may be blank", "wanted", "a sequence with wanted values"],
    )
    def test_all_other_values_are_incomplete(self, value: bytes) -> None:
        with pytest.raises(IncompleteData):
            Parser().parse(part10(value)[:4000], at_end=False)


def raw(tag: int, vr: bytes, value: bytes = b"", length: int | None = None) -> bytes:
    """An element of any VR with a length of 16 bits."""
    length = len(value) if length is None else length
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, length) + value


def in_items(content: bytes, *, end: bytes = b"\xfe\xff\x0d\xe0\0\0\0\0") -> bytes:
    """A sequence of undefined length with one item of undefined length, which ends with `end`."""
    start = struct.pack("<HHL", 0xFFFE, 0xE000, UNDEFINED)
    return sequence("ContentSequence", start + content + end, defined=False)


SEQUENCE_ENDS = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)

NOT_PLAIN = {
    "out of order": ([element("Rows", b"\1\0"), element("PatientID", b"7")], "elements are not in order"),
    "twice": ([element("Rows", b"\1\0"), element("Rows", b"\1\0")], "elements are not in order"),
    "unknown VR": ([raw(0x00280010, b"ZZ", b"\1\0")], "unknown VR"),
    "no VR": ([raw(0x00280010, b"\0\0", b"\1\0")], "unknown VR"),
    "an item outside": ([item()], "no pixel data after the header"),
    "an item of undefined length outside": (
        [item(defined=False)],
        "no pixel data after the header",
    ),
    "a delimiter outside": ([SEQUENCE_ENDS], "no pixel data after the header"),
    "padding instead of pixels": (
        [raw(0xFFFCFFFC, b"OB", bytes(16))],
        "no pixel data after the header",
    ),
    "group length of the pixels": (
        [raw(0x7FE00000, b"UL", bytes(4)), PIXELS],
        "no pixel data after the header",
    ),
    "undefined length of OB": (
        [element(0x00291010, b"x" * 100, "OB", length=UNDEFINED)],
        "undefined length of a value that is no sequence",
    ),
    "no item in a sequence": (
        [sequence("ContentSequence", element("Rows", b"\1\0"), defined=False)],
        "something other than an item",
    ),
    "item delimiter instead of an item": (
        [sequence("ContentSequence", struct.pack("<HHL", 0xFFFE, 0xE00D, 0), defined=False)],
        "something other than an item",
    ),
    "item delimiter with a length": (
        [in_items(element("CodeValue", b"T1"), end=b"\xfe\xff\x0d\xe0\2\0\0\0")],
        "the end of an item is missing",
    ),
    "sequence delimiter in an item": (
        [in_items(element("CodeValue", b"T1"), end=SEQUENCE_ENDS)],
        "the end of an item is missing",
    ),
    "item delimiter in an item of defined length": (
        [sequence("ContentSequence", item(struct.pack("<HHL", 0xFFFE, 0xE00D, 0)), defined=False)],
        "the end of an item is missing",
    ),
    "a value that ends behind its item": (
        [sequence("ContentSequence", item(element("CodeValue", b"T1", length=40)), bytes(40), defined=False)],
        "an element ends beyond its item",
    ),
    "a tag behind those of delimiters in an item": (
        [in_items(raw(0xFFFF1010, b"LO", b"T1"))],
        "the end of an item is missing",
    ),
    "unknown VR in an item": ([in_items(raw(0x00280010, b"ZZ", b"\1\0"))], "unknown VR"),
    "a strange character set in an item": (
        [in_items(element("SpecificCharacterSet", b"\xff"))],
        "unsupported character set",
    ),
}

IMPLICIT_NOT_PLAIN = {
    "explicit VR": (element("SOPClassUID", MR_IMAGE.encode()), "explicit VR in a transfer syntax of implicit VR"),
    "undefined length of what is no sequence": (
        element("PatientComments", item(), length=UNDEFINED, syntax=IMPLICIT) + SEQUENCE_ENDS,
        "undefined length of a value that is no sequence",
    ),
    "undefined length of what nobody knows, without items": (
        element(0x00211001, bytes(16), "UN", length=UNDEFINED, syntax=IMPLICIT) + SEQUENCE_ENDS,
        "undefined length of a value that is no sequence",
    ),
    "something else between items": (
        element("ProcedureCodeSequence", item() + bytes(8), length=UNDEFINED, syntax=IMPLICIT),
        "something other than an item",
    ),
}


class TestNotPlain:
    @pytest.mark.parametrize("case", NOT_PLAIN)
    def test_elements_that_are_not_plain(self, case: str) -> None:
        elements, reason = NOT_PLAIN[case]
        with pytest.raises(NotPlainError, match=f"^{reason}$"):
            parse(instance(*elements))

    def test_a_private_element_of_unknown_vr_is_not_plain(self) -> None:
        with pytest.raises((NotPlainError, LookupError)):  # the fast reader handles both in the same way
            parse(instance(ACME, raw(0x00211001, b"ZZ", b"\1\0")))

    def test_elements_after_the_pixel_data_are_not_parsed(self) -> None:
        assert parse(instance(PIXELS, element("PatientID", b"7"))).end == 308

    @pytest.mark.parametrize("tag", [0x00060010, 0x00040010, 0x00000002])
    def test_a_data_set_that_begins_before_group_0008_is_not_plain(self, tag: int) -> None:
        with pytest.raises(NotPlainError, match="elements are not in order"):
            parse(part10(element(tag, b"x", "LO") + ROWS))

    @pytest.mark.parametrize("case", IMPLICIT_NOT_PLAIN)
    def test_elements_of_implicit_vr_that_are_not_plain(self, case: str) -> None:
        content, reason = IMPLICIT_NOT_PLAIN[case]
        with pytest.raises(NotPlainError, match=f"^{reason}$"):
            parse(part10(content, IMPLICIT))

    def test_implicit_items_in_big_endian_are_not_plain(self) -> None:
        code = struct.pack(">HHL", 0x0008, 0x0100, 4) + b"T1  "
        content = sequence("ProcedureCodeSequence", item(code, order=">"), defined=False, vr="UN", syntax=BIG_ENDIAN)
        with pytest.raises(NotPlainError, match="implicit VR in big endian"):
            parse(part10(content, BIG_ENDIAN))


def file_of(*meta: bytes, preamble: bytes = bytes(128) + b"DICM") -> bytes:
    """A file with file meta information and one element of explicit VR."""
    return preamble + b"".join(meta) + element("SOPClassUID", MR_IMAGE.encode())


LENGTH = element(0x00020000, bytes(4), "UL")

SYNTAX = element("TransferSyntaxUID", EXPLICIT.encode())

PLAIN_META = {
    "all": [LENGTH, element("FileMetaInformationVersion", b"\0\1"), SYNTAX],
    "the group length is wrong": [element(0x00020000, b"\xff\xff\xff\xff", "UL"), SYNTAX],
    "without group length": [element("FileMetaInformationVersion", b"\0\1"), SYNTAX],
    "the transfer syntax alone": [SYNTAX],
    "a transfer syntax that is padded with a blank": [raw(0x00020010, b"UI", EXPLICIT.encode() + b" ")],
    "a transfer syntax of compressed pixels": [element("TransferSyntaxUID", JPEG.encode())],
    "private information": [SYNTAX, element(0x00020102, bytes(65_536), "OB")],
}

META_NOT_PLAIN = {
    "no preamble": (file_of(LENGTH, SYNTAX, preamble=b""), "no preamble"),
    "preamble without DICM": (file_of(LENGTH, SYNTAX, preamble=bytes(128) + b"DICN"), "no preamble"),
    "no file meta information": (file_of(), "no standard transfer syntax"),
    "no transfer syntax": (file_of(LENGTH), "no standard transfer syntax"),
    "an empty transfer syntax": (file_of(LENGTH, element("TransferSyntaxUID")), "no standard transfer syntax"),
    "a private transfer syntax": (
        file_of(element("TransferSyntaxUID", b"1.3.46.670589")),
        "no standard transfer syntax",
    ),
    "a transfer syntax that is no UID": (
        file_of(element("TransferSyntaxUID", EXPLICIT.encode() + b"x")),
        "unusual file meta information",
    ),
    "a UID that is longer than UIDs are": (
        file_of(element("MediaStorageSOPClassUID", b"1" * 66), SYNTAX),
        "unusual file meta information",
    ),
    "a transfer syntax of another VR": (
        file_of(element("TransferSyntaxUID", EXPLICIT.encode(), "LO")),
        "unusual file meta information",
    ),
    "a directory": (
        file_of(element("MediaStorageSOPClassUID", b"1.2.840.10008.1.3.10"), SYNTAX),
        "unusual file meta information",
    ),
    "out of order": (file_of(SYNTAX, LENGTH), "unusual file meta information"),
    "twice": (file_of(SYNTAX, SYNTAX), "unusual file meta information"),
    "a group length of 2 bytes": (
        file_of(element(0x00020000, bytes(2), "US"), SYNTAX),
        "unusual file meta information",
    ),
    "a group length of 8 bytes": (
        file_of(element(0x00020000, bytes(8), "UL"), SYNTAX),
        "unusual file meta information",
    ),
    "text in the first element": (
        file_of(element("MediaStorageSOPInstanceUID", b"1.2"), SYNTAX),
        "unusual file meta information",
    ),
    "a very long value": (file_of(SYNTAX, element(0x00020102, bytes(65_538), "OB")), "unusual file meta information"),
    "undefined length": (
        file_of(SYNTAX, element(0x00020102, b"", "OB", length=UNDEFINED)),
        "unusual file meta information",
    ),
    "unknown VR": (file_of(SYNTAX, raw(0x00020102, b"ZZ", b"  ")), "unknown VR"),
}


class TestFileMeta:
    @pytest.mark.parametrize("case", PLAIN_META)
    def test_plain_file_meta_information_is_parsed(self, case: str) -> None:
        meta = PLAIN_META[case]
        parser = parse(file_of(*meta))
        assert parser.meta_count == len(meta)
        assert parser.starts[-1] == 132 + sum(map(len, meta))

    @pytest.mark.parametrize("case", META_NOT_PLAIN)
    def test_file_meta_information_that_is_not_plain(self, case: str) -> None:
        content, reason = META_NOT_PLAIN[case]
        with pytest.raises(NotPlainError, match=f"^{reason}$"):
            parse(content)

    def test_a_deflated_data_set_must_be_inflated_first(self) -> None:
        content = instance(syntax=EXPLICIT).replace(
            element("TransferSyntaxUID", EXPLICIT.encode()), element("TransferSyntaxUID", DEFLATED.encode())
        )
        with pytest.raises(NotPlainError, match="deflated data set"):
            parse(content)
        assert parse(content, inflated=True).end == 310  # the UID is longer by 2 bytes
        with pytest.raises(NotPlainError, match="data set inflated, but not deflated"):
            parse(instance(), inflated=True)


def have_same_elements(first: bytes, second: bytes) -> bool:
    return parse(first).has_same_elements(first, parse(second), second)


class TestSameElements:
    def test_values_and_lengths_may_differ(self) -> None:
        one = instance(element("InstanceNumber", b"1"), ROWS)
        assert have_same_elements(one, instance(element("InstanceNumber", b"1234567"), ROWS, PIXELS))

    @pytest.mark.parametrize(
        "content",
        [
            instance(element("InstanceNumber", b"1")),
            instance(element("InstanceNumber", b"1"), ROWS, element("Columns", b"\1\0")),
            instance(element("InstanceNumber", b"1", "DS"), ROWS),
            instance(
                element("InstanceNumber", b"1", syntax=IMPLICIT),
                element("Rows", b"\x08\0", syntax=IMPLICIT),
                syntax=IMPLICIT,
            ),
        ],
        ids=["an element less", "an element more", "another VR", "another transfer syntax"],
    )
    def test_tags_and_encodings_may_not_differ(self, content: bytes) -> None:
        assert not have_same_elements(instance(element("InstanceNumber", b"1"), ROWS), content)

    def test_a_value_may_not_be_large_in_one_header_only(self) -> None:
        one, other = (instance(ACME, element(0x00211001, bytes(size), "OB")) for size in (8190, 8192))
        assert not have_same_elements(one, other)
