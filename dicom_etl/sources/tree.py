"""A dataset as a folder tree: SDS (dataset / subject / sample) or anything like it.

Walks the tree by names and stat alone; only metadata sheets and the directories of zip archives are opened. What a
name means is in `grammar.py`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, Self

from dicom_etl.findings import finding
from dicom_etl.settings import DatasetSettings
from dicom_etl.sources.archives import (
    MARK,
    ArchiveError,
    Directory,
    NoArchiveError,
    is_archive_name,
    read_directory,
    splits,
)
from dicom_etl.sources.base import ROOT_UNIT, Entry, Scan, SourceError
from dicom_etl.sources.grammar import grammar, junk_class, locate, role_folders, sheet_kind
from dicom_etl.sources.members import open_member
from dicom_etl.sources.relations import subjects_of_paths, subjects_of_samples
from dicom_etl.sources.sheets import SheetError, read_sheet
from dicom_etl.sources.unpacked import contents


@dataclass(frozen=True)
class TreeSource:
    """The tree below `root`, with the roles (primary, derivative, source) that are wanted."""

    dataset: str
    root: Path
    roles: tuple[str, ...] = ("primary",)
    is_flat: bool = False  # its folders say nothing: all files are of one unit and of no subject

    @classmethod
    def of(cls, dataset: str, settings: DatasetSettings) -> Self:
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
        """Open a file of the tree, unbuffered, or a member of an archive."""
        try:
            # not Path.open and no joined Path: they cost as much as the opening itself, and this is once per file
            return open(f"{self.root}/{path}", "rb", buffering=0)  # noqa: PTH123
        except (FileNotFoundError, NotADirectoryError):
            for archive, member in splits(path):
                if (self.root / archive).is_file():
                    return open_member(self.root / archive, member)
            raise

    def scan(self, scan: Scan) -> Iterator[Entry]:
        """All files below the folders of the wanted roles that are neither junk nor sheets."""
        entries = _Walk(self, scan).entries()
        if self.is_flat:
            return (entry._replace(unit=ROOT_UNIT, subject=None, sample=None) for entry in entries)
        return entries


@dataclass
class _Walk:
    """One walk over a tree: what it has seen so far."""

    source: TreeSource
    scan: Scan
    junk: Counter[tuple[str, str]] = field(default_factory=Counter)
    walked_files: list[str] = field(default_factory=list)
    walked_folders: list[str] = field(default_factory=list)
    files: set[tuple[int, int]] = field(default_factory=set)  # device and inode, of what links may lead to
    folders: set[tuple[int, int]] = field(default_factory=set)
    links: list[tuple[str, str, int]] = field(default_factory=list)
    following: bool = False
    subject_of_sample: dict[str, str] = field(default_factory=dict)
    subject_of_path: dict[str, str] = field(default_factory=dict)

    def entries(self) -> Iterator[Entry]:
        self.walked_folders.append("")
        top = self._list("")
        if not self.source.is_flat:
            self._sheets(top)
        for folder, role, skipped in self._starts(top):
            if role in self.source.roles:
                yield from self._below(folder, role, len(folder.split("/")) if folder else 0, skipped)
        # links last: a link to a file that the walk has met anyway is no second file
        self.following = True
        if self.links:  # only they can lead to what was met: others need no second look at what it is
            self._identify_walked()
        while self.links:
            path, role, depth = self.links.pop(0)
            yield from self._linked(path, role, depth)
        for (label, role), count in sorted(self.junk.items()):
            self._found("system-files-skipped", value=label, count=count, message=f"{label}: left out, in {role}")

    # -- where to start ---------------------------------------------------------------------------------------------

    def _starts(self, top: list[os.DirEntry[str]]) -> list[tuple[str, str, frozenset[str]]]:
        """(folder, role, names below it to skip): the role folders of SDS, or the root itself."""
        if self.source.is_flat:
            return [("", "primary", frozenset())]
        roles = role_folders()
        names = {entry.name for entry in top if _is_folder(entry)}
        names -= {name for name in names & set(roles) if self._leads_outside(name)}
        starts = [(name, roles[name], frozenset[str]()) for name in sorted(names & set(roles))]
        if any(role == "primary" for _, role, _ in starts):
            return starts
        sds = starts or any(sheet_kind(entry.name) == "dataset_description" for entry in top)
        if sds or any(name.startswith("sub-") for name in names):
            self._found("sds-layout-deviation", message="no folder primary/: the dataset's root is taken for it")
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
        self.subject_of_sample = subjects_of_samples(self.scan.cells)
        self.subject_of_path = subjects_of_paths(self.scan.cells, self.subject_of_sample)

    # -- the walk ---------------------------------------------------------------------------------------------------

    def _list(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            # no joined Path: it costs as much as listing a small folder, and this is once per folder
            with os.scandir(f"{self.source.root}/{folder}") as entries:
                return sorted(entries, key=_name_of)
        except OSError as error:
            if folder not in self.scan.unread_folders:
                self.scan.unread_folders.append(folder)
                self._found("folder-unreadable", path=folder or ".", message=error.strerror)
            return []

    def _below(self, folder: str, role: str, depth: int, skipped: frozenset[str] = frozenset()) -> Iterator[Entry]:
        """The files below a folder; `depth` is the number of leading path segments that say nothing of subjects."""
        if self.following:
            self._remember((self.source.root / folder).stat(), self.folders)
        else:
            self.walked_folders.append(folder)
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
        if not self.following:
            self.walked_folders.append(path)
            return False
        stat = entry.stat(follow_symlinks=False)
        if (stat.st_dev, stat.st_ino) in self.folders:
            self._found("link-repeated", path=path)
            return True
        self._remember(stat, self.folders)
        return False

    def _identify_walked(self) -> None:
        """Devices and inodes of what was walked."""
        for paths, seen in ((self.walked_folders, self.folders), (self.walked_files, self.files)):
            for path in paths:
                with suppress(OSError):  # it is gone since
                    self._remember((self.source.root / path).stat(), seen)

    @staticmethod
    def _remember(stat: os.stat_result, seen: set[tuple[int, int]]) -> None:
        seen.add((stat.st_dev, stat.st_ino))

    def _file(self, entry: os.DirEntry[str], path: str, role: str, depth: int) -> Iterator[Entry]:
        try:
            stat = entry.stat(follow_symlinks=False)
        except OSError as error:
            self._unanswered(path, error)
            return
        if not entry.is_file(follow_symlinks=False):
            self._found("special-file-skipped", path=path)
            return
        if self.following:
            self._remember(stat, self.files)
        else:
            self.walked_files.append(path)
        yield from self._entries(path, role, depth, stat)

    def _unanswered(self, path: str, error: OSError) -> None:
        self.scan.unread_files.append(path)
        if is_archive_name(path):
            self.scan.unread_folders.append(path + MARK)
        self._found("file-unreadable", path=path, message=error.strerror)

    def _entries(self, path: str, role: str, depth: int, stat: os.stat_result) -> Iterator[Entry]:
        """A file, or the members of an archive."""
        if is_archive_name(path):
            try:
                directory = self._directory(path)
            except NoArchiveError:
                pass  # a file like any other
            else:
                yield from self._members(directory, path, role, depth, stat.st_mtime_ns)
                return
        yield self._entry(path, path.split("/")[depth:-1], role, stat.st_size, stat.st_mtime_ns)

    def _entry(self, path: str, folders: list[str], role: str, size: int, mtime: int) -> Entry:
        """An entry whose subject and sample are what the folders and the sheets say."""
        place = locate(folders, self.subject_of_sample, self._listed(path))
        return Entry(path, place.subject or ROOT_UNIT, place.subject, place.sample, role, size, mtime)

    def _listed(self, path: str) -> str | None:
        """The subject that the manifest names for a file, or for the nearest folder or archive around it."""
        while path and self.subject_of_path:
            if subject := self.subject_of_path.get(path) or self.subject_of_path.get(path.removesuffix(MARK)):
                return subject
            path = path.rpartition("/")[0]
        return None

    # -- archives ---------------------------------------------------------------------------------------------------

    def _directory(self, path: str) -> Directory:
        """What an archive holds; nothing, with a finding, where that cannot be said."""
        archive = self.source.root / path
        try:
            if os.path.lexists(f"{archive}{MARK}"):
                raise ArchiveError("archive-refused", f"{path}{MARK} lies beside it: their paths would be the same")
            return read_directory(archive)
        except ArchiveError as error:
            if error.code == "archive-damaged":  # it may be whole again when it is copied to its end
                self.scan.unread_folders.append(path + MARK)
            self._found(error.code, path=path, message=str(error))
        except OSError as error:
            self._unanswered(path, error)
        return Directory()

    def _members(self, directory: Directory, path: str, role: str, depth: int, mtime: int) -> Iterator[Entry]:
        """The members of an archive; all have its modification time, so that all are read again when it changes."""
        found = contents(directory.members, path, role, depth)
        for label, count in found.junk.items():
            self.junk[label, role] += count
        self._remarks(directory, path, found.nested)
        for file in found.files:
            if file.role in self.source.roles:
                size = directory.members[file.member].size
                yield self._entry(f"{path}{MARK}/{file.member}", file.folders, file.role, size, mtime)

    def _remarks(self, directory: Directory, path: str, nested: int) -> None:
        if nested:
            self._found("archive-nested", path=path, count=nested)
        for code, names in (
            ("archive-names-repeated", directory.repeated),
            ("name-undecodable", directory.undecodable),
            ("special-file-skipped", directory.special),
        ):
            if names:
                self._found(code, path=f"{path}{MARK}/{names[0]}", count=len(names))

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
            self._found("link-outside-dataset", path=path)
            return
        seen = self.folders if target.is_dir() else self.files
        if (stat.st_dev, stat.st_ino) in seen:
            self._found("link-repeated", path=path)
            return
        self._remember(stat, seen)
        if target.is_dir():
            yield from self._below(path, role, depth)
        else:
            yield from self._entries(path, role, depth, stat)

    def _leads_outside(self, path: str) -> bool:
        """Whether a folder or a sheet is a link that leads out of the dataset's root, which is said."""
        place = self.source.root / path
        if not place.is_symlink() or place.resolve().is_relative_to(self.source.root.resolve()):
            return False
        self._found("link-outside-dataset", path=path)
        return True

    def _found(self, code: str, **where: object) -> None:
        self.scan.findings.append(finding(code, self.source.dataset, **where))


_name_of = attrgetter("name")


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
