"""The FHIR resources of header rows: Patient, ImagingStudy and Endpoint, each a pure function of rows and settings.

The mapping is data (`mapping`, `tables/mapping.csv`); its rules are functions (`rules`, `imaging_study`, `patient`).
Corrections are applied to rows before (`corrections`), and resources are validated after (`validation`). Terminology,
dates and person names are conversions of single values.

Not here: which units of a dataset are built, how their rows are read and how resources are stored (`construction`), and
everything about FHIR servers (`fhir_client`, `upload`).
"""
