"""Committed tables of PS3.16 and coding schemes, read by `dicom_etl.fhir.terminology` alone."""
