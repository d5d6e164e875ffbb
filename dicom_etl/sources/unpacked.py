"""The members of an archive as files of the tree: what they would be if it was unpacked where it lies.

The archive's own name counts as a folder where it is an entity of the grammar (`sub-1.zip`) or where nothing else
names a folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dicom_etl.sources.archives import archive_stem, is_archive_name
from dicom_etl.sources.grammar import entity, junk_class, role_folders, sheet_kind, start_of


class Unpacked(NamedTuple):
    """A member that may be DICOM: the folders that say whose it is, and its role."""

    member: str
    folders: list[str]
    role: str


@dataclass
class Contents:
    """What an archive has for the crawl."""

    files: list[Unpacked] = field(default_factory=list)
    junk: Counter[str] = field(default_factory=Counter)
    nested: int = 0


class _Inside(NamedTuple):
    member: str
    folders: list[str]  # of the archive alone


def contents(members: Iterable[str], archive: str, role: str, depth: int) -> Contents:
    """The members of the archive at a path whose first `depth` folders say nothing of subjects."""
    found = Contents()
    *outer, name = archive.split("/")[depth:]
    stem = archive_stem(name)
    own = [stem] if entity(stem) or (depth == 0 and stem in role_folders()) else []
    kept = [_Inside(member, own + member.split("/")[:-1]) for member in _plain(members, found)]
    # archives below a role folder have their role; elsewhere a whole dataset may have been packed
    placed = _by_role(kept, role) if depth == 0 and not any(map(entity, outer)) else [(role, file) for file in kept]
    for its_role, file in placed:
        found.files.append(Unpacked(file.member, [*outer, *file.folders] or [stem], its_role))
    return found


def _plain(members: Iterable[str], found: Contents) -> list[str]:
    """The members that are neither junk nor sheets nor archives; a folder of junk counts once, as in a tree."""
    plain, junk = [], set()
    for member in members:
        parts = member.split("/")
        if at := next((at for at, part in enumerate(parts, 1) if junk_class(part)), 0):
            junk.add((junk_class(parts[at - 1]) or "", "/".join(parts[:at])))
        elif is_archive_name(member):
            found.nested += 1
        elif sheet_kind(parts[-1]) is None:
            plain.append(member)
    found.junk.update(label for label, _ in junk)
    return plain


def _by_role(files: Sequence[_Inside], role: str) -> list[tuple[str, _Inside]]:
    """The files with their roles. Beside a folder `primary` only the other role folders count, as in a tree."""
    starts = [start_of(file.folders) for file in files]
    tops = {
        tuple(file.folders[: start.depth - 1])
        for file, start in zip(files, starts, strict=True)
        if start and start.role == "primary"
    }
    placed = []
    for file, start in zip(files, starts, strict=True):
        if start:
            placed.append((start.role, _Inside(file.member, file.folders[start.depth :])))
        elif not any(tuple(file.folders[: len(top)]) == top for top in tops):
            placed.append((role, file))
    return placed
