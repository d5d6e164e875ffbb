"""One DICOM header -> one header row.

A row: `catalogue` (its columns), `values` and `pixel_data` (rules), `tag_profile`, `row`. Readers: `reference` (with
pydicom, correct by definition) and `fast` (the same results several times faster). Rows become columns in `columns`.

Not here: which files are read (`extraction`), and tables of the lake (`lake.schemas`).
"""

# Raise this number when a change of the readers changes their results, so that all files are read again.
READER_VERSION = 2
