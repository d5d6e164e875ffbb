"""Tests mirror the package; `servers/` starts the real servers, `corpus.py` writes small DICOM files."""
