"""Rows -> measures: requirements, completeness, consistency, FHIR readiness, and the report."""
