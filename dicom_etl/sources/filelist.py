"""A dataset as a CSV file with one line per DICOM file: `path` and, where known, `subject` and `sample`.

Paths are absolute or relative to the CSV file. For files in folders that the path grammar cannot describe.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dicom_etl.findings import make_finding
from dicom_etl.settings import DatasetSettings
from dicom_etl.sources.base import ROOT_UNIT, Entry, Scan, SourceError


@dataclass(frozen=True)
class FileListSource:
    """The files that a CSV file lists."""

    dataset: str
    root: Path

    @classmethod
    def from_settings(cls, dataset: str, settings: DatasetSettings) -> FileListSource:
        """The list at the dataset's root."""
        root = Path(settings.root)
        if not root.is_file():
            raise SourceError(f"dataset {dataset}: the list {root} does not exist or is not a file")
        return cls(dataset, root)

    @property
    def location(self) -> str:
        """The folder of the list."""
        return self.root.parent.as_uri()

    def scan(self, scan: Scan) -> Iterator[Entry]:
        """The files of the list, in its order; a listed file that does not exist is a finding."""
        try:
            text = self.root.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"dataset {self.dataset}: the list {self.root} cannot be read: {error}") from None
        with io.StringIO(text, newline="") as lines:
            reader = csv.DictReader(lines)
            if "path" not in (reader.fieldnames or []):
                raise SourceError(f"dataset {self.dataset}: the list {self.root} has no column 'path'")
            seen: set[str] = set()
            for line in reader:
                path = (line["path"] or "").strip()
                if path and path not in seen:
                    seen.add(path)
                    subject, sample = ((line.get(column) or "").strip() for column in ("subject", "sample"))
                    yield from self._entry(path, subject, sample, scan)

    def _entry(self, path: str, subject: str, sample: str, scan: Scan) -> Iterator[Entry]:
        try:
            stat = (self.root.parent / path).stat()
        except FileNotFoundError:
            scan.findings.append(make_finding("listed-file-missing", self.dataset, path=path, subject=subject or None))
        except OSError as error:
            scan.unread_files.append(path)
            scan.findings.append(make_finding("file-unreadable", self.dataset, path=path, message=error.strerror))
        else:
            yield Entry(
                path,
                subject or ROOT_UNIT,
                subject or None,
                sample or None,
                "primary",
                stat.st_size,
                stat.st_mtime_ns,
            )

    def open(self, path: str) -> BinaryIO:
        """Open a listed file."""
        return (self.root.parent / path).open("rb")
