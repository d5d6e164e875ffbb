"""The path grammar: which folder names say subject, sample, role, sheet or junk.

The grammar is data (`grammar.json`: SDS 1.2.3, 2.x, 3.x); this module is the small engine that reads it. A new layout
is a new line there, with an example that the tests run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib import resources
from typing import Any, NamedTuple


class Place(NamedTuple):
    """What a folder path says."""

    subject: str | None
    sample: str | None


@cache
def grammar() -> dict[str, Any]:
    """The content of `grammar.json`."""
    text = resources.files(__package__).joinpath("grammar.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@cache
def _patterns(kind: str, name: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((entry[name], re.compile(entry["pattern"])) for entry in grammar()[kind])


@lru_cache(maxsize=100_000)
def entity(segment: str) -> str | None:
    """The entity (subject, pool, sample, performance, site) that a folder name denotes."""
    # the more specific composite sample id (sub-1_sam-2) stands after the subject's pattern: the last match counts
    matches = [name for name, pattern in _patterns("entities", "entity") if pattern.fullmatch(segment)]
    return matches[-1] if matches else None


@cache
def _any_junk() -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern.pattern})" for _, pattern in _patterns("junk", "class")))


def junk_class(name: str) -> str | None:
    """The class of junk that a file or folder name is, or None."""
    if not _any_junk().fullmatch(name):  # of nearly all names this is all that is asked
        return None
    return next((label for label, pattern in _patterns("junk", "class") if pattern.fullmatch(name)), None)


@cache
def role_folders() -> Mapping[str, str]:
    """Folder name -> role."""
    return {entry["folder"]: entry["role"] for entry in grammar()["roles"]}


def sheet_kind(name: str) -> str | None:
    """The kind of metadata sheet that a file name denotes (`subjects` for `subjects.xlsx`), or None."""
    stem, dot, suffix = name.lower().rpartition(".")
    known = dot + suffix in grammar()["sheet_suffixes"] and stem in grammar()["sheets"]
    return stem if known else None


class Start(NamedTuple):
    """Where SDS begins within folders: the role, and the number of folders up to and with the role folder."""

    role: str
    depth: int


def start_of(folders: Sequence[str]) -> Start | None:
    """The role folder among folders, if there is one before the first that says whose the files are."""
    roles = role_folders()
    for depth, folder in enumerate(folders, start=1):
        if folder in roles:
            return Start(roles[folder], depth)
        if entity(folder):
            return None
    return None


def locate(folders: Sequence[str], subject_of_sample: Mapping[str, str], listed: str | None = None) -> Place:
    """Subject and sample of a file from the folders between the role folder and the file.

    The subject is the deepest `sub-*`, else a pool, else what the samples sheet says of the sample, else what the
    manifest says of the file (`listed`), else the first folder. The sample is the deepest `sam-*`. Outside SDS no
    folder matches, and the first folder is the subject.
    """
    found: dict[str, str] = {}
    for folder in folders:
        if kind := entity(folder):
            found[kind] = folder
    sample = found.get("sample")
    subject = found.get("subject") or found.get("pool") or subject_of_sample.get(sample or "") or listed
    if subject is None and folders and folders[0] != sample:
        subject = folders[0]
    return Place(subject, sample)
