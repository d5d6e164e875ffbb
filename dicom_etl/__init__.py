"""Loads imaging research data: DICOM trees to header tables, FHIR resources and a report on tag quality."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicom_etl.version import VERSION

if TYPE_CHECKING:
    from dicom_etl.convert import to_imaging_studies

__version__ = VERSION
__all__ = ["__version__", "to_imaging_studies"]


def __getattr__(name: str) -> Any:
    """Import a function of the API when it is used: worker processes need none of it."""
    if name == "to_imaging_studies":
        from dicom_etl.convert import to_imaging_studies

        return to_imaging_studies
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
