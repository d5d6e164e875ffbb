"""One DICOM header -> one row: the catalogue of tags, the readers, and the decoding of values."""
