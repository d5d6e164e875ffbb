"""The reference reader: one DICOM header, read by pydicom -> the values of the catalogue and the tag profile.

Its result is the correct one by definition; that of any other reader must be equal (`fast`).
"""

from __future__ import annotations

import errno
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, cast

import pydicom
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from dicom_etl.headers.catalogue import Column, catalogue, columns_by_name
from dicom_etl.headers.pixel_data import (
    PIXEL_DATA_PROVIDER_URL,
    PixelData,
    ends_with_delimiter,
    is_image_storage,
    is_truncated,
)
from dicom_etl.headers.row import ColumnProblem, NoRowError
from dicom_etl.headers.tag_profile import (
    EMPTY,
    END,
    FILLED,
    TagProfile,
    element_code,
    is_private_creator,
    pack_codes,
)
from dicom_etl.headers.values import (
    DEFAULT_CODECS,
    SPECIFIC_CHARACTER_SET,
    Decoded,
    Problem,
    Value,
    decode,
    decode_text,
    effective_vr,
    is_empty,
    read_character_set,
)

# Limits for hostile files. The largest real headers (segmentations and contours of 100,000 items) are below them.
MAX_READS = 5_000_000
_MAX_INFLATED = 1 << 30
_LARGE_READ = 1 << 20

_REQUIRED = ("SOPClassUID", "SOPInstanceUID")
_UNDEFINED = 0xFFFFFFFF
_DICOM_SUFFIXES = frozenset({"", ".dcm", ".dicom", ".dic", ".ima"})
# The errors of pydicom on damaged files, found by reading its code and by mutating files.
_DAMAGE_ERRORS = (
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


@dataclass(frozen=True)
class Header:
    """A header: values in the order of the catalogue, the tag profile, and the problems."""

    values: tuple[Value, ...]
    tag_profile: TagProfile
    problems: tuple[ColumnProblem, ...]
    pixel_data_truncated: bool
    pixel_data_absent: bool  # of an image: the file has a header only, or ends between two elements


def read_header(file: BinaryIO, name: str, size: int) -> Header:
    """Read the header of an open file.

    Args:
        file: at its beginning.
        name: used only to decide whether a file that is not DICOM should be.
        size: of the file.

    Raises:
        NoRowError: the file gives no row.
        OSError: it cannot be read now; it may be undamaged.
    """
    start = file.read(140)
    _check_start(start, name, size)
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydicom: problems become findings
        try:
            dataset = pydicom.dcmread(cast(BinaryIO, _LimitedFile(file, size)), stop_before_pixels=True, force=True)
            if dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
                raise NoRowError("dicomdir", "dicomdir")
            has_preamble = start[128:132] == b"DICM"
            if not has_preamble and not all(keyword in dataset for keyword in _REQUIRED):
                raise _not_dicom(name)  # only its first bytes are like those of an element
            return _make_header(dataset, _check_pixel_data(file, dataset, size))
        except _DAMAGE_ERRORS as error:
            # a forged length makes a seek that the system refuses; any other system error is of the disk or network
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL, errno.EOVERFLOW):
                raise
            message = f"{type(error).__name__}: {error}"[:200]
            raise NoRowError("unreadable", "header-unreadable", message) from error


def _check_start(start: bytes, name: str, size: int) -> None:
    """Check that it can be DICOM at all: DICM at 128 (PS3.10 7.1), or a first element of group 0002 or 0008."""
    is_expected = PurePosixPath(name).suffix.lower() in _DICOM_SUFFIXES
    if size == 0 or not start:
        raise NoRowError("unreadable", "file-empty") if is_expected else NoRowError("other", "non-dicom-file")
    if start[128:132] == b"DICM":
        return
    # `force` of pydicom takes any bytes for a data set of one or two elements: only plausible ones are forced
    group = start[:2]
    if len(start) >= 8 and ((group in (b"\x08\0", b"\x02\0") and start[3] == 0) or start[:4] == b"\0\x08\0\x05"):
        return
    raise _not_dicom(name)


def _not_dicom(name: str) -> NoRowError:
    has_dicom_suffix = PurePosixPath(name).suffix.lower() in _DICOM_SUFFIXES - {""}
    return NoRowError("other", "file-not-dicom" if has_dicom_suffix else "non-dicom-file")


class _LimitedFile:
    """An open file with limits on the number of reads, on their size, and on the size of an inflated data set."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._read, self._reads_left, self._size = file.read, MAX_READS, size

    def read(self, size: int = -1) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise ValueError(f"the header has more than {MAX_READS // 2:,} elements")
        if size > _LARGE_READ:  # memory is allocated for the requested size, and lengths may be forged
            size = min(size, max(0, self._size - self.tell()))
        content = self._read(size)
        if size < 0:  # pydicom reads to the end only what it is going to inflate
            _check_inflated_size(content)
        return content


def _check_inflated_size(content: bytes) -> None:
    inflating, rest, inflated = zlib.decompressobj(-zlib.MAX_WBITS), content, 0
    while rest:
        inflated += len(inflating.decompress(rest, 1 << 24))
        if inflated > _MAX_INFLATED:
            raise ValueError(f"the data set inflates to more than {_MAX_INFLATED:,} bytes")
        rest = inflating.unconsumed_tail


def _check_pixel_data(file: BinaryIO, dataset: FileDataset, size: int) -> PixelData:
    """Whether the pixel data are complete, truncated, or absent (which may be correct).

    Raises:
        NoRowError: the header itself is truncated, so that the elements that follow are unknown.
    """
    elements = dataset._dict.values()
    if not elements:
        raise NoRowError("unreadable", "header-truncated")
    last = max(elements, key=_value_position)
    if isinstance(last, RawDataElement) and last.length != _UNDEFINED and len(last.value or b"") < last.length:
        raise NoRowError("unreadable", "header-truncated")
    if dataset.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return "complete"  # a truncated one cannot be inflated
    order = "<" if dataset.original_encoding[1] else ">"
    position = file.tell()
    if position < size:
        return "truncated" if is_truncated(file, file.read(12), position, size, order) else "complete"
    if isinstance(last, RawDataElement) and last.length != _UNDEFINED:
        ends_here = last.value_tell + last.length == size
    else:
        ends_here = ends_with_delimiter(file, size, order)
    if not ends_here:
        raise NoRowError("unreadable", "header-truncated")
    return "absent"


def _value_position(element: RawDataElement | DataElement) -> int:
    return (element.value_tell if isinstance(element, RawDataElement) else element.file_tell) or 0


def _make_header(dataset: FileDataset, pixel_data: PixelData) -> Header:
    codecs, problem = _character_set(dataset, DEFAULT_CODECS)
    problems = [ColumnProblem(columns_by_name()["SpecificCharacterSet"], problem)] if problem else []
    little = bool(dataset.original_encoding[1])
    values: list[Value] = []
    for column in catalogue():
        value, problem = _read_column(dataset, column, codecs, little)
        values.append(value)
        if problem:
            problems.append(ColumnProblem(column, problem))
    missing = [c.name for c, v in zip(catalogue(), values, strict=True) if c.name in _REQUIRED and not v]
    if missing:
        raise NoRowError("unreadable", "required-uid-missing", f"{' and '.join(missing)} absent or empty")
    is_absent = (
        pixel_data == "absent" and is_image_storage(dataset.SOPClassUID) and PIXEL_DATA_PROVIDER_URL not in dataset
    )
    return Header(tuple(values), _read_tag_profile(dataset), tuple(problems), pixel_data == "truncated", is_absent)


def _character_set(dataset: Dataset, inherited: tuple[str, ...]) -> tuple[tuple[str, ...], Problem | None]:
    """The codecs of a data set, inherited from the one around it if it has no character set, and the problem."""
    element = dataset._dict.get(BaseTag(SPECIFIC_CHARACTER_SET))
    return (inherited, None) if element is None else read_character_set(_raw_value(element) or b"")


def _read_column(dataset: FileDataset, column: Column, codecs: tuple[str, ...], little: bool) -> Decoded:
    """The value of a column: under its path, else under the alternative one."""
    top: Dataset = dataset
    if column.tag >> 16 == 2:
        top, little = dataset.file_meta, True  # which is always little endian (PS3.10 7.1)
    decoded = _read_path(top, column.path, column, codecs, little)
    if decoded.value is None and decoded.problem is None and column.alternative_path:
        return _read_path(top, column.alternative_path, column, codecs, little)
    return decoded


def _read_path(
    dataset: Dataset, path: tuple[int, ...], column: Column, codecs: tuple[str, ...], little: bool
) -> Decoded:
    for tag in path[:-1]:
        item = _first_item(dataset, tag)
        if item is None:
            return Decoded(None)
        dataset = item
        codecs, _ = _character_set(dataset, codecs)
    element = dataset._dict.get(BaseTag(path[-1]))
    if element is None:
        return Decoded(None)
    vr = column.vr if element.VR is None or element.VR == "UN" else str(element.VR)
    raw = _raw_value(element)
    return Decoded(None) if raw is None else decode(column.kind, vr, raw, codecs, little)


def _first_item(dataset: Dataset, tag: int) -> Dataset | None:
    if tag not in dataset:
        return None
    value = dataset[tag].value
    return value[0] if dataset[tag].VR == "SQ" and value else None


def _raw_value(element: RawDataElement | DataElement) -> bytes | None:
    """The bytes of an element's value; None if it is a sequence."""
    if isinstance(element, RawDataElement):
        return element.value or b""
    value = element.value
    if isinstance(value, bytes):
        return value
    if element.VR == "SQ":
        return None
    # pydicom converts elements of the file meta information while it reads them
    parts = value if isinstance(value, pydicom.multival.MultiValue) else [value]
    return "\\".join("" if part is None else str(part) for part in parts).encode("utf-8", "surrogateescape")


def _read_tag_profile(dataset: Dataset) -> TagProfile:
    """The tag profile of a top-level data set."""
    elements = dataset._dict
    codes = [
        element_code(int(tag), _status(tag, elements[tag]))
        for tag in sorted(elements)
        if 0x00030000 <= tag < END and tag & 0xFFFF
    ]
    creators = sorted(
        (int(tag), decode_text("LO", raw, DEFAULT_CODECS)[0])
        for tag, element in elements.items()
        if is_private_creator(tag) and (raw := _raw_value(element))
    )
    return TagProfile(pack_codes(codes), tuple(creators))


def _status(tag: int, element: RawDataElement | DataElement) -> int:
    if isinstance(element, DataElement) and element.VR == "SQ":
        return FILLED if len(element.value) else EMPTY
    return EMPTY if is_empty(effective_vr(tag, element.VR), _raw_value(element)) else FILLED
