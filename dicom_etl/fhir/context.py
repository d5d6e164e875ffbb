"""What the mapping needs beside the header rows: settings and sheets, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from zoneinfo import ZoneInfo


@dataclass(frozen=True)
class Context:
    """The settings of one dataset, and what the sheets say of one subject."""

    dataset: str
    site: str
    zone: ZoneInfo | None
    endpoint_id: str
    staff_names: bool = False
    dataset_system: str = "urn:sparc_dataset:uid"
    study_system: str = "urn:sparc_study:uid"
    subject_sheet: Mapping[str, str] | None = None
