"""Rules for pixel data, which follow the header: whether they are complete, and which objects should have them.

Both readers use them. Nothing of the pixel data itself is read.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import BinaryIO, Literal

from pydicom.uid import UID
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from dicom_etl.headers.row import NoRowError

PIXEL_DATA_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
PIXEL_DATA_PROVIDER_URL = 0x00287FE0

# as far as the file has them; `absent` may be correct
PixelData = Literal["complete", "truncated", "absent"]

_LONG_VRS = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_32)
_ITEM, _DELIMITER = 0xFFFEE000, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_MAX_FRAGMENTS = 5_000_000  # of hostile files


@lru_cache(maxsize=512)
def is_image_storage(sop_class: str) -> bool:
    """Whether the SOP class is one of images, so that the file itself should have pixel data."""
    return "Image Storage" in UID(sop_class).name


def is_truncated(file: BinaryIO, head: bytes, position: int, size: int, order: str) -> bool:
    """Whether the pixel data element ends beyond the end of the file.

    Args:
        file: seekable.
        head: the first 12 bytes of the element.
        position: of the element in the file.
        size: of the file.
        order: byte order, as in `struct`.

    Raises:
        NoRowError: it is not a pixel data element.
    """
    if read_tag(head, order) not in PIXEL_DATA_TAGS:
        raise NoRowError(
            "unreadable", "header-unreadable", f"the data set is damaged at byte {position}: no pixel data element"
        )
    if head[4:6] in _LONG_VRS:
        begin, length = position + 12, struct.unpack_from(order + "L", head, 8)[0]
    elif head[4:6].isalpha() and head[4:6].isupper():
        begin, length = position + 8, struct.unpack_from(order + "H", head, 6)[0]
    else:  # implicit VR
        begin, length = position + 8, struct.unpack_from(order + "L", head, 4)[0]
    return _are_fragments_truncated(file, begin, size, order) if length == _UNDEFINED else begin + length > size


def _are_fragments_truncated(file: BinaryIO, begin: int, size: int, order: str) -> bool:
    """Whether encapsulated pixel data (PS3.5 A.4) have no end."""
    file.seek(max(begin, size - 8))
    if read_tag(file.read(8).ljust(4, b"\0"), order) == _DELIMITER:
        return False
    for _ in range(_MAX_FRAGMENTS):
        file.seek(begin)
        head = file.read(8)
        if len(head) < 8 or read_tag(head, order) != _ITEM:
            return len(head) < 8 or read_tag(head, order) != _DELIMITER
        begin += 8 + struct.unpack_from(order + "L", head, 4)[0]
    return True


def ends_with_delimiter(file: BinaryIO, size: int, order: str) -> bool:
    """Whether a file ends with a sequence delimitation item (PS3.5 7.5.1), and so with a value of undefined length."""
    file.seek(size - 8)
    return read_tag(file.read(8), order) == _DELIMITER


def read_tag(head: bytes, order: str) -> int:
    """The tag at the beginning of an element."""
    group, element = struct.unpack_from(order + "HH", head)
    return int(group << 16 | element)
