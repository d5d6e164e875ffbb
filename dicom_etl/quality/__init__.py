"""Quality of a dataset: requirements of the standard, completeness of tags, quality checks, FHIR readiness, the report.

`inputs` loads the tables of a dataset into a working database. There, `completeness` counts how often each tag is
filled, and `checks` counts the quality checks. The stage `measure` writes the counts to the lake, the stage `report`
turns them into a page (`report/`).

A new quality check is a row in `tables/quality_checks.json` (title, what is counted, thresholds), a function in
`checks/` that counts it, and a line in `checks/__init__.py`, which describes the steps.
"""
