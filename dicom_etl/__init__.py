"""Loads imaging research data: DICOM trees to header tables, FHIR resources and a report on tag quality.

The Python API: `open_lake` reads the tables of a lake as pandas data frames, `to_imaging_studies` converts a folder of
DICOM files to FHIR resources.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dicom_etl.version import VERSION

if TYPE_CHECKING:
    from dicom_etl.convert import to_imaging_studies
    from dicom_etl.notebook import open_lake

__version__ = VERSION
__all__ = ["__version__", "open_lake", "to_imaging_studies"]

_MODULES = {"open_lake": "dicom_etl.notebook", "to_imaging_studies": "dicom_etl.convert"}


def __getattr__(name: str) -> Any:
    """Import a function of the API when it is used: worker processes need none of them."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
