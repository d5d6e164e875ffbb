"""Loads imaging research data: DICOM trees to header tables, FHIR resources and a report on tag quality."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dicom_etl.convert import to_imaging_studies

__version__ = "0.1.0"
__all__ = ["__version__", "to_imaging_studies"]


def __getattr__(name: str) -> Any:
    """What is imported when it is asked for: a stage's worker needs none of it."""
    if name == "to_imaging_studies":
        from dicom_etl.convert import to_imaging_studies  # noqa: PLC0415

        return to_imaging_studies
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
