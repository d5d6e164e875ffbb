"""Archives in a dataset: their members are files of the dataset, as if each archive was unpacked where it is.

Holds what all formats share: the table of formats, the paths of members (`a.zip!/x.dcm`), and the subject and role of
each member. A new format is a package like `zip` with `read_directory` and `open_member` (`base.ArchiveFormat`) and an
entry in `FORMATS`.

Not here: the bytes of an archive (`zip`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dicom_etl.sources import zip as zip_format
from dicom_etl.sources.base import ArchiveDirectory, ArchiveFormat
from dicom_etl.sources.grammar import find_role_folder, load_role_folders, match_entity, match_sheet, match_system_file

FORMATS: Mapping[str, ArchiveFormat] = {".zip": zip_format}  # by suffix of the file name, in lower case
ARCHIVE_SEPARATOR = "!"  # the members of a.zip have paths in the folder a.zip!, as in a.zip!/x.dcm
_SUFFIXES = tuple(FORMATS)
_MEMBER_PATH = re.compile(f"(?:{'|'.join(map(re.escape, _SUFFIXES))}){re.escape(ARCHIVE_SEPARATOR)}/", re.IGNORECASE)


# -- formats and paths ------------------------------------------------------------------------------------------------


def is_archive_name(name: str) -> bool:
    """Whether a file of this name is read as an archive."""
    return name.lower().endswith(_SUFFIXES)


def read_directory(archive: Path) -> ArchiveDirectory:
    """The directory of an archive, by the format that its name states; errors as of `ArchiveFormat.read_directory`."""
    return FORMATS[_suffix(archive.name)].read_directory(archive)


def open_member(archive: Path, name: str) -> BinaryIO:
    """Open a member of an archive, by the format that its name states; errors as of `ArchiveFormat.open_member`."""
    return FORMATS[_suffix(archive.name)].open_member(archive, name)


def split_member_path(path: str) -> Iterator[tuple[str, str]]:
    """All ways to read a path as an archive and a member; several if folders are named like `x.zip!` too."""
    for match in _MEMBER_PATH.finditer(path):
        yield path[: match.end() - len(ARCHIVE_SEPARATOR) - 1], path[match.end() :]


def _suffix(name: str) -> str:
    return next(suffix for suffix in _SUFFIXES if name.lower().endswith(suffix))


# -- subjects and roles of members ------------------------------------------------------------------------------------


class LocatedMember(NamedTuple):
    """A member that may be DICOM: the folders that contain its subject and sample, and its role."""

    name: str
    folders: list[str]
    role: str


@dataclass
class ArchiveContents:
    """The members of an archive as the crawl needs them."""

    files: list[LocatedMember] = field(default_factory=list)
    system_files: Counter[str] = field(default_factory=Counter)  # by class
    nested_archives: int = 0


class _Member(NamedTuple):
    name: str
    folders: list[str]  # inside the archive


def locate_members(names: Iterable[str], archive: str, role: str, depth: int) -> ArchiveContents:
    """Find the folders and the role of each member of an archive.

    The archive's name is a folder of its members if it is an entity of the grammar (`sub-1.zip`) or if there is no
    other folder.

    Args:
        names: the paths of its members.
        archive: its path in the dataset.
        role: the role of the archive.
        depth: the number of leading folders of `archive` that contain no subject.
    """
    contents = ArchiveContents()
    *outer, file_name = archive.split("/")[depth:]
    stem = file_name[: -len(_suffix(file_name))]
    stem_folders = [stem] if match_entity(stem) or (depth == 0 and stem in load_role_folders()) else []
    members = [_Member(name, stem_folders + name.split("/")[:-1]) for name in _select_files(names, contents)]
    # archives below a role folder have its role; elsewhere a whole dataset may have been packed
    if depth == 0 and not any(map(match_entity, outer)):
        members_with_roles = _assign_roles(members, role)
    else:
        members_with_roles = [(role, member) for member in members]
    for member_role, member in members_with_roles:
        contents.files.append(LocatedMember(member.name, [*outer, *member.folders] or [stem], member_role))
    return contents


def _select_files(names: Iterable[str], contents: ArchiveContents) -> list[str]:
    """The members other than system files, sheets and archives; a folder of system files counts once, as in a tree."""
    selected, system_files = [], set()
    for name in names:
        segments = name.split("/")
        if at := next((at for at, segment in enumerate(segments, 1) if match_system_file(segment)), 0):
            system_files.add((match_system_file(segments[at - 1]) or "", "/".join(segments[:at])))
        elif is_archive_name(name):
            contents.nested_archives += 1
        elif match_sheet(segments[-1]) is None:
            selected.append(name)
    contents.system_files.update(label for label, _ in system_files)
    return selected


def _assign_roles(members: Sequence[_Member], role: str) -> list[tuple[str, _Member]]:
    """The members with their roles. Next to a folder `primary` only other role folders are read, as in a tree."""
    role_folders = [find_role_folder(member.folders) for member in members]
    dataset_folders = {
        tuple(member.folders[: role_folder.depth - 1])
        for member, role_folder in zip(members, role_folders, strict=True)
        if role_folder and role_folder.role == "primary"
    }
    members_with_roles = []
    for member, role_folder in zip(members, role_folders, strict=True):
        if role_folder:
            below = _Member(member.name, member.folders[role_folder.depth :])
            members_with_roles.append((role_folder.role, below))
        elif not any(tuple(member.folders[: len(folder)]) == folder for folder in dataset_folders):
            members_with_roles.append((role, member))
    return members_with_roles
