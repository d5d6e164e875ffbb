"""The fast reader: a header as differences from a similar one; everything unusual by the reference reader.

Its results equal those of `reference.read_header`, value by value: tests compare both on all files that pydicom ships,
on generated and on damaged ones.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO, NamedTuple, cast

from dicom_etl.headers.fast.byte_template import Match
from dicom_etl.headers.fast.encoding import IncompleteData, NotPlainError
from dicom_etl.headers.fast.file_content import FileContent, InflatedContent
from dicom_etl.headers.fast.parsed_header import ParsedHeader
from dicom_etl.headers.fast.parser import DEFLATED, Parser, SkipValue, parse_file_meta
from dicom_etl.headers.fast.template import Template
from dicom_etl.headers.fast.template_cache import TemplateCache, TemplateGroup
from dicom_etl.headers.reference import read_header
from dicom_etl.headers.row import Row, SharedValues

_FIRST_READ = 8192  # bytes
_SMALL_DATA_SET = 1 << 16  # bytes of an inflated one that is read at once
_MAX_HEADER = 1 << 23  # bytes; a larger one is left to the reference reader, which counts its elements
_MAX_SKIPPED = 100  # values
_MAX_SERIES_TEMPLATE = 1 << 18  # bytes of a header that is kept as a template of its series
_MAX_MODEL_TEMPLATE = 1 << 16  # and as one of its scanner model
_MAX_SERIES, _MAX_TEMPLATES_OF_SERIES = 64, 4
_MAX_MODELS, _MAX_TEMPLATES_OF_MODEL = 32, 12
_FEW_FILES = 4  # of a series, which are read by the templates of their scanner model before it is worth having others

# tags as bytes, to search for
_SERIES_INSTANCE_UID = b"\x20\x00\x0e\x00"
_MODEL_NAME = b"\x08\x00\x90\x10"
_MODEL_NAME_BEFORE = 4096  # bytes
_TRANSFER_SYNTAX_UID = b"\x02\x00\x10\x00UI"
_MAX_KEY = 64


class ReadCounts(NamedTuple):
    """The numbers of files by the way in which they were read."""

    matched: int  # by a template
    parsed: int  # in full, since no template matched
    unsupported: int  # by the reference reader


class FastReader:
    """Reads headers one after the other; the more similar neighbours are, the faster.

    Templates are kept twice. The headers of a series have a few forms, in which about ten elements vary. The files of a
    scanner model have a few forms, too, in which some fifty elements vary: their templates read series of few files.
    """

    def __init__(self) -> None:
        self._last: Template | None = None
        self._first_read = _FIRST_READ
        self._series = TemplateCache(_MAX_SERIES, _MAX_TEMPLATES_OF_SERIES)
        self._models = TemplateCache(_MAX_MODELS, _MAX_TEMPLATES_OF_MODEL)
        self._matched = self._parsed = self._unsupported = 0

    @property
    def counts(self) -> ReadCounts:
        """The numbers of files so far."""
        return ReadCounts(self._matched, self._parsed, self._unsupported)

    def read(self, file: BinaryIO, name: str, size: int) -> Row:
        """Read the header of an open file.

        Args:
            file: at its beginning.
            name: used only to decide whether a file that is not DICOM should be.
            size: of the file.

        Raises:
            NoRowError: the file gives no row.
            OSError: it cannot be read now.
        """
        try:
            return self._read(FileContent(file, size))
        except (NotPlainError, IncompleteData, struct.error, ValueError, LookupError):
            # whatever the bytes have caused here, the reference reader decides
            self._unsupported += 1
        file.seek(0)
        # pydicom reads in small steps
        buffered = cast(BinaryIO, io.BufferedReader(file)) if isinstance(file, io.RawIOBase) else file
        header = read_header(buffered, name, size)
        shared = SharedValues(header.values, (), header.tag_profile)
        return Row(
            shared, (), header.tag_profile, header.problems, header.pixel_data_truncated, header.pixel_data_absent
        )

    def _read(self, content: FileContent) -> Row:
        buf, at_end = content.fetch(0, self._first_read)
        if self._last and (row := self._last.match(buf, at_end, content)):
            self._matched += 1
            return row
        # the transfer syntax comes early: its value is found faster than by a search for it
        if buf.startswith(DEFLATED, buf.find(_TRANSFER_SYNTAX_UID, 132, 1024) + 8):
            meta = parse_file_meta(buf)
            if meta.transfer_syntax == DEFLATED:
                content = InflatedContent(content, buf[: meta.end])
                buf, at_end = content.fetch(0, content.size if content.size < _SMALL_DATA_SET else self._first_read)
        series = self._series.group(_find_value(_SERIES_INSTANCE_UID, buf, len(buf)))
        if match := series.match(buf, at_end, content):
            template, row = match
            self._expect(template)
            self._matched += 1
            return row
        model = None
        if series.files_offered < _FEW_FILES:
            series.files_offered += 1
            model = self._models.group(_find_value(_MODEL_NAME, buf, _MODEL_NAME_BEFORE))
            if match := model.match(buf, at_end, content):
                template, row = match
                self._expect(template, of_series=False)
                self._matched += 1
                return row
        row = self._parse(series, model, buf, at_end, content)
        self._parsed += 1
        return row

    def _parse(
        self, series: TemplateGroup, model: TemplateGroup | None, buf: bytes, at_end: bool, content: FileContent
    ) -> Row:
        """Read a file in full, and learn templates from it."""
        header_buf, parser, skipped = _parse_header(buf, at_end, content)
        extended = series.learn(header_buf, parser)
        if extended and (row := extended.match(buf, at_end, content)):
            self._expect(extended)
            return row
        header = ParsedHeader(header_buf, parser)
        tail = header_buf[parser.end : parser.end + 12]
        end = Match([], 0, tail, parser.end + skipped, parser.has_pixel_data)
        row = Template(header).own_row(end, content)
        # what varies within a series is left to its own templates
        if model and not series.templates and parser.end <= _MAX_MODEL_TEMPLATE:
            model.learn(header_buf, parser, share_varying=True) or model.keep(header)
        if parser.end <= _MAX_SERIES_TEMPLATE and (kept := series.keep(header)):
            self._expect(kept)
        return row

    def _expect(self, template: Template, *, of_series: bool = True) -> None:
        """Expect the next file to match a template; one of its series is tried first."""
        self._last = template if of_series else None
        first_read = template.byte_template.first_read if template.byte_template else _FIRST_READ
        self._first_read = first_read if of_series else max(first_read, _FIRST_READ)


def _find_value(tag: bytes, buf: bytes, before: int) -> bytes | None:
    """The probable value of an element: used as the key of templates, and for nothing else."""
    position = buf.find(tag, 132, before)
    if position < 0 or position + 8 > len(buf):
        return None
    start = position + 8
    # in explicit VR two letters and 16 bits of length; in implicit VR 32 bits
    length = buf[position + 6] if buf[position + 4 : position + 6].isalpha() else buf[position + 4]
    return buf[start : start + min(length, _MAX_KEY)]


def _parse_header(buf: bytes, at_end: bool, content: FileContent) -> tuple[bytes, Parser, int]:
    """Parse a header with as many bytes as it has: these bytes, the parser, and how many were skipped."""
    parser, skipped = Parser(inflated=content.inflated), 0
    while True:
        try:
            parser.parse(buf, at_end=at_end)
            return buf, parser, skipped
        except SkipValue as value:
            skipped += value.length
            if value.start + skipped > content.size or len(parser.skipped) >= _MAX_SKIPPED:
                raise NotPlainError("many large values") from None
            more, at_end = content.fetch(value.start + skipped, 2 * _FIRST_READ)
            buf = buf[: value.start] + more
            parser.skipped[value.start] = value.length
        except IncompleteData:
            if at_end or len(buf) > _MAX_HEADER // 3:
                raise NotPlainError("the file ends within the header") from None
            more, at_end = content.fetch(len(buf) + skipped, 2 * len(buf))
            buf += more
