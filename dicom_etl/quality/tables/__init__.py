"""Committed tables of PS3.3, read by `dicom_etl.quality.requirements` alone."""
