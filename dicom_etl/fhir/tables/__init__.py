"""Committed tables of PS3.16, coding schemes and the mapping, each read by one module of `dicom_etl.fhir`."""
