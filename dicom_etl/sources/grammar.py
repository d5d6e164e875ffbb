"""The path grammar: which names of folders and files denote a subject, a sample, a role, a sheet or a system file.

The grammar is data (`grammar.json`: SDS 1.2.3, 2.x, 3.x); this module applies it. A new folder layout is a new entry
there, with an example that the tests run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib import resources
from typing import Any, NamedTuple


@cache
def load_grammar() -> dict[str, Any]:
    """The content of `grammar.json`."""
    text = resources.files(__package__).joinpath("grammar.json").read_text(encoding="utf-8")
    grammar: dict[str, Any] = json.loads(text)
    return grammar


@cache
def load_role_folders() -> Mapping[str, str]:
    """Folder name -> role (primary, derivative, source)."""
    return {entry["folder"]: entry["role"] for entry in load_grammar()["roles"]}


@cache
def _patterns(section: str, name: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((entry[name], re.compile(entry["pattern"])) for entry in load_grammar()[section])


@lru_cache(maxsize=100_000)
def match_entity(segment: str) -> str | None:
    """The entity (subject, pool, sample, performance, site) that a folder name denotes, or None."""
    # the more specific composite sample id (sub-1_sam-2) comes after the pattern of subjects: the last match counts
    matches = [name for name, pattern in _patterns("entities", "entity") if pattern.fullmatch(segment)]
    return matches[-1] if matches else None


@cache
def _any_system_file() -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern.pattern})" for _, pattern in _patterns("system_files", "class")))


def match_system_file(name: str) -> str | None:
    """The class of system files (`macOS folder settings`) that a file or folder name belongs to, or None."""
    if not _any_system_file().fullmatch(name):  # true of nearly all names: one match is cheaper than ten
        return None
    return next((label for label, pattern in _patterns("system_files", "class") if pattern.fullmatch(name)), None)


def match_sheet(name: str) -> str | None:
    """The kind of metadata sheet that a file name denotes (`subjects` for `subjects.xlsx`), or None."""
    stem, dot, suffix = name.lower().rpartition(".")
    is_sheet = dot + suffix in load_grammar()["sheet_suffixes"] and stem in load_grammar()["sheets"]
    return stem if is_sheet else None


class RoleFolder(NamedTuple):
    """The position of a role folder in a path: its role, and the number of folders up to and including it."""

    role: str
    depth: int


def find_role_folder(folders: Sequence[str]) -> RoleFolder | None:
    """The first role folder of a path, None if an entity (a subject, a sample) comes first or there is none."""
    for depth, folder in enumerate(folders, start=1):
        if folder in load_role_folders():
            return RoleFolder(load_role_folders()[folder], depth)
        if match_entity(folder):
            return None
    return None


class PathEntities(NamedTuple):
    """The subject and the sample of a file."""

    subject: str | None
    sample: str | None


def find_entities(
    folders: Sequence[str], subject_of_sample: Mapping[str, str], manifest_subject: str | None = None
) -> PathEntities:
    """Subject and sample of a file, from its folders and the sheets.

    The subject is the deepest `sub-*`, else the deepest pool, else the subject of the sample in the samples sheet, else
    `manifest_subject`, else the first folder. The sample is the deepest `sam-*`. Outside SDS no folder matches, and the
    first folder is the subject.

    Args:
        folders: between the role folder and the file.
        subject_of_sample: by the samples sheet.
        manifest_subject: the file's subject by the manifest.
    """
    deepest: dict[str, str] = {}
    for folder in folders:
        if kind := match_entity(folder):
            deepest[kind] = folder
    sample = deepest.get("sample")
    subject = deepest.get("subject") or deepest.get("pool") or subject_of_sample.get(sample or "") or manifest_subject
    if subject is None and folders and folders[0] != sample:
        subject = folders[0]
    return PathEntities(subject, sample)
