"""Loads imaging research data: DICOM trees to header tables, FHIR resources and a report on tag quality."""

__version__ = "0.1.0"
