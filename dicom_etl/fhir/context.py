"""What the mapping needs beside the header rows: settings and sheets, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from zoneinfo import ZoneInfo

Sheet = Mapping[str, str]  # what a sheet says of one subject or sample: field -> value
SUBJECT_FIELDS = ("sex", "species", "date of birth")
SAMPLE_FIELDS = ("sample anatomical location", "laterality")


@dataclass(frozen=True)
class Context:
    """The settings of one dataset, and what the sheets say of one unit's subject and samples."""

    dataset: str
    site: str
    zone: ZoneInfo | None
    endpoint_id: str
    version: Literal["R4", "R5"] = "R4"
    strict: bool = False
    staff_names: bool = False
    contact_details: bool = False
    chest: str = "816094009"
    dataset_system: str = "urn:sparc_dataset:uid"
    study_system: str = "urn:sparc_study:uid"
    subject_sheet: Sheet = field(default_factory=dict)
    sample_sheets: Mapping[str, Sheet] = field(default_factory=dict)  # by sample
