"""The table `fhir_elements`: which elements that depend on data each resource has; FHIR readiness is counted from it.

Not here: the reason why an element is missing, which depends on the headers (`quality.checks.fhir_readiness`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# the columns of `fhir_elements`, in their order; null where they do not apply to the level of a row
_EMPTY_ROW: dict[str, Any] = dict.fromkeys(
    """dataset unit level study_uid series_uid patient started started_time accession description body_site laterality
    birth_date gender""".split()
)


def list_element_rows(resource: Mapping[str, Any], dataset: str, unit: str) -> Iterator[dict[str, Any]]:
    """The rows of a Patient, or of an ImagingStudy and its series; R4 or R5."""
    if resource["resourceType"] == "Patient":
        yield _EMPTY_ROW | {
            "dataset": dataset,
            "unit": unit,
            "level": "patient",
            "patient": resource["id"],
            "birth_date": bool(resource.get("birthDate")),
            "gender": bool(resource.get("gender")),
        }
    else:
        yield from _study_rows(resource, dataset, unit)


def _study_rows(study: Mapping[str, Any], dataset: str, unit: str) -> Iterator[dict[str, Any]]:
    identifiers = study["identifier"]
    uid = next(i["value"] for i in identifiers if i["system"] == "urn:dicom:uid").removeprefix("urn:oid:")
    started = study.get("started", "")
    common = _EMPTY_ROW | {"dataset": dataset, "unit": unit, "study_uid": uid}
    yield common | {
        "level": "study",
        "started": bool(started),
        "started_time": len(started) > len("YYYY-MM-DD"),
        "accession": _has_accession(study),
        "description": bool(study.get("description")),
    }
    for series in study["series"]:
        site = series.get("bodySite", {})  # a Coding, or in R5 a CodeableReference with a concept
        yield common | {
            "level": "series",
            "series_uid": series["uid"],
            "description": bool(series.get("description")),
            "body_site": bool(site.get("code") or site.get("concept", {}).get("coding")),
            "laterality": bool(series.get("laterality")),
        }


def _has_accession(study: Mapping[str, Any]) -> bool:
    """Whether an accession number is among the identifiers, or in R5 identifies the order."""
    identifiers = [*study["identifier"], *(order["identifier"] for order in study.get("basedOn", ()))]
    codings = [coding for identifier in identifiers for coding in identifier.get("type", {}).get("coding", ())]
    return any(coding.get("code") == "ACSN" for coding in codings)
