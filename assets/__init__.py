"""The Dagster side: assets, checks, partitions, sensor and schedule. Thin: each calls one stage of `dicom_etl`."""
