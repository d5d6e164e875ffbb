"""Data of the package: quality checks, placeholders, and the requirements of the standard (PS3.3, PS3.4)."""
