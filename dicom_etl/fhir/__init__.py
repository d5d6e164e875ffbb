"""Rows -> resources: Patient, ImagingStudy, Endpoint, and the terminology, dates and checks they need."""
