"""What the mapping needs beside the header rows: settings and sheets, as plain values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from zoneinfo import ZoneInfo

from dicom_etl.identity.ids import ResourceIds

Sheet = Mapping[str, str]  # what a sheet says of one subject or sample: field -> value
SUBJECT_FIELDS = ("sex", "species", "date of birth")
SAMPLE_FIELDS = ("sample anatomical location", "laterality")
SHEET_GENDERS = {"m": "male", "male": "male", "f": "female", "female": "female", "other": "other"}  # FHIR's of a "sex"


def samples_of(cells: Iterable[Mapping[str, Any]]) -> dict[tuple[str | None, str | None], dict[str, str]]:
    """What the samples sheet says that is mapped, by subject and sample; `cells` are rows of the table of sheets."""
    said: dict[tuple[str | None, str | None], dict[str, str]] = defaultdict(dict)
    for cell in cells:
        if cell["sheet"] == "samples" and cell["field"] in SAMPLE_FIELDS:
            said[cell["subject"], cell["sample"]][cell["field"]] = cell["value"]
    return dict(said)


@dataclass(frozen=True)
class Context:
    """The settings of one dataset, and what the sheets say of one unit's subject and samples."""

    dataset: str
    ids: ResourceIds
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

    @property
    def namespace(self) -> str:
        """The namespace of the identifiers that the mapping makes."""
        return self.ids.namespace

    def values(self) -> dict[str, Any]:
        """All of it as values that JSON holds, for fingerprints; of the key of ids its fingerprint alone."""
        return asdict(self) | {"zone": str(self.zone), "ids": [self.ids.namespace, self.ids.key_fingerprint]}
