"""The Dagster side: assets, checks, partitions, sensor and schedule. Each asset calls one stage of `dicom_etl`."""
