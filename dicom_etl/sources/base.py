"""The Source protocol: what a kind of source must be able to say.

A source yields the files of a dataset, each with the unit it belongs to (the smallest thing that is read, built,
uploaded and replaced on its own), and opens them. It never looks into a DICOM file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple, Protocol, Self

from dicom_etl.errors import UserError
from dicom_etl.findings import Finding
from dicom_etl.settings import DatasetSettings

ROOT_UNIT = "."  # the unit of files that lie in no subject's folder


class SourceError(UserError):
    """A dataset cannot be crawled at all; the text is one sentence."""


class Entry(NamedTuple):
    """A file of a dataset: `path` relative to its root with forward slashes, `mtime` in ns since 1970.

    A member of an archive has the path `a.zip!/x.dcm`, its size inflated, and the `mtime` of the archive.
    """

    path: str
    unit: str
    subject: str | None
    sample: str | None
    role: str
    size: int
    mtime: int


class SheetCell(NamedTuple):
    """A filled cell of a metadata sheet: row counted from 1, field as normalised (`subject id`)."""

    sheet: str
    path: str
    row: int
    subject: str | None
    sample: str | None
    field: str
    value: str


@dataclass
class Scan:
    """What a scan says beside the files: filled while `Source.scan` is consumed.

    `former_cells` is given: what the sheets said last time, for those that cannot be read now.
    """

    former_cells: Sequence[SheetCell] = ()
    cells: list[SheetCell] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unread_folders: list[str] = field(default_factory=list)  # what lies below is not gone, but unknown
    unread_files: list[str] = field(default_factory=list)


class Source(Protocol):
    """A dataset's files. Instances travel to worker processes."""

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        ...

    @property
    def location(self) -> str:
        """Where it lies, for people and for the Endpoint."""
        ...

    @classmethod
    def of(cls, dataset: str, settings: DatasetSettings) -> Self:
        """The source that the settings describe; SourceError where it is not there."""
        ...

    def scan(self, scan: Scan) -> Iterator[Entry]:
        """All files that may be DICOM, in any order; everything else is said in `scan`."""
        ...

    def open(self, path: str) -> BinaryIO:
        """Open the file of an entry, to be read and sought in; reads are short at its end alone."""
        ...
