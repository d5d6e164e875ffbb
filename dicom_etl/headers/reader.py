"""The reader that decides: one DICOM header by pydicom -> the values of the catalogue and the tag profile.

Everything any other reader says must equal what this one says. What cannot be a row is a `NotRead` with the kind of
file it is and the reason.
"""

from __future__ import annotations

import errno
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple, cast

import pydicom
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from dicom_etl.headers.catalogue import Column, catalogue
from dicom_etl.headers.tag_profile import EMPTY, END, FILLED, TagProfile, code_of, joined
from dicom_etl.headers.values import Decoded, Problem, Value, decode, encodings_of, is_empty, text_of

# Raised when what these readers make of a file changes, so that files are read again.
READER_VERSION = 2

CHARACTER_SET = 0x00080005
_REQUIRED = ("SOPClassUID", "SOPInstanceUID")
_PIXEL_DATA = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
PIXEL_DATA_PROVIDER_URL = 0x00287FE0
_LONG_VRS = frozenset(VR.encode() for VR in EXPLICIT_VR_LENGTH_32)
_ITEM, _DELIMITER = 0xFFFEE000, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
# Limits against hostile files. The largest real headers (segmentations and contours of 100,000 items) stay below.
_MOST_READS = 5_000_000
_MOST_INFLATED = 1 << 30
_LARGE_READ = 1 << 20
_DICOM_SUFFIXES = frozenset({"", ".dcm", ".dicom", ".dic", ".ima"})
# What pydicom raises on damaged files, found by reading and by mutating files.
_DAMAGED = (
    InvalidDicomError,
    BytesLengthException,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    MemoryError,
    struct.error,
    zlib.error,
)


class NotRead(Exception):  # noqa: N818  (a DICOMDIR is no error)
    """A file that gives no row: its kind (dicomdir, other, unreadable), a code of the findings, details."""

    def __init__(self, kind: str, code: str, message: str | None = None) -> None:
        super().__init__(message or code)
        self.kind, self.code, self.message = kind, code, message


class ColumnProblem(NamedTuple):
    """A value that is not in its column as the file has it."""

    column: Column
    problem: Problem


@dataclass(frozen=True)
class Header:
    """One header: values in the order of the catalogue, the tag profile, and what was wrong."""

    values: tuple[Value, ...]
    tag_profile: TagProfile
    problems: tuple[ColumnProblem, ...]
    pixel_data_cut: bool
    pixel_data_absent: bool  # of an image: a header kept alone, or a file that ends between two elements


def read_header(file: BinaryIO, name: str, size: int) -> Header:
    """The header of an open file of `size` bytes; `name` tells only whether a non-DICOM should be one.

    Raises:
        NotRead: the file gives no row.
        OSError: it cannot be read now; it may be whole.
    """
    start = file.read(140)
    _sniff(start, name, size)
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what pydicom warns of, we judge ourselves
        try:
            dataset = pydicom.dcmread(cast(BinaryIO, _Bounded(file, size)), stop_before_pixels=True, force=True)
            if dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
                raise NotRead("dicomdir", "dicomdir")
            has_preamble = start[128:132] == b"DICM"
            if not has_preamble and not all(keyword in dataset for keyword in _REQUIRED):
                raise _no_dicom(name)  # it only began like an element
            pixels = _pixel_data(file, dataset, size)
            return _header(dataset, pixels)
        except _DAMAGED as error:
            # a forged length makes a seek that the system refuses; any other error is the disk's or the network's
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL, errno.EOVERFLOW):
                raise
            raise NotRead("unreadable", "header-unreadable", f"{type(error).__name__}: {error}"[:200]) from error


def _sniff(start: bytes, name: str, size: int) -> None:
    """Whether it can be DICOM at all: DICM at 128 (PS3.10 7.1), or a first element of group 0002 or 0008."""
    expected = PurePosixPath(name).suffix.lower() in _DICOM_SUFFIXES
    if size == 0 or not start:
        raise NotRead("unreadable", "file-empty") if expected else NotRead("other", "non-dicom-file")
    if start[128:132] == b"DICM":
        return
    # pydicom's force takes any bytes for a data set of one or two elements: only plausible ones are forced
    group = start[:2]
    if len(start) >= 8 and ((group in (b"\x08\0", b"\x02\0") and start[3] == 0) or start[:4] == b"\0\x08\0\x05"):
        return
    raise _no_dicom(name)


def _no_dicom(name: str) -> NotRead:
    named = PurePosixPath(name).suffix.lower() in _DICOM_SUFFIXES - {""}
    return NotRead("other", "file-not-dicom" if named else "non-dicom-file")


class _Bounded:
    """An open file with limits on the number of reads, on their size, and on what a deflated data set may become."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._read, self._left, self._size = file.read, _MOST_READS, size

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"the header has more than {_MOST_READS // 2:,} elements")
        if size > _LARGE_READ:  # memory is taken for as much as is asked for, and lengths may be forged
            size = min(size, max(0, self._size - self.tell()))
        content = self._read(size)
        if size < 0:  # pydicom reads so only what it is going to inflate
            _check_inflated(content)
        return content


def _check_inflated(content: bytes) -> None:
    inflating, rest, inflated = zlib.decompressobj(-zlib.MAX_WBITS), content, 0
    while rest:
        inflated += len(inflating.decompress(rest, 1 << 24))
        if inflated > _MOST_INFLATED:
            raise ValueError(f"the data set inflates to more than {_MOST_INFLATED:,} bytes")
        rest = inflating.unconsumed_tail


def _pixel_data(file: BinaryIO, dataset: FileDataset, size: int) -> str:
    """What is there of the pixel data: whole, cut, or absent (which may be as it should).

    Raises:
        NotRead: the header itself is cut; what follows the cut is not absent but unknown.
    """
    elements = dataset._dict.values()
    if not elements:
        raise NotRead("unreadable", "header-truncated")
    last = max(elements, key=_value_at)
    if isinstance(last, RawDataElement) and last.length != _UNDEFINED and len(last.value or b"") < last.length:
        raise NotRead("unreadable", "header-truncated")
    if dataset.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return "whole"  # a cut in it cannot be inflated
    little = bool(dataset.original_encoding[1])
    position = file.tell()
    if position < size:
        cut = pixels_cut(file, file.read(12), position, size, "<" if little else ">")
        return "cut" if cut else "whole"
    if not _ends_at(file, last, size, "<" if little else ">"):
        raise NotRead("unreadable", "header-truncated")
    return "absent"


def _value_at(element: RawDataElement | DataElement) -> int:
    return (element.value_tell if isinstance(element, RawDataElement) else element.file_tell) or 0


def _ends_at(file: BinaryIO, last: RawDataElement | DataElement, size: int, order: str) -> bool:
    """Whether the last element ends where the file ends."""
    if isinstance(last, RawDataElement) and last.length != _UNDEFINED:
        return bool(last.value_tell + last.length == size)
    file.seek(size - 8)  # PS3.5 7.5.1: undefined length ends with a delimitation item of 8 bytes
    return _tag(file.read(8), order) == _DELIMITER


def _tag(head: bytes, order: str) -> int:
    group, element = struct.unpack_from(order + "HH", head)
    return int(group << 16 | element)


def pixels_cut(file: BinaryIO, head: bytes, position: int, size: int, order: str) -> bool:
    """Whether the pixel data element at `position`, which begins with `head` (12 bytes), ends beyond the file."""
    if _tag(head, order) not in _PIXEL_DATA:
        raise NotRead("unreadable", "header-unreadable", f"the data set breaks off at byte {position}")
    if head[4:6] in _LONG_VRS:
        begin, length = position + 12, struct.unpack_from(order + "L", head, 8)[0]
    elif head[4:6].isalpha() and head[4:6].isupper():
        begin, length = position + 8, struct.unpack_from(order + "H", head, 6)[0]
    else:  # implicit VR
        begin, length = position + 8, struct.unpack_from(order + "L", head, 4)[0]
    return _fragments_cut(file, begin, size, order) if length == _UNDEFINED else begin + length > size


def _fragments_cut(file: BinaryIO, begin: int, size: int, order: str) -> bool:
    """Whether encapsulated pixel data (PS3.5 A.4) lacks its end."""
    file.seek(max(begin, size - 8))
    if _tag(file.read(8).ljust(4, b"\0"), order) == _DELIMITER:
        return False
    for _ in range(_MOST_READS):
        file.seek(begin)
        head = file.read(8)
        if len(head) < 8 or _tag(head, order) != _ITEM:
            return len(head) < 8 or _tag(head, order) != _DELIMITER
        begin += 8 + struct.unpack_from(order + "L", head, 4)[0]
    return True


def _header(dataset: FileDataset, pixels: str) -> Header:
    encodings, problems = _encodings(dataset, ("iso8859",))
    little = bool(dataset.original_encoding[1])
    values: list[Value] = []
    found = [ColumnProblem(_charset_column(), problem) for problem in problems]
    for column in catalogue():
        value, problem = _column(dataset, column, encodings, little)
        values.append(value)
        if problem:
            found.append(ColumnProblem(column, problem))
    _require(values)
    absent = pixels == "absent" and shows_images(dataset.SOPClassUID) and PIXEL_DATA_PROVIDER_URL not in dataset
    return Header(tuple(values), tag_profile_of(dataset), tuple(found), pixels == "cut", absent)


@lru_cache(maxsize=512)
def shows_images(sop_class: str) -> bool:
    """Whether the SOP class is one of images, whose pixels the file itself should hold."""
    return "Image Storage" in UID(sop_class).name


def _require(values: list[Value]) -> None:
    missing = [c.name for c, v in zip(catalogue(), values, strict=True) if c.name in _REQUIRED and not v]
    if missing:
        raise NotRead("unreadable", "required-uid-missing", f"{' and '.join(missing)} absent or empty")


def _charset_column() -> Column:
    return next(column for column in catalogue() if column.tag == CHARACTER_SET)


def _encodings(dataset: Dataset, inherited: tuple[str, ...]) -> tuple[tuple[str, ...], list[Problem]]:
    """The encodings of a data set, or those of the one around it."""
    element = dataset._dict.get(pydicom.tag.BaseTag(CHARACTER_SET))
    if element is None:
        return inherited, []
    raw = _raw(element)
    text = text_of("CS", raw, inherited)[0] if raw else ""
    encodings, known = encodings_of(text)
    return encodings, [] if known else [Problem("charset-error", text)]


def _column(dataset: FileDataset, column: Column, encodings: tuple[str, ...], little: bool) -> Decoded:
    """The value of a column: from its first place, else from the second."""
    top: Dataset = dataset
    if column.tag >> 16 == 2:
        top, little = dataset.file_meta, True  # it is always little endian (PS3.10 7.1)
    decoded = _at(top, column.path, column, encodings, little)
    if decoded.value is None and decoded.problem is None and column.also:
        return _at(top, column.also, column, encodings, little)
    return decoded


def _at(dataset: Dataset, path: tuple[int, ...], column: Column, encodings: tuple[str, ...], little: bool) -> Decoded:
    for tag in path[:-1]:
        item = _first_item(dataset, tag)
        if item is None:
            return Decoded(None)
        dataset = item
        encodings, _ = _encodings(dataset, encodings)
    element = dataset._dict.get(pydicom.tag.BaseTag(path[-1]))
    if element is None:
        return Decoded(None)
    vr = _vr(element, column.vr)
    raw = _raw(element)
    return Decoded(None) if raw is None else decode(column.kind, vr, raw, encodings, little)


def _first_item(dataset: Dataset, tag: int) -> Dataset | None:
    if tag not in dataset:
        return None
    value = dataset[tag].value
    return value[0] if dataset[tag].VR == "SQ" and value else None


def _raw(element: RawDataElement | DataElement) -> bytes | None:
    """The bytes of an element's value; None where it is a sequence."""
    if isinstance(element, RawDataElement):
        return element.value or b""
    value = element.value
    if isinstance(value, bytes):
        return value
    if element.VR == "SQ":
        return None
    # file meta elements are converted by pydicom while it reads them
    parts = value if isinstance(value, pydicom.multival.MultiValue) else [value]
    return "\\".join("" if part is None else str(part) for part in parts).encode("utf-8", "surrogateescape")


def _vr(element: RawDataElement | DataElement, expected: str) -> str:
    vr = element.VR
    return expected if vr is None or vr == "UN" else str(vr)


def tag_profile_of(dataset: Dataset) -> TagProfile:
    """Which elements of a top-level data set are there, and which are filled."""
    elements = dataset._dict
    codes = [
        code_of(int(tag), _status(tag, elements[tag]))
        for tag in sorted(elements)
        if 0x00030000 <= tag < END and tag & 0xFFFF
    ]
    return TagProfile(joined(codes), tuple(sorted(_creators(dataset))))


def _creators(dataset: Dataset) -> Iterator[tuple[int, str]]:
    """Private creators (PS3.5 7.8.1) by the tag of their block."""
    for tag, element in dataset._dict.items():
        if tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF and (raw := _raw(element)):
            yield int(tag), text_of("LO", raw, ("iso8859",))[0]


def _status(tag: int, element: RawDataElement | DataElement) -> int:
    if isinstance(element, DataElement) and element.VR == "SQ":
        return FILLED if len(element.value) else EMPTY
    return EMPTY if is_empty(tag_profile_vr(tag, element.VR), _raw(element)) else FILLED


@lru_cache(maxsize=8192)
def tag_profile_vr(tag: int, vr: str | None) -> str | None:
    """The VR that decides whether a value is empty: as written, else of the data dictionary."""
    if (vr is None or vr == "UN") and not tag >> 16 & 1 and dictionary_has_tag(tag):
        return dictionary_VR(tag)
    return vr
