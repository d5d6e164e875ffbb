"""What crawl and forget leave out of withdrawn subjects: cells of sheets, and findings that name them.

Not here: entries of the inventory (`lake.withdrawn` does that), and who was withdrawn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from dicom_etl.findings import Finding
from dicom_etl.lake.withdrawn import Withdrawn
from dicom_etl.sources.base import SheetCell
from dicom_etl.sources.grammar import match_entity
from dicom_etl.sources.sheet_subjects import map_samples_to_subjects

_BETWEEN_WORDS = re.compile(r"[\s/,;|:]+")
_REFERRING = ("entity", "filename", "was derived from")  # fields of sheets whose words are names


def cells_kept(cells: Sequence[SheetCell], withdrawn: Withdrawn) -> list[SheetCell]:
    """The cells without the rows of withdrawn subjects and of their samples.

    Of another subject's row that speaks of a withdrawn one the cell that does so is left out; rows of nobody go whole.
    """
    if not withdrawn:
        return list(cells)
    samples = {sample for sample, subject in map_samples_to_subjects(cells).items() if withdrawn.has(subject)}
    speaking = {cell for cell in cells if _speaks(cell, samples, withdrawn)}
    gone = {(cell.path, cell.row) for cell in cells if withdrawn.has(cell.subject)}
    gone |= {(c.path, c.row) for c in cells if c.subject is None and (c in speaking or c.sample in samples)}
    return [cell for cell in cells if cell not in speaking and (cell.path, cell.row) not in gone]


def _speaks(cell: SheetCell, samples: set[str], withdrawn: Withdrawn) -> bool:
    """Whether a cell names a withdrawn subject, or as a reference one of its samples."""
    if cell.field not in _REFERRING:
        return _mentions(cell.value, withdrawn)
    words = {cell.value, *_BETWEEN_WORDS.split(cell.value)}
    return withdrawn.lies_in(cell.value) or any(withdrawn.has(word) or word in samples for word in words)


def _mentions(text: str | None, withdrawn: Withdrawn) -> bool:
    """Whether a text names a withdrawn subject; a word that could be anything (the subject `1`) is no name."""
    return any(withdrawn.has(word) for word in _BETWEEN_WORDS.split(text or "") if match_entity(word))


def findings_kept(findings: Iterable[Finding], withdrawn: Withdrawn) -> list[Finding]:
    """The findings that name no withdrawn subject."""
    return [one for one in findings if not (withdrawn and _concerns(one, withdrawn))]


def _concerns(found: Finding, withdrawn: Withdrawn) -> bool:
    named = withdrawn.has(found.unit) or withdrawn.has(found.subject) or withdrawn.lies_in(found.path)
    return named or _mentions(found.message, withdrawn) or _mentions(found.value, withdrawn)
