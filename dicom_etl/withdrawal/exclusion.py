"""Exclusion of withdrawn subjects from the cells of metadata sheets and from findings.

Not here: rows of the inventory (`WithdrawalRecord.exclude_rows`), and which subjects are withdrawn (`record`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from dicom_etl.findings import Finding
from dicom_etl.sources.base import SheetCell
from dicom_etl.sources.grammar import match_entity
from dicom_etl.sources.sheet_subjects import map_samples_to_subjects
from dicom_etl.withdrawal.record import WithdrawalRecord

_SEPARATORS = re.compile(r"[\s/,;|:]+")
_REFERENCES = (
    "entity",
    "filename",
    "was derived from",
)  # fields of sheets that name subjects or samples


def exclude_cells(cells: Sequence[SheetCell], record: WithdrawalRecord) -> list[SheetCell]:
    """The cells without the rows of withdrawn subjects and of their samples.

    Where the row of another subject mentions a withdrawn one, only the cell that mentions it is excluded. A row that
    belongs to no subject is excluded as a whole.
    """
    if not record:
        return list(cells)
    samples = {sample for sample, subject in map_samples_to_subjects(cells).items() if record.is_withdrawn(subject)}
    mentioning = {cell for cell in cells if _mentions_withdrawn(cell, samples, record)}
    rows = {(cell.path, cell.row) for cell in cells if record.is_withdrawn(cell.subject)}
    rows |= {(c.path, c.row) for c in cells if c.subject is None and (c in mentioning or c.sample in samples)}
    return [cell for cell in cells if cell not in mentioning and (cell.path, cell.row) not in rows]


def _mentions_withdrawn(cell: SheetCell, samples: set[str], record: WithdrawalRecord) -> bool:
    """Whether a cell contains the name of a withdrawn subject, or (in a reference) of one of its samples."""
    if cell.field not in _REFERENCES:
        return _text_mentions(cell.value, record)
    words = {cell.value, *_SEPARATORS.split(cell.value)}
    return record.is_in_path(cell.value) or any(record.is_withdrawn(word) or word in samples for word in words)


def _text_mentions(text: str | None, record: WithdrawalRecord) -> bool:
    """Whether a text contains the name of a withdrawn subject; a word that does not look like one (`1`) is ignored."""
    return any(record.is_withdrawn(word) for word in _SEPARATORS.split(text or "") if match_entity(word))


def exclude_findings(findings: Iterable[Finding], record: WithdrawalRecord) -> list[Finding]:
    """The findings that mention no withdrawn subject."""
    return [finding for finding in findings if not (record and _finding_mentions(finding, record))]


def _finding_mentions(finding: Finding, record: WithdrawalRecord) -> bool:
    is_located = record.is_withdrawn(finding.unit) or record.is_withdrawn(finding.subject)
    is_named = _text_mentions(finding.message, record) or _text_mentions(finding.value, record)
    return is_located or is_named or record.is_in_path(finding.path)
