"""What is brought onto a FHIR server: the ledger of what it has, whose each resource is, and what may be written over.

Patients are merged, linked and reconciled; studies held, adopted or sent; all compared with the server and withdrawn
from it. How requests are made is the matter of `dicom_etl.server`; `stages` decides when.
"""
