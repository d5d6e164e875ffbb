"""A dataset as a folder tree: SDS (dataset / subject / sample) or anything like it.

Walks the tree by names and stat alone; only metadata sheets are opened. What a name means is in `grammar.py`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from dicom_etl.findings import finding
from dicom_etl.settings import DatasetSettings
from dicom_etl.sources.base import ROOT_UNIT, Entry, Scan, SourceError
from dicom_etl.sources.grammar import grammar, junk_class, locate, role_folders, sheet_kind
from dicom_etl.sources.sheets import SheetError, read_sheet


@dataclass(frozen=True)
class TreeSource:
    """The tree below `root`, with the roles (primary, derivative, source) that are wanted."""

    dataset: str
    root: Path
    roles: tuple[str, ...] = ("primary",)

    @classmethod
    def of(cls, dataset: str, settings: DatasetSettings) -> TreeSource:
        """The tree at the dataset's root."""
        root = Path(settings.root)
        if not root.exists():
            raise SourceError(f"dataset {dataset}: the folder {root} does not exist")
        if not root.is_dir():
            raise SourceError(f"dataset {dataset}: {root} is no folder")
        return cls(dataset, root, settings.roles)

    @property
    def location(self) -> str:
        """The root as a URI."""
        return self.root.resolve().as_uri()

    def open(self, path: str) -> BinaryIO:
        """Open a file of the tree."""
        return open(self.root / path, "rb")  # noqa: PTH123  (Path.open costs twice as much, per file)

    def scan(self, scan: Scan) -> Iterator[Entry]:
        """All files below the folders of the wanted roles that are neither junk nor sheets."""
        return _Walk(self, scan).entries()


@dataclass
class _Walk:
    """One walk over a tree: what it has seen so far."""

    source: TreeSource
    scan: Scan
    junk: Counter[tuple[str, str]] = field(default_factory=Counter)
    files: set[tuple[int, int]] = field(default_factory=set)  # device and inode
    folders: set[tuple[int, int]] = field(default_factory=set)
    links: list[tuple[str, str, int]] = field(default_factory=list)
    following: bool = False
    subject_of_sample: dict[str, str] = field(default_factory=dict)

    def entries(self) -> Iterator[Entry]:
        self._remember(self.source.root.stat(), self.folders)
        top = self._list("")
        self._sheets(top)
        for folder, role, skipped in self._starts(top):
            if role in self.source.roles:
                yield from self._below(folder, role, len(folder.split("/")) if folder else 0, skipped)
        # links last: a link to a file that the walk has met anyway is no second file
        self.following = True
        while self.links:
            path, role, depth = self.links.pop(0)
            yield from self._linked(path, role, depth)
        for (label, role), count in sorted(self.junk.items()):
            self._found("junk-skipped", value=label, count=count, message=f"{label}: left out, in {role}")

    # -- where to start ---------------------------------------------------------------------------------------------

    def _starts(self, top: list[os.DirEntry[str]]) -> list[tuple[str, str, frozenset[str]]]:
        """(folder, role, names below it to skip): the role folders of SDS, or the root itself."""
        roles = role_folders()
        names = {entry.name for entry in top if _is_folder(entry)}
        names -= {name for name in names & set(roles) if self._leads_outside(name)}
        starts = [(name, roles[name], frozenset[str]()) for name in sorted(names & set(roles))]
        if any(role == "primary" for _, role, _ in starts):
            return starts
        sds = starts or any(sheet_kind(entry.name) == "dataset_description" for entry in top)
        if sds or any(name.startswith("sub-") for name in names):
            self._found("sds-layout", message="no folder primary/: the dataset's root is taken for it")
        return [
            *starts,
            ("", "primary", frozenset(roles) | frozenset(grammar()["other_folders"] if sds else ())),
        ]

    def _sheets(self, top: list[os.DirEntry[str]]) -> None:
        if "" in self.scan.unread_folders:
            self.scan.cells += self.scan.former_cells
        for entry in top:
            kind = sheet_kind(entry.name)
            if kind is None or kind not in grammar()["read_sheets"] or self._leads_outside(entry.name):
                continue
            try:
                self.scan.cells += read_sheet(kind, Path(entry.path), entry.name)
            except SheetError as error:
                self.scan.cells += [cell for cell in self.scan.former_cells if cell.path == entry.name]
                self._found("sheet-unreadable", path=entry.name, message=str(error))
        for cell in self.scan.cells:
            if cell.sheet == "samples" and cell.sample and cell.subject:
                self.subject_of_sample.setdefault(cell.sample, cell.subject)

    # -- the walk ---------------------------------------------------------------------------------------------------

    def _list(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.source.root / folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if folder not in self.scan.unread_folders:
                self.scan.unread_folders.append(folder)
                self._found("folder-unreadable", path=folder or ".", message=error.strerror)
            return []

    def _below(self, folder: str, role: str, depth: int, skipped: frozenset[str] = frozenset()) -> Iterator[Entry]:
        """The files below a folder; `depth` is the number of leading path segments that say nothing of subjects."""
        self._remember((self.source.root / folder).stat(), self.folders)
        pending = [folder]
        while pending:
            here = pending.pop()
            for entry in self._list(here):
                path = f"{here}/{entry.name}" if here else entry.name
                if label := junk_class(entry.name):
                    self.junk[label, role] += 1
                elif not _is_text(entry.name):
                    self._found("name-undecodable", path=os.fsencode(path).decode("utf-8", "replace"))
                elif (here == folder and entry.name in skipped) or _is_sheet(entry):
                    continue
                elif entry.is_symlink():
                    self.links.append((path, role, depth))
                elif entry.is_dir(follow_symlinks=False):
                    if not self._met(entry, path):
                        pending.append(path)
                else:
                    yield from self._file(entry, path, role, depth)

    def _met(self, entry: os.DirEntry[str], path: str) -> bool:
        """Whether a folder below a followed link was met before. Other folders are met once, whatever their inodes."""
        stat = entry.stat(follow_symlinks=False)
        if self.following and (stat.st_dev, stat.st_ino) in self.folders:
            self._found("link-repeated", path=path)
            return True
        self._remember(stat, self.folders)
        return False

    @staticmethod
    def _remember(stat: os.stat_result, seen: set[tuple[int, int]]) -> None:
        seen.add((stat.st_dev, stat.st_ino))

    def _file(self, entry: os.DirEntry[str], path: str, role: str, depth: int) -> Iterator[Entry]:
        try:
            stat = entry.stat(follow_symlinks=False)
        except OSError as error:
            self.scan.unread_files.append(path)
            self._found("file-unreadable", path=path, message=error.strerror)
            return
        if not entry.is_file(follow_symlinks=False):
            self._found("not-a-file", path=path)
            return
        self._remember(stat, self.files)
        yield self._entry(path, role, depth, stat)

    def _entry(self, path: str, role: str, depth: int, stat: os.stat_result) -> Entry:
        place = locate(path.split("/")[depth:-1], self.subject_of_sample)
        unit = place.subject or ROOT_UNIT
        return Entry(path, unit, place.subject, place.sample, role, stat.st_size, stat.st_mtime_ns)

    # -- symbolic links ---------------------------------------------------------------------------------------------

    def _linked(self, path: str, role: str, depth: int) -> Iterator[Entry]:
        """A link is followed inside the dataset's root only, and never to what was met before."""
        link = self.source.root / path
        try:
            target = link.resolve(strict=True)
            stat = target.stat()
        except (OSError, RuntimeError) as error:
            self._found("link-broken", path=path, message=str(getattr(error, "strerror", error)))
            return
        if not target.is_relative_to(self.source.root.resolve()):
            self._found("link-outside", path=path)
            return
        seen = self.folders if target.is_dir() else self.files
        if (stat.st_dev, stat.st_ino) in seen:
            self._found("link-repeated", path=path)
            return
        self._remember(stat, seen)
        if target.is_dir():
            yield from self._below(path, role, depth)
        else:
            yield self._entry(path, role, depth, stat)

    def _leads_outside(self, path: str) -> bool:
        """Whether a folder or a sheet is a link that leads out of the dataset's root, which is said."""
        place = self.source.root / path
        if not place.is_symlink() or place.resolve().is_relative_to(self.source.root.resolve()):
            return False
        self._found("link-outside", path=path)
        return True

    def _found(self, code: str, **where: object) -> None:
        self.scan.findings.append(finding(code, self.source.dataset, **where))


def _is_text(name: str) -> bool:
    """Whether a name is UTF-8; what Python makes of other names can stand in no table."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _is_sheet(entry: os.DirEntry[str]) -> bool:
    return sheet_kind(entry.name) is not None and not entry.is_dir(follow_symlinks=False)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; links in a circle, which the system refuses to follow, are not."""
    try:
        return entry.is_dir()
    except OSError:
        return False
