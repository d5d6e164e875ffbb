"""The inputs of the mapping besides header rows: settings and sheets, as plain values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from zoneinfo import ZoneInfo

from dicom_etl.identity.ids import ResourceIds
from dicom_etl.settings import DatasetSettings, Settings

Sheet = Mapping[str, str]  # the cells of one subject or sample: field -> value
SUBJECT_FIELDS = ("sex", "species", "date of birth")
SAMPLE_FIELDS = ("sample anatomical location", "laterality")
# a "sex" of the subjects sheet -> administrative-gender of FHIR
SHEET_GENDERS = {"m": "male", "male": "male", "f": "female", "female": "female", "other": "other"}


def group_sample_cells(cells: Iterable[Mapping[str, Any]]) -> dict[tuple[str | None, str | None], dict[str, str]]:
    """The mapped fields of the samples sheet by (subject, sample); `cells` are rows of the table of sheets."""
    samples: dict[tuple[str | None, str | None], dict[str, str]] = defaultdict(dict)
    for cell in cells:
        if cell["sheet"] == "samples" and cell["field"] in SAMPLE_FIELDS:
            samples[cell["subject"], cell["sample"]][cell["field"]] = cell["value"]
    return dict(samples)


@dataclass(frozen=True)
class Context:
    """The settings of one dataset, and the sheets of one unit's subject and samples."""

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

    @classmethod
    def from_settings(cls, dataset: str, settings: Settings, dataset_settings: DatasetSettings) -> Context:
        """The context of a dataset, without sheets.

        Raises:
            SettingsError: the key of resource ids cannot be used.
        """
        ids = settings.resource_ids()
        zone = dataset_settings.time_zone or settings.time_zone
        return cls(
            dataset=dataset,
            ids=ids,
            zone=ZoneInfo(zone) if zone else None,
            endpoint_id=ids.resource_id("Endpoint", dataset),
            version=settings.fhir.version,
            strict=settings.fhir.strict,
            staff_names=settings.staff_names,
            contact_details=settings.contact_details,
            chest=settings.fhir.chest_code,
            dataset_system=settings.sds_dataset_system,
            study_system=settings.sds_study_system,
        )

    @property
    def namespace(self) -> str:
        """The namespace of the identifiers that the mapping creates."""
        return self.ids.namespace

    def fingerprint_values(self) -> dict[str, Any]:
        """All values as JSON types, for fingerprints; of the key of ids, only its own fingerprint."""
        return asdict(self) | {"zone": str(self.zone), "ids": [self.ids.namespace, self.ids.key_fingerprint]}
