"""DICOM files as bytes, element by element, so that a test defines exactly what is in a file."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement

from dicom_etl.headers.catalogue import catalogue
from dicom_etl.headers.reference import Header, read_header
from dicom_etl.headers.row import NoRowError

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
JPEG = "1.2.840.10008.1.2.4.50"
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"
UNDEFINED = 0xFFFFFFFF
_LONG = frozenset("OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())


def element(
    tag: int | str, value: bytes = b"", vr: str | None = None, *, syntax: str = EXPLICIT, length: int | None = None
) -> bytes:
    """An element (PS3.5 7.1); values of odd length are padded.

    Args:
        tag: its number or keyword.
        value: the value field.
        vr: default: as in the data dictionary.
        syntax: IMPLICIT, EXPLICIT or BIG_ENDIAN.
        length: a length that is not the value's.
    """
    if isinstance(tag, str):
        number = tag_for_keyword(tag)
        assert number is not None
        tag = number
    vr = vr or dictionary_VR(tag)[:2]
    if len(value) % 2:
        value += b"\0" if vr in {"UI", "OB", "UN"} else b" "
    length = len(value) if length is None else length
    order = ">" if syntax == BIG_ENDIAN else "<"
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if syntax == IMPLICIT:
        return head + struct.pack("<L", length) + value
    if vr in _LONG:
        return head + vr.encode() + struct.pack(order + "HL", 0, length) + value
    return head + vr.encode() + struct.pack(order + "H", length) + value


def item(content: bytes = b"", *, defined: bool = True, order: str = "<") -> bytes:
    """An item of a sequence, of defined or undefined length."""
    head = struct.pack(order + "HH", 0xFFFE, 0xE000)
    if defined:
        return head + struct.pack(order + "L", len(content)) + content
    return head + struct.pack(order + "L", UNDEFINED) + content + struct.pack(order + "HHL", 0xFFFE, 0xE00D, 0)


def sequence(tag: int | str, *items: bytes, defined: bool = True, vr: str = "SQ", syntax: str = EXPLICIT) -> bytes:
    """A sequence of encoded items, of defined or undefined length."""
    if defined:
        return element(tag, b"".join(items), vr, syntax=syntax)
    order = ">" if syntax == BIG_ENDIAN else "<"
    delimiter = struct.pack(order + "HHL", 0xFFFE, 0xE0DD, 0)
    return element(tag, b"".join(items) + delimiter, vr, syntax=syntax, length=UNDEFINED)


def uids(syntax: str = EXPLICIT, sop_class: str = MR_IMAGE) -> tuple[bytes, bytes]:
    """The UIDs of an instance: those of group 0008, those of group 0020."""
    first = element("SOPClassUID", sop_class.encode(), syntax=syntax) + element(
        "SOPInstanceUID", b"1.2.3", syntax=syntax
    )
    second = element("StudyInstanceUID", b"1.2", syntax=syntax) + element("SeriesInstanceUID", b"1.2.1", syntax=syntax)
    return first, second


def part10(content: bytes, syntax: str = EXPLICIT, *, sop_class: str = MR_IMAGE) -> bytes:
    """A file (PS3.10 7.1): preamble, file meta information, and an encoded data set."""
    meta = b"".join(
        [
            element("FileMetaInformationVersion", b"\0\1"),
            element("MediaStorageSOPClassUID", sop_class.encode()),
            element("MediaStorageSOPInstanceUID", b"1.2.3"),
            element("TransferSyntaxUID", syntax.encode()),
        ]
    )
    return bytes(128) + b"DICM" + element(0x00020000, struct.pack("<L", len(meta)), "UL") + meta + content


def instance(*elements: bytes, syntax: str = EXPLICIT, early: bytes = b"", sop_class: str = MR_IMAGE) -> bytes:
    """A file with the required UIDs, `early` elements (before 0008,0016) and `elements` (after group 0020)."""
    first, second = uids(syntax, sop_class)
    return part10(early + first + second + b"".join(elements), syntax, sop_class=sop_class)


def read(content: bytes, name: str = "1.dcm") -> Header:
    """Read a file with the reference reader."""
    return read_header(io.BytesIO(content), name, len(content))


def refused(content: bytes, name: str = "1.dcm") -> tuple[str, str]:
    """Kind and code of a file that gives no row."""
    try:
        read(content, name)
    except NoRowError as why:
        return why.kind, why.code
    raise AssertionError("it was read")


def values(header: Header) -> dict[str, Any]:
    """The values by column, without those that are None."""
    named = zip(catalogue(), header.values, strict=True)
    return {column.name: value for column, value in named if value is not None}


def problems(header: Header) -> list[tuple[str, str, str]]:
    """Column, code and raw text of each problem."""
    return [(column.name, problem.code, problem.raw) for column, problem in header.problems]


def pydicom_files() -> Iterator[Path]:
    """The test files in the wheel of pydicom; none is downloaded."""
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def relative_name(path: Path) -> str:
    """Its path below the folder of test files."""
    return path.relative_to(Path(pydicom.__file__).parent / "data" / "test_files").as_posix()


def siblings(content: bytes, number: int = 3) -> list[bytes]:
    """Copies of a file that differ in the last digit of the SOPInstanceUID, if pydicom finds one."""
    dataset = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, force=True)
    found = dataset.get_item("SOPInstanceUID")
    deflated = DEFLATED.encode() in content[:1000]  # positions are those in the inflated bytes
    if not isinstance(found, RawDataElement) or not found.value or deflated:
        return [content] * number
    last = found.value_tell + len(found.value.rstrip(b"\0 ")) - 1
    return [content[:last] + b"%d" % digit + content[last + 1 :] for digit in range(number)]
