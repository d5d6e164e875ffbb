"""Templates: which files match one, which bytes are read, and how templates are learnt from a series.

Positions are counted by hand. The data set of `FIRST` begins at 234; its elements end at 268, 282, 294, 308, 318 and
328, where the pixel data begin with a head of 12 bytes.
"""

from __future__ import annotations

import random
import struct

import pytest

from dicom_etl.headers.fast import FastReader, ReadCounts
from dicom_etl.headers.fast.byte_template import ByteTemplate, Fetch, Match
from dicom_etl.headers.fast.parser import Parser
from tests.headers.compare import read_fast, read_with_reference
from tests.headers.dicom_bytes import (
    BIG_ENDIAN,
    EXPLICIT,
    IMPLICIT,
    MR_IMAGE,
    UNDEFINED,
    element,
    item,
    part10,
    sequence,
)

UID, NUMBER = 0x00080018, 0x00200013
VARYING = frozenset({UID, NUMBER})
ROWS = element("Rows", b"\x08\0")
PIXELS = element("PixelData", bytes(range(64)), "OW")
PIXELS_HEAD = b"\xe0\x7f\x10\0OW\0\0\x40\0\0\0"


def image(
    uid: bytes = b"1.2.3", number: bytes = b"1", *more: bytes, series: bytes = b"1.2.1", syntax: str = EXPLICIT
) -> bytes:
    """An image; `more` replaces Rows and the pixel data, if it is not empty."""
    order = ">" if syntax == BIG_ENDIAN else "<"
    end = more or (
        element("Rows", struct.pack(order + "H", 8), syntax=syntax),
        element("PixelData", bytes(range(64)), "OW", syntax=syntax),
    )
    return part10(
        element("SOPClassUID", MR_IMAGE.encode(), syntax=syntax)
        + element("SOPInstanceUID", uid, syntax=syntax)
        + element("StudyInstanceUID", b"1.2", syntax=syntax)
        + element("SeriesInstanceUID", series, syntax=syntax)
        + element("InstanceNumber", number, syntax=syntax)
        + b"".join(end),
        syntax,
    )


FIRST = image()


class CountingFile:
    """A file that records which bytes are fetched."""

    def __init__(self, content: bytes) -> None:
        self.content, self.fetched = content, list[tuple[int, int]]()

    def fetch(self, place: int, number: int) -> tuple[bytes, bool]:
        """The bytes from a position on, and whether they reach the end of the file."""
        found = self.content[place : place + number]
        self.fetched.append((place, len(found)))
        return found, place + number >= len(self.content)


def template_of(content: bytes, varying: frozenset[int] = VARYING) -> ByteTemplate:
    parser = Parser()
    parser.parse(content, at_end=True)
    return ByteTemplate(content, parser, varying)


def match(template: ByteTemplate, content: bytes, first: int | None = None) -> Match | None:
    """Match a file, of which the first bytes (None: all) are there at once."""
    file = CountingFile(content)
    first = len(content) if first is None else first
    return template.match(content[:first], first >= len(content), file.fetch)


class TestMatchingFile:
    def test_the_file_itself_matches(self) -> None:
        expected = Match([b"1.2.3\0", b"1 "], 0, PIXELS_HEAD, 328, True)
        assert match(template_of(FIRST), FIRST) == expected

    @pytest.mark.parametrize(
        ("uid", "number", "values", "end"),
        [
            (b"1.2.4", b"2", [b"1.2.4\0", b"2 "], 328),
            (b"1.2.3.4.5.6", b"1234", [b"1.2.3.4.5.6\0", b"1234"], 336),  # 6 and 2 bytes longer
            (b"1.2", b"", [b"1.2\0", b""], 324),  # 2 and 2 bytes shorter
            (b"", b"12", [b"", b"12"], 322),
            (b"1" * 3000, b"2", [b"1" * 3000, b"2 "], 3322),
        ],
    )
    def test_varying_values_may_have_other_lengths(
        self, uid: bytes, number: bytes, values: list[bytes], end: int
    ) -> None:
        assert match(template_of(FIRST), image(uid, number)) == Match(values, 0, PIXELS_HEAD, end, True)

    @pytest.mark.parametrize(
        ("syntax", "end", "head"),
        [
            (IMPLICIT, 326, b"\xe0\x7f\x10\0\x40\0\0\0\0\1\2\3"),
            (BIG_ENDIAN, 328, b"\x7f\xe0\0\x10OW\0\0\0\0\0\x40"),
        ],
    )
    def test_files_of_each_transfer_syntax_match(self, syntax: str, end: int, head: bytes) -> None:
        template = template_of(image(syntax=syntax))
        found = match(template, image(b"1.2.3.4", b"222", syntax=syntax))  # 2 bytes longer each
        assert found == Match([b"1.2.3.4\0", b"222 "], 0, head, end + 4, True)
        assert match(template, FIRST) is None

    def test_pixel_data_may_differ(self) -> None:
        content = image(b"1.2.3", b"1", ROWS, element("PixelData", bytes(10), "OB"))
        assert match(template_of(FIRST), content) == Match(
            [b"1.2.3\0", b"1 "], 0, b"\xe0\x7f\x10\0OB\0\0\x0a\0\0\0", 328, True
        )

    def test_the_file_meta_information_may_vary(self) -> None:
        longer = FIRST.replace(b"UI\x06\x001.2.3\0", b"UI\x08\x001.2.3.45").replace(
            b"UL\x04\0\x5a\0", b"UL\x04\0\x5c\0"
        )
        template = template_of(FIRST, frozenset({0x00020000, 0x00020003, UID}))
        found = match(template, longer)
        assert found == Match([b"\x5c\0\0\0", b"1.2.3.45", b"1.2.3.45"], 0, PIXELS_HEAD, 332, True)
        # pydicom converts the group length to a number
        assert match(template, longer.replace(b"UL\x04\0\x5c\0\0\0", b"UL\x02\0\x5c\0")) is None

    def test_a_file_without_pixel_data_ends_with_its_last_element(self) -> None:
        template = template_of(image(b"1.2.3", b"1", ROWS))
        assert match(template, image(b"1.2.33", b"12", ROWS)) == Match([b"1.2.33", b"12"], 0, b"", 328, False)


OTHERS = {
    "an element more before the pixels": image(b"1.2.3", b"1", ROWS, element("Columns", b"\1\0"), PIXELS),
    "an element more before those that vary": FIRST.replace(
        element("StudyInstanceUID", b"1.2"), element("StudyDate", b"20200101") + element("StudyInstanceUID", b"1.2")
    ),
    "an element less": image(b"1.2.3", b"1", PIXELS),
    "no pixels": image(b"1.2.3", b"1", ROWS),
    "something else than pixels": image(b"1.2.3", b"1", ROWS, element(0x00290010, b"ACME", "LO"), bytes(20)),
    "group length of the pixels": image(b"1.2.3", b"1", ROWS, element(0x7FE00000, bytes(4), "UL"), PIXELS),
    "another VR of what varies": FIRST.replace(element("InstanceNumber", b"1"), element("InstanceNumber", b"1", "DS")),
    "another VR of what is constant": FIRST.replace(ROWS, element("Rows", b"\x08\0", "SS")),
    "a longer value of what is constant": image(b"1.2.3", b"1", element("Rows", b"\x08\0\x08\0"), PIXELS),
    "another preamble": b"II*\0" + FIRST[4:],
    "another transfer syntax": FIRST.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"),
    "no file": b"",
}


class TestOtherFile:
    def test_a_byte_that_differs_in_a_constant_run_is_refused(self) -> None:
        template = template_of(FIRST)
        refused = []
        for place in range(328):
            changed = FIRST[:place] + bytes([FIRST[place] ^ 1]) + FIRST[place + 1 :]
            if match(template, changed) is None:
                refused.append(place)
        values = {*range(276, 282), *range(316, 318)}
        assert refused == [place for place in range(328) if place not in values]

    def test_a_file_truncated_before_its_pixel_data_is_refused(self) -> None:
        template = template_of(FIRST)
        assert [number for number in range(len(FIRST) + 1) if match(template, FIRST[:number])] == [
            *range(340, len(FIRST) + 1)
        ]

    def test_a_truncated_file_without_pixel_data_is_refused(self) -> None:
        content = image(b"1.2.3", b"1", ROWS)
        template = template_of(content)
        assert [number for number in range(len(content) + 1) if match(template, content[:number])] == [len(content)]

    @pytest.mark.parametrize("case", OTHERS)
    def test_a_file_with_other_elements_is_refused(self, case: str) -> None:
        content = OTHERS[case]
        assert content != FIRST
        assert match(template_of(FIRST), content) is None

    def test_an_extra_byte_after_a_file_without_pixel_data_is_refused(self) -> None:
        content = image(b"1.2.3", b"1", ROWS)
        assert match(template_of(content), content + b"\0") is None

    def test_a_first_length_that_looks_like_a_vr_is_refused(self) -> None:
        rest = b"".join(
            element(keyword, value, syntax=IMPLICIT)
            for keyword, value in (("SOPClassUID", MR_IMAGE.encode()), ("SOPInstanceUID", b"1.2.3"))
        )
        first, longest, too_long = (
            part10(element("ImageType", b"X" * length, syntax=IMPLICIT) + rest, IMPLICIT)
            for length in (8, 0x4140, 0x4142)  # 0x4142 is "BA"
        )
        template = template_of(first, frozenset({0x00080008}))
        assert match(template, longest) == Match([b"X" * 0x4140], 0, b"", 232 + 8 + 0x4140 + 34 + 14, False)
        assert match(template, too_long) is None


def with_private_value(value: bytes, rows: bytes = b"\x08\0", number: bytes = b"1") -> bytes:
    """An image with a private creator at 318 and a private element at 330, its value at 342."""
    private = element(0x00210010, b"ACME", "LO"), element(0x00211001, value, "UN")
    return image(b"1.2.3", number, *private, element("Rows", rows), PIXELS)


class TestFetchedBytes:
    @pytest.mark.parametrize("first", [0, 1, 131, 270, 275, 280, 300, 318, 328, 339])
    def test_the_number_of_first_bytes_makes_no_difference(self, first: int) -> None:
        template = template_of(FIRST)
        content = image(b"1.2.3.4.5.6", b"1234")
        assert match(template, content, first) == Match([b"1.2.3.4.5.6\0", b"1234"], 0, PIXELS_HEAD, 336, True)
        assert match(template, content.replace(ROWS, element("Rows", b"\x07\0")), first) is None

    def test_the_first_read_ends_shortly_after_the_head_of_a_large_value(self) -> None:
        assert template_of(with_private_value(bytes(50_000))).first_read == 330 + 1024
        assert template_of(FIRST).first_read == 328 + 1024

    def test_a_large_value_is_not_read(self) -> None:
        template = template_of(with_private_value(bytes(50_000)))
        content = with_private_value(b"\1" * 60_000)
        file = CountingFile(content)
        found = template.match(content[:1354], False, file.fetch)
        # at 342 + 60,000 there are 10 bytes of Rows, 12 and 64 of the pixels
        assert found == Match([b"1.2.3\0", b"1 ", b""], 0, PIXELS_HEAD, 60_352, True)
        assert file.fetched == [(60_342, 86)]

    def test_after_a_large_value_little_more_than_the_template_is_read(self) -> None:
        template = template_of(with_private_value(bytes(50_000)))
        content = with_private_value(b"\1" * 60_000) + bytes(100_000)
        file = CountingFile(content)
        assert template.match(content[:1354], False, file.fetch) is not None
        # 10 bytes of Rows, and 1,024 since values may be longer
        assert file.fetched == [(60_342, 1034)]

    def test_a_large_value_among_the_first_bytes_is_skipped(self) -> None:
        template = template_of(with_private_value(bytes(50_000)))
        found = match(template, with_private_value(b"\1" * 10_000, number=b"12"))
        assert found == Match([b"1.2.3\0", b"12", b""], 0, PIXELS_HEAD, 10_352, True)

    def test_bytes_after_a_large_value_are_compared(self) -> None:
        template = template_of(with_private_value(bytes(50_000)))
        assert match(template, with_private_value(bytes(50_000), b"\x09\0"), 1354) is None

    def test_a_large_value_needs_a_length_and_the_same_vr(self) -> None:
        template = template_of(with_private_value(bytes(50_000)))
        assert match(template, with_private_value(b"")) is None
        head = b"\x21\0\x01\x10UN\0\0"
        content = with_private_value(bytes(50_000))
        place = content.index(head)
        undefined = content[: place + 8] + struct.pack("<L", UNDEFINED) + content[place + 12 :]
        assert match(template, undefined, 1354) is None
        assert match(template, content.replace(head, b"\x21\0\x01\x10OB\0\0"), 1354) is None

    def test_a_truncated_large_value_is_refused(self) -> None:
        template = template_of(with_private_value(bytes(50_000)))
        content = with_private_value(bytes(50_000))
        assert match(template, content[:40_000]) is None
        assert match(template, content[:40_000], 1354) is None

    def test_a_value_of_more_than_a_megabyte_is_refused(self) -> None:
        first = image(b"1.2.3", b"1", element("ImageComments", b"x", "UT"), PIXELS)
        template = template_of(first, frozenset({0x00204000}))
        value = b"x" * 1_000_000
        found = match(template, image(b"1.2.3", b"1", element("ImageComments", value, "UT"), PIXELS), 8192)
        assert found == Match([value], 0, PIXELS_HEAD, 318 + 12 + 1_000_000, True)
        longer = image(b"1.2.3", b"1", element("ImageComments", b"x" * 1_100_000, "UT"), PIXELS)
        assert match(template, longer, 8192) is None


SEQUENCE = 0x0040A730

END = b"\xfe\xff\xdd\xe0\0\0\0\0"


def with_items(*items: bytes, defined: bool = False) -> bytes:
    """An image with ContentSequence at 328, its value at 340."""
    return image(b"1.2.3", b"1", ROWS, sequence("ContentSequence", *items, defined=defined), PIXELS)


def code(value: bytes) -> bytes:
    """An item of 16 bytes around the value, and 8 for its end."""
    return item(element("CodeValue", value), defined=False)


class TestVaryingSequence:
    @pytest.mark.parametrize("first", [0, 330, 341, 350, 364, 372, 5000])
    def test_items_of_a_sequence_of_undefined_length_may_vary(self, first: int) -> None:
        template = template_of(with_items(code(b"T1")), frozenset({NUMBER, SEQUENCE}))
        items = code(b"T1234567"), item(defined=False), code(b"T2")  # 32 + 16 + 26
        found = match(template, with_items(*items), first)
        assert found == Match([b"1 ", b"".join(items) + END], 0b10, PIXELS_HEAD, 340 + 74 + 8, True)

    def test_a_long_sequence_of_undefined_length_is_fetched_to_its_end(self) -> None:
        template = template_of(with_items(code(b"T1")), frozenset({SEQUENCE}))
        items = [code(b"T1")] * 2000  # 52,000 bytes
        found = match(template, with_items(*items), 1352)
        assert found == Match([b"".join(items) + END], 1, PIXELS_HEAD, 340 + 52_000 + 8, True)

    def test_the_length_may_be_defined_in_one_file_and_not_in_the_next(self) -> None:
        undefined, defined = with_items(code(b"T1")), with_items(code(b"T2"), defined=True)
        found = match(template_of(undefined, frozenset({SEQUENCE})), defined)
        assert found == Match([code(b"T2")], 0, PIXELS_HEAD, 340 + 26, True)
        found = match(template_of(defined, frozenset({SEQUENCE})), undefined)
        assert found == Match([code(b"T1") + END], 1, PIXELS_HEAD, 340 + 26 + 8, True)

    @pytest.mark.parametrize(
        "items",
        [
            [code(b"T1")[:-8]],
            [element("CodeValue", b"T1")],
            [item(element("CodeValue", b"T1", length=40))],
            [b"\xfe\xff\x0d\xe0\0\0\0\0"],
        ],
        ids=["an item without end", "no item", "a value that ends behind its item", "an end of no item"],
    )
    @pytest.mark.parametrize("first", [1352, 5000])
    def test_a_sequence_of_undefined_length_that_is_not_plain_is_refused(self, items: list[bytes], first: int) -> None:
        template = template_of(with_items(code(b"T1")), frozenset({SEQUENCE}))
        assert match(template, with_items(*items), first) is None

    def test_a_sequence_without_end_is_refused(self) -> None:
        template = template_of(with_items(code(b"T1")), frozenset({SEQUENCE}))
        content = with_items(*[code(b"T1")] * 2000)
        for number in (352, 366, 1000, 20_000, 52_347):
            assert match(template, content[:number], 1352) is None

    def test_undefined_length_of_another_vr_is_refused(self) -> None:
        first = image(b"1.2.3", b"1", element("ImageComments", b"x", "UT"), PIXELS)
        content = image(b"1.2.3", b"1", element("ImageComments", b"x" * 20, "UT", length=UNDEFINED), END, PIXELS)
        assert match(template_of(first, frozenset({0x00204000})), content) is None


def count_reads(*contents: bytes) -> ReadCounts:
    """Read files one after the other, correctly; how many were read in which way."""
    reader = FastReader()
    for content in contents:
        assert read_fast(reader, content) == read_with_reference(content)
    return reader.counts


def slices(series: bytes, number: int, *more: bytes) -> list[bytes]:
    """The images of a series."""
    return [image(series + b".%d" % one, b"%d" % one, *more, series=series) for one in range(1, number + 1)]


class TestSeries:
    def test_the_first_two_files_are_parsed_and_all_others_matched(self) -> None:
        assert count_reads(*slices(b"1.1", 12)) == ReadCounts(matched=10, parsed=2, unsupported=0)

    def test_each_of_several_interleaved_series_has_its_template(self) -> None:
        three = zip(slices(b"1.1", 9), slices(b"1.2", 9), slices(b"1.3", 9), strict=True)
        contents = [content for group in three for content in group]
        assert count_reads(*contents) == ReadCounts(matched=21, parsed=6, unsupported=0)

    def test_a_second_form_of_header_in_a_series_is_parsed_once(self) -> None:
        images = slices(b"1.1", 6)
        others = slices(b"1.1", 3, ROWS, element("Columns", b"\x08\0"), PIXELS)
        # two of the first form, one of the second; from then on both are matched, in any order
        contents = [images[0], images[1], others[0], images[2], others[1], images[3], images[4], others[2], images[5]]
        assert count_reads(*contents) == ReadCounts(matched=6, parsed=3, unsupported=0)

    def test_an_element_that_varies_for_the_first_time_is_learnt(self) -> None:
        images = slices(b"1.1", 4)
        other = [content.replace(ROWS, element("Rows", b"\x09\0")) for content in slices(b"1.1", 8)[4:]]
        # the third is matched; from the fifth it is learnt that Rows varies
        assert count_reads(*images, *other) == ReadCounts(matched=5, parsed=3, unsupported=0)

    def test_a_repeated_file_makes_no_template(self) -> None:
        assert count_reads(FIRST, FIRST, FIRST) == ReadCounts(matched=0, parsed=3, unsupported=0)

    def test_files_that_are_not_plain_do_not_disturb_templates(self) -> None:
        good = slices(b"1.1", 6)
        bad = [b"", good[0][132:], good[3][:300], image(b"1.1.9", b"9", ROWS, ROWS, PIXELS, series=b"1.1")]
        contents = [bad[0], good[0], bad[1], good[1], bad[2], good[2], bad[3], good[3], good[4], good[5]]
        assert count_reads(*contents) == ReadCounts(matched=4, parsed=2, unsupported=4)

    def test_a_series_of_few_files_is_read_by_templates_of_its_model(self) -> None:
        contents = [content for number in range(1, 21) for content in slices(b"1.%d" % number, 2)]
        # the files of the first two series, and one of the third, from which it is learnt that InstanceNumber varies
        assert count_reads(*contents) == ReadCounts(matched=35, parsed=5, unsupported=0)

    def test_a_series_has_its_own_templates_from_the_fifth_file_on(self) -> None:
        first, second = image(b"9.1", b"1", series=b"9"), image(b"8.2", b"2", series=b"8")
        assert count_reads(first, second, *slices(b"1.1", 4)) == ReadCounts(matched=4, parsed=2, unsupported=0)
        assert count_reads(first, second, *slices(b"1.1", 9)) == ReadCounts(matched=7, parsed=4, unsupported=0)

    def test_the_templates_of_64_series_are_kept(self) -> None:
        def rounds(series: int) -> list[bytes]:
            every = [slices(b"1.%d" % number, 7) for number in range(1, series + 1)]
            return [content for group in zip(*every, strict=True) for content in group]

        # two files of each are parsed for its own templates
        assert count_reads(*rounds(64)) == ReadCounts(matched=320, parsed=128, unsupported=0)
        # with more series, the templates of each are dropped before its next file: only those of the model are left
        assert count_reads(*rounds(65)) == ReadCounts(matched=452, parsed=3, unsupported=0)


def patient(number: int, *, name: bytes = b"Doe", charset: bytes = b"ISO_IR 100", more: bytes = b"") -> bytes:
    """The one file of a series; `more` are elements before the pixel data."""
    study = b"1.%d" % number
    return part10(
        element("SpecificCharacterSet", charset)
        + element("SOPClassUID", MR_IMAGE.encode())
        + element("SOPInstanceUID", study + b".1.1")
        + element("PatientName", name)
        + element("PatientID", b"P%d" % number)
        + element("StudyInstanceUID", study)
        + element("SeriesInstanceUID", study + b".1")
        + ROWS
        + more
        + PIXELS
    )


def described(number: int, top: bytes, *inside: bytes | None, defined: bool = True) -> bytes:
    """A file with RequestedProcedureDescription at the top level and in each item of RequestAttributesSequence."""
    descriptions = [b"" if text is None else element("RequestedProcedureDescription", text) for text in inside]
    items = [item(content, defined=defined) for content in descriptions]
    requests = sequence("RequestAttributesSequence", *items, defined=defined)
    return patient(number, more=element("RequestedProcedureDescription", top) + requests)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[ByteTemplate]:
    """The templates that are tried, in order."""
    templates = list[ByteTemplate]()
    original = ByteTemplate.match

    def counted(self: ByteTemplate, buf: bytes, at_end: bool, fetch: Fetch) -> Match | None:
        templates.append(self)
        return original(self, buf, at_end, fetch)

    monkeypatch.setattr(ByteTemplate, "match", counted)
    return templates


class TestOneFileSeries:
    def test_one_file_series_are_matched_from_the_third_on(self) -> None:
        assert count_reads(*(patient(number) for number in range(1, 13))) == ReadCounts(
            matched=10, parsed=2, unsupported=0
        )

    def test_patients_with_another_character_set_have_their_own_template(self) -> None:
        latin = [patient(number, name="Müßig".encode("latin-1")) for number in range(10, 20)]
        unicode = [patient(number, name="Müßig".encode(), charset=b"ISO_IR 192") for number in range(20, 30)]
        # nothing but the character set is new in the second one
        assert count_reads(*latin, *unicode) == ReadCounts(matched=17, parsed=3, unsupported=0)
        pairs = zip(latin, unicode, strict=True)
        assert count_reads(*(content for pair in pairs for content in pair)) == ReadCounts(
            matched=16, parsed=4, unsupported=0
        )

    def test_a_value_may_be_empty_in_some_files(self) -> None:
        names = [b"Doe", b"", b"  ", b"Roe", b"", b"M\xfcller", b"\0\0", b"Doe"]
        contents = [patient(number, name=name) for number, name in enumerate(names, 1)]
        assert count_reads(*contents) == ReadCounts(matched=6, parsed=2, unsupported=0)

    @pytest.mark.parametrize("defined", [True, False], ids=["defined length", "undefined length"])
    def test_an_alternative_path_is_used_if_the_path_has_no_value(self, defined: bool) -> None:
        first = described(1, b"A", b"B", defined=defined)
        others = [
            described(2, b"C", b"D", defined=defined),
            described(3, b"E", None, defined=defined),
            described(4, b"F", b"", defined=defined),
            described(5, b"", None, defined=defined),
            described(6, b"G", defined=defined),
            described(7, b"H", None, b"I", defined=defined),
            described(8, b"", b"K", b"L", defined=defined),
            described(9, b"M\\ N", b"O", defined=defined),
        ]
        assert count_reads(first, *others) == ReadCounts(matched=7, parsed=2, unsupported=0)

    def test_an_unusable_value_is_not_taken_from_the_alternative_path(self) -> None:
        def thick(number: int, outside: bytes, inside: bytes) -> bytes:
            measures = sequence("PixelMeasuresSequence", item(element("SliceThickness", inside)))
            groups = sequence("SharedFunctionalGroupsSequence", item(measures))
            study = element("StudyInstanceUID", b"1.%d" % number)
            return patient(number, more=groups).replace(study, element("SliceThickness", outside) + study)

        contents = [thick(1, b"1", b"2"), thick(2, b"3", b"4"), thick(3, b"", b"5"), thick(4, b"thick", b"6")]
        assert count_reads(*contents) == ReadCounts(matched=2, parsed=2, unsupported=0)

    @pytest.mark.parametrize("vr", ["US", "FD"])
    @pytest.mark.parametrize("in_item", [False, True], ids=["at the top", "in an item"])
    def test_a_pixel_representation_that_pydicom_refuses_is_unsupported(self, vr: str, in_item: bool) -> None:
        def signed(number: int, value: bytes, vr: str = "US") -> bytes:
            requests = sequence("RequestAttributesSequence", item(element("ScheduledProcedureStepID", b"1")))
            representation = element("PixelRepresentation", value.ljust(4, b"\0"), vr, length=len(value))
            representation = representation[: 8 + len(value)]
            if in_item:
                requests = sequence("RequestAttributesSequence", item(representation + requests))
                return patient(number, more=requests)
            return patient(number, more=representation + requests)

        good = [signed(number, b"%c\0" % (number & 1)) for number in range(1, 8)]
        bad = signed(9, b"\1\0\0" if vr == "US" else b"\1\0", vr)
        assert count_reads(*good, bad).matched == 5
        assert count_reads(bad) == ReadCounts(matched=0, parsed=0, unsupported=1)

    def test_few_templates_are_tried_if_files_have_nothing_in_common(self, compared: list[ByteTemplate]) -> None:
        every = [patient(number, more=element(0x00291000 + number, b"1", "LO")) for number in range(1, 401)]
        assert count_reads(*every) == ReadCounts(matched=0, parsed=400, unsupported=0)
        assert len(compared) < 400

    def test_the_number_of_templates_that_are_tried_is_bounded(self, compared: list[ByteTemplate]) -> None:
        rng = random.Random(1)

        def any_shape(number: int) -> bytes:
            """Eight elements may be absent, each in half of the files."""
            more = [element(0x00291000 + place, b"%d" % number, "LO") for place in range(8) if rng.random() < 0.5]
            return patient(number, more=b"".join(more))

        reader, most = FastReader(), 0
        for number in range(1, 1001):
            content, before = any_shape(number), len(compared)
            assert read_fast(reader, content) == read_with_reference(content)
            most = max(most, len(compared) - before)
        assert most <= 12
        assert len(compared) < 2500
        assert reader.counts.unsupported == 0
