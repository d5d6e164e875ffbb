"""A dataset as a folder tree: SDS (dataset / subject / sample) or any other.

The tree is scanned by names and stat only; the only files that are opened are metadata sheets and the directories of
archives.

Not here: the meaning of names (`grammar`), the members of archives (`archives`), the content of sheets (`sheets`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from dicom_etl.findings import make_finding
from dicom_etl.settings import DatasetSettings
from dicom_etl.sources.archives import (
    ARCHIVE_SEPARATOR,
    is_archive_name,
    locate_members,
    open_member,
    read_directory,
    split_member_path,
)
from dicom_etl.sources.base import (
    ROOT_UNIT,
    ArchiveDirectory,
    ArchiveError,
    Entry,
    NotAnArchiveError,
    Scan,
    SourceError,
)
from dicom_etl.sources.grammar import find_entities, load_grammar, load_role_folders, match_sheet, match_system_file
from dicom_etl.sources.sheet_subjects import map_paths_to_subjects, map_samples_to_subjects
from dicom_etl.sources.sheets import SheetError, read_sheet


@dataclass(frozen=True)
class TreeSource:
    """The tree below `root`, restricted to some roles (primary, derivative, source)."""

    dataset: str
    root: Path
    roles: tuple[str, ...] = ("primary",)
    is_flat: bool = False  # folders name no subjects: all files are of one unit without a subject

    @classmethod
    def from_settings(cls, dataset: str, settings: DatasetSettings) -> Self:
        """The tree at the dataset's root."""
        root = Path(settings.root)
        if not root.exists():
            raise SourceError(f"dataset {dataset}: the folder {root} does not exist")
        if not root.is_dir():
            raise SourceError(f"dataset {dataset}: {root} is not a folder")
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
            for archive, member in split_member_path(path):
                if (self.root / archive).is_file():
                    return open_member(self.root / archive, member)
            raise

    def scan(self, scan: Scan) -> Iterator[Entry]:
        """List all files below the folders of the chosen roles, except system files and sheets."""
        entries = _TreeScan(self, scan).list_entries()
        if self.is_flat:
            return (entry._replace(unit=ROOT_UNIT, subject=None, sample=None) for entry in entries)
        return entries


class _Start(NamedTuple):
    """A folder where the scan begins: the role of its files, and the names in it that are skipped."""

    folder: str
    role: str
    skipped: frozenset[str] = frozenset()

    @property
    def depth(self) -> int:
        """The number of leading path segments that contain no subject."""
        return len(self.folder.split("/")) if self.folder else 0


@dataclass
class _TreeScan:
    """One scan of a tree, with the files and folders that it has visited.

    `depth` in its methods is the number of leading path segments that contain no subject.
    """

    source: TreeSource
    scan: Scan
    system_files: Counter[tuple[str, str]] = field(default_factory=Counter)  # by class and role
    visited_files: list[str] = field(default_factory=list)  # paths, before links are followed
    visited_folders: list[str] = field(default_factory=list)
    file_inodes: set[tuple[int, int]] = field(default_factory=set)  # device and inode of visited files
    folder_inodes: set[tuple[int, int]] = field(default_factory=set)
    links: list[tuple[str, str, int]] = field(default_factory=list)  # path, role, depth
    is_following_links: bool = False
    subject_of_sample: dict[str, str] = field(default_factory=dict)
    subject_of_path: dict[str, str] = field(default_factory=dict)

    def list_entries(self) -> Iterator[Entry]:
        """All files of the chosen roles; the sheets and the findings go into `scan`."""
        self.visited_folders.append("")
        top = self._list_folder("")
        if not self.source.is_flat:
            self._read_sheets(top)
        for start in self._find_starts(top):
            if start.role in self.source.roles:
                yield from self._scan_folder(start.folder, start.role, start.depth, start.skipped)
        # links last: a link to a file that was visited is not a second file
        self.is_following_links = True
        if self.links:  # without links no inode is needed, which saves a stat per file
            self._read_inodes()
        while self.links:
            path, role, depth = self.links.pop(0)
            yield from self._follow_link(path, role, depth)
        for (label, role), count in sorted(self.system_files.items()):
            self._add_finding("system-files-skipped", value=label, count=count, message=f"{label}: skipped, in {role}")

    # -- the top folder ---------------------------------------------------------------------------------------------

    def _find_starts(self, top: list[os.DirEntry[str]]) -> list[_Start]:
        """The role folders of SDS, or the root itself."""
        if self.source.is_flat:
            return [_Start("", "primary")]
        roles = load_role_folders()
        names = {entry.name for entry in top if _is_folder(entry)}
        names -= {name for name in names & set(roles) if self._leads_outside(name)}
        starts = [_Start(name, roles[name]) for name in sorted(names & set(roles))]
        if any(start.role == "primary" for start in starts):
            return starts
        is_sds = bool(starts) or any(match_sheet(entry.name) == "dataset_description" for entry in top)
        if is_sds or any(name.startswith("sub-") for name in names):
            self._add_finding("sds-layout-deviation", message="no folder primary/: the dataset's root is used instead")
        skipped = frozenset(roles) | frozenset(load_grammar()["other_folders"] if is_sds else ())
        return [*starts, _Start("", "primary", skipped)]

    def _read_sheets(self, top: list[os.DirEntry[str]]) -> None:
        if "" in self.scan.unread_folders:
            self.scan.cells += self.scan.previous_cells
        for entry in top:
            kind = match_sheet(entry.name)
            if kind is None or kind not in load_grammar()["read_sheets"] or self._leads_outside(entry.name):
                continue
            try:
                self.scan.cells += read_sheet(kind, Path(entry.path), entry.name)
            except SheetError as error:
                self.scan.cells += [cell for cell in self.scan.previous_cells if cell.path == entry.name]
                self._add_finding("sheet-unreadable", path=entry.name, message=str(error))
        self.subject_of_sample = map_samples_to_subjects(self.scan.cells)
        self.subject_of_path = map_paths_to_subjects(self.scan.cells, self.subject_of_sample)

    # -- folders and files ------------------------------------------------------------------------------------------

    def _list_folder(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            # no joined Path: it costs as much as listing a small folder, and this is once per folder
            with os.scandir(f"{self.source.root}/{folder}") as entries:
                return sorted(entries, key=attrgetter("name"))
        except OSError as error:
            if folder not in self.scan.unread_folders:
                self.scan.unread_folders.append(folder)
                self._add_finding("folder-unreadable", path=folder or ".", message=error.strerror)
            return []

    def _scan_folder(
        self, folder: str, role: str, depth: int, skipped: frozenset[str] = frozenset()
    ) -> Iterator[Entry]:
        """The files below a folder, without the names in `skipped` directly in it."""
        if self.is_following_links:
            _remember((self.source.root / folder).stat(), self.folder_inodes)
        else:
            self.visited_folders.append(folder)
        pending = [folder]
        while pending:
            current = pending.pop()
            for entry in self._list_folder(current):
                path = f"{current}/{entry.name}" if current else entry.name
                if label := match_system_file(entry.name):
                    self.system_files[label, role] += 1
                elif not _is_text(entry.name):
                    self._add_finding("name-undecodable", path=os.fsencode(path).decode("utf-8", "replace"))
                elif (current == folder and entry.name in skipped) or _is_sheet(entry):
                    continue
                elif entry.is_symlink():
                    self.links.append((path, role, depth))
                elif entry.is_dir(follow_symlinks=False):
                    if not self._is_repeated_folder(entry, path):
                        pending.append(path)
                else:
                    yield from self._scan_file(entry, path, role, depth)

    def _is_repeated_folder(self, entry: os.DirEntry[str], path: str) -> bool:
        """Whether a folder below a followed link was visited before. Without links each folder is visited once."""
        if not self.is_following_links:
            self.visited_folders.append(path)
            return False
        stat = entry.stat(follow_symlinks=False)
        if (stat.st_dev, stat.st_ino) in self.folder_inodes:
            self._add_finding("link-repeated", path=path)
            return True
        _remember(stat, self.folder_inodes)
        return False

    def _scan_file(self, entry: os.DirEntry[str], path: str, role: str, depth: int) -> Iterator[Entry]:
        try:
            stat = entry.stat(follow_symlinks=False)
        except OSError as error:
            self._add_unread_file(path, error)
            return
        if not entry.is_file(follow_symlinks=False):
            self._add_finding("special-file-skipped", path=path)
            return
        if self.is_following_links:
            _remember(stat, self.file_inodes)
        else:
            self.visited_files.append(path)
        yield from self._create_entries(path, role, depth, stat)

    def _add_unread_file(self, path: str, error: OSError) -> None:
        self.scan.unread_files.append(path)
        if is_archive_name(path):
            self.scan.unread_folders.append(path + ARCHIVE_SEPARATOR)
        self._add_finding("file-unreadable", path=path, message=error.strerror)

    def _create_entries(self, path: str, role: str, depth: int, stat: os.stat_result) -> Iterator[Entry]:
        """The entry of a file, or those of the members of an archive."""
        if is_archive_name(path):
            try:
                directory = self._read_archive(path)
            except NotAnArchiveError:
                pass  # a file like any other
            else:
                yield from self._list_members(directory, path, role, depth, stat.st_mtime_ns)
                return
        yield self._create_entry(path, path.split("/")[depth:-1], role, stat.st_size, stat.st_mtime_ns)

    def _create_entry(self, path: str, folders: list[str], role: str, size: int, mtime: int) -> Entry:
        """An entry with the subject and the sample that its folders and the sheets name."""
        subject, sample = find_entities(folders, self.subject_of_sample, self._find_manifest_subject(path))
        return Entry(path, subject or ROOT_UNIT, subject, sample, role, size, mtime)

    def _find_manifest_subject(self, path: str) -> str | None:
        """The subject that the manifest names for a file, or for the nearest folder or archive around it."""
        while path and self.subject_of_path:
            if subject := self.subject_of_path.get(path) or self.subject_of_path.get(
                path.removesuffix(ARCHIVE_SEPARATOR)
            ):
                return subject
            path = path.rpartition("/")[0]
        return None

    # -- archives ---------------------------------------------------------------------------------------------------

    def _read_archive(self, path: str) -> ArchiveDirectory:
        """The directory of an archive; an empty one, with a finding, if it cannot be read."""
        archive = self.source.root / path
        try:
            if os.path.lexists(f"{archive}{ARCHIVE_SEPARATOR}"):
                raise ArchiveError(
                    "archive-refused", f"{path}{ARCHIVE_SEPARATOR} is next to it: their files would have equal paths"
                )
            return read_directory(archive)
        except ArchiveError as error:
            if error.code == "archive-damaged":  # perhaps it is still being copied
                self.scan.unread_folders.append(path + ARCHIVE_SEPARATOR)
            self._add_finding(error.code, path=path, message=str(error))
        except OSError as error:
            self._add_unread_file(path, error)
        return ArchiveDirectory()

    def _list_members(
        self, directory: ArchiveDirectory, path: str, role: str, depth: int, mtime: int
    ) -> Iterator[Entry]:
        """The members of an archive; all have its modification time, so that all are read again when it changes."""
        contents = locate_members(directory.members, path, role, depth)
        for label, count in contents.system_files.items():
            self.system_files[label, role] += count
        if contents.nested_archives:
            self._add_finding("archive-nested", path=path, count=contents.nested_archives)
        for code, names in (
            ("archive-names-repeated", directory.repeated),
            ("name-undecodable", directory.undecodable),
            ("special-file-skipped", directory.special),
        ):
            if names:
                self._add_finding(code, path=f"{path}{ARCHIVE_SEPARATOR}/{names[0]}", count=len(names))
        for member in contents.files:
            if member.role in self.source.roles:
                size = directory.members[member.name].size
                yield self._create_entry(
                    f"{path}{ARCHIVE_SEPARATOR}/{member.name}", member.folders, member.role, size, mtime
                )

    # -- symbolic links ---------------------------------------------------------------------------------------------

    def _read_inodes(self) -> None:
        """Read device and inode of everything that was visited."""
        for paths, inodes in (
            (self.visited_folders, self.folder_inodes),
            (self.visited_files, self.file_inodes),
        ):
            for path in paths:
                with suppress(OSError):  # removed since
                    _remember((self.source.root / path).stat(), inodes)

    def _follow_link(self, path: str, role: str, depth: int) -> Iterator[Entry]:
        """The files that a link leads to, if they are inside the dataset's root and were not visited before."""
        link = self.source.root / path
        try:
            target = link.resolve(strict=True)
            stat = target.stat()
        except (OSError, RuntimeError) as error:
            self._add_finding("link-broken", path=path, message=str(getattr(error, "strerror", error)))
            return
        if not target.is_relative_to(self.source.root.resolve()):
            self._add_finding("link-outside-dataset", path=path)
            return
        inodes = self.folder_inodes if target.is_dir() else self.file_inodes
        if (stat.st_dev, stat.st_ino) in inodes:
            self._add_finding("link-repeated", path=path)
            return
        _remember(stat, inodes)
        if target.is_dir():
            yield from self._scan_folder(path, role, depth)
        else:
            yield from self._create_entries(path, role, depth, stat)

    def _leads_outside(self, name: str) -> bool:
        """Whether a folder or a sheet is a link that leads out of the dataset's root; adds the finding."""
        path = self.source.root / name
        if not path.is_symlink() or path.resolve().is_relative_to(self.source.root.resolve()):
            return False
        self._add_finding("link-outside-dataset", path=name)
        return True

    def _add_finding(self, code: str, **fields: object) -> None:
        self.scan.findings.append(make_finding(code, self.source.dataset, **fields))


def _remember(stat: os.stat_result, inodes: set[tuple[int, int]]) -> None:
    inodes.add((stat.st_dev, stat.st_ino))


def _is_text(name: str) -> bool:
    """Whether a name is UTF-8. Python decodes other names to lone surrogates, which no table can store."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _is_sheet(entry: os.DirEntry[str]) -> bool:
    return match_sheet(entry.name) is not None and not entry.is_dir(follow_symlinks=False)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; False for links in a circle, which the system refuses to follow."""
    try:
        return entry.is_dir()
    except OSError:
        return False
