"""The FHIR server: client, authorization, capability, retry, and how resources go there and are answered.

Nothing here knows the lake, a finding or a dataset; what is sent, and whether, is decided in `dicom_etl.upload`.
"""
