"""The two interfaces of this package: `Source` (a kind of source) and `ArchiveFormat` (a kind of archive).

A source lists the files of a dataset, each with the unit it belongs to (the smallest thing that is read, built,
uploaded and replaced on its own), and opens them. It never looks into a DICOM file. An archive format lists and opens
the members of one archive file; it knows nothing of datasets, subjects or findings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, Self

from dicom_etl.errors import UserError
from dicom_etl.findings import Finding
from dicom_etl.settings import DatasetSettings

ROOT_UNIT = "."  # the unit of files that are in no subject's folder


class SourceError(UserError):
    """A dataset cannot be crawled at all; the text is one sentence."""


class Entry(NamedTuple):
    """A file of a dataset: `path` relative to its root with forward slashes, `mtime` in ns since 1970.

    A source without sizes and times gives any numbers that change when the file does.
    A member of an archive has the path `a.zip!/x.dcm`, its inflated size, and the `mtime` of the archive.
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
    """Results of a scan other than the files; filled while `Source.scan` is consumed.

    `previous_cells` is an input: the sheets as last read, used for sheets that cannot be read now.
    """

    previous_cells: Sequence[SheetCell] = ()
    cells: list[SheetCell] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unread_folders: list[str] = field(default_factory=list)  # files below are unknown, not missing
    unread_files: list[str] = field(default_factory=list)


class Source(Protocol):
    """The files of a dataset. Instances are sent to worker processes."""

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        ...

    @property
    def location(self) -> str:
        """The location of the dataset as a URI, for people and for the Endpoint."""
        ...

    @classmethod
    def from_settings(cls, dataset: str, settings: DatasetSettings) -> Self:
        """Create the source that the settings describe; SourceError if its root does not exist."""
        ...

    def scan(self, scan: Scan) -> Iterator[Entry]:
        """List all files that may be DICOM, in any order; everything else goes into `scan`."""
        ...

    def open(self, path: str) -> BinaryIO:
        """Open the file of an entry for reading and seeking; a read returns fewer bytes than asked only at the end."""
        ...


class NotAnArchiveError(Exception):
    """The file is not an archive, despite its name."""


class ArchiveError(Exception):
    """An archive is damaged or refused: the finding code, and the reason as text."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class ArchiveMember(Protocol):
    """A file in an archive."""

    @property
    def size(self) -> int:
        """Its length in bytes, inflated."""
        ...


@dataclass
class ArchiveDirectory:
    """The files of an archive by path, and the names of members that are not loaded."""

    members: Mapping[str, ArchiveMember] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)  # paths of several members; the last one is loaded
    undecodable: list[str] = field(default_factory=list)  # names that are not UTF-8
    special: list[str] = field(default_factory=list)  # symbolic links, devices


class ArchiveFormat(Protocol):
    """The functions of a package that reads one archive format, as `sources.zip` does."""

    def read_directory(self, archive: Path) -> ArchiveDirectory:
        """Read the directory of an archive; no member is inflated.

        Raises:
            NotAnArchiveError: the file is not an archive of this format.
            ArchiveError: it is damaged or refused.
            OSError: it cannot be read now.
        """
        ...

    def open_member(self, archive: Path, name: str) -> BinaryIO:
        """Open a member of an archive as a seekable file.

        Raises:
            FileNotFoundError: the archive or the member does not exist.
            OSError: it cannot be read now, or it is damaged (EINVAL).
        """
        ...
