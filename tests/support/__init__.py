"""Test code that several test packages share: example data, hand-written lakes, web servers, readers of results.

The real FHIR and database servers are in `tests/servers`.
"""
